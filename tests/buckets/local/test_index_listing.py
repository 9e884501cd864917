"""Pages of the embedded bucket's list, compared with a simple model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support import entries, is_common_prefix
from twisted_storaged.buckets.local.index_listing import PAGE_LIMIT
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.model import ListQuery, ObjectInfo

#: Letters at the ends of what UTF-8 can say, so that "what comes after all of these" is tried where it is difficult.
LETTERS = ["a", "b", "/", "//", "\x80", "\ud7ff", "\ue000", "\uffff", "\U0010ffff"]


def filled(path: Path, keys: list[str]) -> IndexWriter:
    index = IndexWriter(path / "index.sqlite")
    index.commit([Change(key, Entry(ObjectInfo(key, 3, f"etag of {key}", 1.5))) for key in keys])
    return index


def read_all(index: IndexWriter, query: ListQuery) -> list[str]:
    """Return the entries of all pages, and check what each page promises."""
    found: list[str] = []
    token: str | None = None
    while True:
        page = index.page(query, token)
        names = [info.key for info in page.objects]
        assert names == sorted(names)
        assert list(page.prefixes) == sorted(page.prefixes)
        assert len(names) + len(page.prefixes) <= query.page_limit
        assert not any(is_common_prefix(name, query) for name in names)
        found += sorted([*names, *page.prefixes], key=str.encode)
        token = page.token
        if token is None:
            return found
        assert len(names) + len(page.prefixes) == query.page_limit


class ModelTests:
    """Any keys, and any query."""

    def test_is_what_a_plain_list_is(self, tmp_path: Path) -> None:
        """The entries are those of the model for any prefix, delimiter, start and page size."""
        pick = random.Random(4)
        keys = ["".join(pick.choices(LETTERS, k=pick.randrange(1, 6))) for _ in range(300)]
        index = filled(tmp_path, keys)
        for _ in range(1000):
            places = [pick.choice(keys)[: pick.randrange(4)] for _ in range(2)]
            query = ListQuery(
                prefix=places[0],
                delimiter=pick.choice([None, "/", "//", "a", "\U0010ffff"]),
                after=pick.choice([None, places[1], pick.choice(keys), pick.choice(keys) + "/"]),
                page_limit=pick.choice([1, 2, 7, 1000]),
            )
            assert read_all(index, query) == entries(keys, query), query


class PageTests:
    """One page."""

    @pytest.mark.parametrize("delimiter", [None, "/"])
    def test_the_last_page_is_known_to_be_the_last(self, tmp_path: Path, delimiter: str | None) -> None:
        """The last page has no token, so that clients never request an empty one."""
        index = filled(tmp_path, ["a", "b", "c", "d"])
        page = index.page(ListQuery(delimiter=delimiter, page_limit=2))
        assert page.token == "b"
        assert index.page(ListQuery(delimiter=delimiter, page_limit=2), page.token).token is None

    def test_is_never_larger_than_memory_allows(self, tmp_path: Path) -> None:
        """A page has at most PAGE_LIMIT entries, whatever the client requests."""
        index = filled(tmp_path, [f"{number:05}" for number in range(PAGE_LIMIT + 1)])
        assert len(index.page(ListQuery(page_limit=10**9)).objects) == PAGE_LIMIT

    def test_what_is_below_a_common_prefix_is_not_read(self, tmp_path: Path) -> None:
        """Keys below a common prefix are skipped, not read."""
        index = filled(tmp_path, [f"{folder}/{number:05}" for folder in "abc" for number in range(1000)])
        rows: list[str] = []

        def seen(_: object, row: tuple[str, ...]) -> tuple[str, ...]:
            rows.append(row[0])
            return row

        index._reader.row_factory = seen
        assert index.page(ListQuery(delimiter="/")).prefixes == ("a/", "b/", "c/")
        assert rows == ["a/00000", "b/00000", "c/00000"]

    def test_holds_nothing_open(self, tmp_path: Path) -> None:
        """A page that ends early closes its cursor: later commits are visible to the next page."""
        index = filled(tmp_path, ["a", "b", "c/1", "d"])
        index.page(ListQuery(delimiter="/", page_limit=1))
        index.commit([Change("a", None)])
        assert [info.key for info in index.page(ListQuery(delimiter="/")).objects] == ["b", "d"]
        assert index._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
