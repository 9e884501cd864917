"""Following a list from page to page, and telling where what comes cannot be pages of one list: a bucket of S3 is as
good as its engine, and what an engine makes up must not become a client's list, nor keep the daemon busy for ever."""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt

from twisted_storaged.buckets.objects import ListPage
from twisted_storaged.errors import BucketError

#: Pages without an entry that may follow each other. S3 gives some where much was deleted.
EMPTY_PAGES = 1000


class Walk:
    """The pages of one list that came until now."""

    def __init__(self) -> None:
        self._last = ""
        self._empty = 0
        self._pages = 0
        self._kept: str | None = None
        self._keep_at = 1

    def take(self, page: ListPage) -> None:
        """The next page.

        Raises:
            BucketError: it cannot be that.
        """
        keys = [info.key for info in page.objects]
        if page.ordered:
            self._check_order(keys, page.prefixes)
        if page.token is not None:
            self._check_token(page.token)
            self._empty = 0 if keys or page.prefixes else self._empty + 1
            if self._empty > EMPTY_PAGES:
                raise BucketError(f"{self._empty} pages of a list without an entry follow each other")

    def _check_order(self, *kinds: Sequence[str]) -> None:
        """Text sorts as the bytes of its UTF-8 do."""
        for names in kinds:
            if names and not (names[0] > self._last and all(map(lt, names, names[1:]))):
                raise BucketError(f"a list is not in the order of the bytes of its keys, after {self._last!r}")
        self._last = max([self._last, *(names[-1] for names in kinds if names)])

    def _check_token(self, token: str) -> None:
        """Find any cycle of tokens, while one is kept: Brent's way, https://doi.org/10.1007/BF01933190 ."""
        self._pages += 1
        if token == self._kept:
            raise BucketError(f"a list goes round in a circle: its token {token[:100]!r} is there again")
        if self._pages == self._keep_at:
            self._kept, self._keep_at = token, self._keep_at * 2
