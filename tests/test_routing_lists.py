"""Lists of faulty engines end with an error."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.errors import BucketError
from twisted_storaged.model import ListPage, ObjectInfo
from twisted_storaged.routing import EMPTY_PAGES, ListChecker


def page(*keys: str, token: str | None = None, prefixes: tuple[str, ...] = (), ordered: bool = True) -> ListPage:
    return ListPage([ObjectInfo(key, 0, "e", 0.0) for key in keys], token, prefixes, ordered)


def walked(*pages: ListPage) -> None:
    walk = ListChecker()
    for one in pages:
        walk.take(one)


class OrderTests:
    """Entries must be in the order of the bytes of their names, each once."""

    def test_a_list(self) -> None:
        """Objects and common prefixes may be mixed, pages may be empty, and the order is that of UTF-8, not UTF-16."""
        walked(page("a", "c", prefixes=("b/",)), page(), page("d"), page(prefixes=("e/", "\uffff/")), page("😀"))

    @pytest.mark.parametrize(
        "pages",
        [
            [page("b", "a")],
            [page("a", "a")],
            [page("b"), page("a")],
            [page("a"), page("a")],
            [page(prefixes=("b/", "a/"))],
            [page("a", prefixes=("b/",)), page("b")],
            [page("a", prefixes=("b/",)), page(prefixes=("b/",))],
            [page("c", prefixes=("b/",)), page("bx")],
            [page("😀", "\uffff")],
            [page("b"), page(), page("a")],
        ],
    )
    def test_out_of_order(self, pages: list[ListPage]) -> None:
        """Entries out of order, on one page or from one to the next, are an error."""
        with pytest.raises(BucketError, match="order"):
            walked(*pages)

    def test_where_none_is_promised(self) -> None:
        """The order is not checked where the bucket promises none."""
        walked(page("b", "a", ordered=False), page("a", ordered=False, prefixes=("b/", "a/")))


class EndTests:
    """Every list ends."""

    @given(before=st.integers(0, 20), length=st.integers(1, 50))
    def test_tokens_that_repeat(self, before: int, length: int) -> None:
        """A cycle of tokens is found after a number of pages that its start and length bound."""
        numbers = range(4 * (before + length))
        tokens = [number if number < before else before + (number - before) % length for number in numbers]
        with pytest.raises(BucketError, match="cycle"):
            walked(*(page("a", token=str(token), ordered=False) for token in tokens))

    def test_tokens_that_do_not(self) -> None:
        """A long list without repeated tokens is accepted."""
        walk = ListChecker()
        for number in range(5000):
            walk.take(page(f"{number:04}", token=str(number)))
        walk.take(page())

    def test_pages_that_stay_empty(self) -> None:
        """Too many consecutive empty pages are an error; a page with an entry restarts the count."""
        walk, tokens = ListChecker(), map(str, count())
        for key in ("a", "b"):
            for _ in range(EMPTY_PAGES):
                walk.take(page(token=next(tokens)))
            walk.take(page(key, token=next(tokens)))
        for _ in range(EMPTY_PAGES):
            walk.take(page(token=next(tokens)))
        with pytest.raises(BucketError, match="pages of a list are empty"):
            walk.take(page(token=next(tokens)))
