"""Writing the embedded bucket's index."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter, Outcome
from twisted_storaged.errors import PreconditionFailed
from twisted_storaged.model import Condition, ListQuery, ObjectInfo


@pytest.fixture
def index(tmp_path: Path) -> IndexWriter:
    return IndexWriter(tmp_path / "index.sqlite")


def entry(key: str, file: str = "f", content: bytes | None = None) -> Entry:
    return Entry(ObjectInfo(key, 3, file, 1.5), content)


def put(index: IndexWriter, key: str, file: str = "f", content: bytes | None = None) -> Outcome:
    (replaced,) = index.commit([Change(key, entry(key, file, content))])
    return replaced


def delete(index: IndexWriter, key: str) -> Outcome:
    (removed,) = index.commit([Change(key, None)])
    return removed


def contents(index: IndexWriter) -> list[bytes]:
    return [content for (content,) in index._reader.execute("SELECT content FROM contents ORDER BY row")]


class IndexTests:
    """Keys and contents."""

    def test_put_says_what_it_replaced(self, index: IndexWriter) -> None:
        """A commit returns the file that it replaced, to be removed."""
        assert put(index, "a", "one") is None
        assert put(index, "a", "two") == "one"
        assert index.get("a") == entry("a", "two")

    def test_delete_says_what_it_removed(self, index: IndexWriter) -> None:
        """A delete returns the file that it removed, and nothing the second time."""
        put(index, "a", "one")
        assert delete(index, "a") == "one"
        assert delete(index, "a") is None
        assert index.get("a") is None

    def test_keeps_a_small_content(self, index: IndexWriter) -> None:
        """A content is stored in the index, also an empty one."""
        put(index, "a", "one", b"abc")
        put(index, "b", "two", b"")
        assert index.get("a") == entry("a", "one", b"abc")
        assert index.get("b") == entry("b", "two", b"")

    def test_an_old_small_content_goes(self, index: IndexWriter) -> None:
        """A content in the index is removed by the commit that overwrites or deletes it."""
        for key in "abc":
            put(index, key, "one", b"old")
        assert put(index, "a", "two", b"new") is None
        assert put(index, "b", "file") is None
        assert delete(index, "c") is None
        assert contents(index) == [b"new"]
        assert put(index, "b", "three", b"small again") == "file"

    def test_changes_are_made_together_and_in_order(self, index: IndexWriter) -> None:
        """Two changes of one key in a batch take effect in order."""
        changes = [Change("a", entry("a", "one")), Change("a", entry("a", "two", b"abc")), Change("a", None)]
        assert index.commit([*changes, Change("a", entry("a", "three"))]) == [None, "one", None, None]
        assert index.get("a") == entry("a", "three")
        assert contents(index) == []

    def test_all_changes_or_none(self, index: IndexWriter) -> None:
        """If one change of a batch cannot be made, none is."""
        bad = Entry(ObjectInfo("b", None, "x", 1.5))  # type: ignore[arg-type]
        with pytest.raises(sqlite3.Error):
            index.commit([Change("a", entry("a", "one", b"abc")), Change("b", bad)])
        assert index.get("a") is None
        assert contents(index) == []

    def test_pages_are_in_the_order_of_utf8_bytes(self, index: IndexWriter) -> None:
        """Lists are ordered by the bytes of UTF-8, as in S3, and not of UTF-16."""
        keys = ["a", "a/b", "a//b", "a!", "b", "Z", "é", "\uffff", "😀", "a\x80"]
        for key in keys:
            put(index, key)
        assert [info.key for info in index.page(ListQuery()).objects] == sorted(keys, key=str.encode)

    def test_a_page_goes_on_after_the_last(self, index: IndexWriter) -> None:
        """A page continues after the last entry of the one before; `after` applies to the first."""
        for key in "abcd":
            put(index, key)
        page = index.page(ListQuery(page_limit=2, after="a"))
        assert [info.key for info in page.objects] == ["b", "c"]
        page = index.page(ListQuery(page_limit=2, after="a"), page.token)
        assert [info.key for info in page.objects] == ["d"]
        assert page.token is None

    def test_files_are_in_order(self, index: IndexWriter) -> None:
        """`files` yields the names of files in order, as the sweep needs, without contents in the index."""
        put(index, "d", "0", b"abc")
        for key, file in [("a", "3"), ("b", "1"), ("c", "2")]:
            put(index, key, file)
        assert list(index.files()) == ["1", "2", "3"]

    def test_everything_is_there_after_opening_again(self, tmp_path: Path, index: IndexWriter) -> None:
        """All objects are there after reopening, whether or not the index was closed."""
        put(index, "a")
        assert IndexWriter(tmp_path / "index.sqlite").get("a") == entry("a")

    def test_commits_are_durable(self, index: IndexWriter) -> None:
        """The index is in WAL mode, and commits are synced."""
        assert index._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert index._writer.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_a_failed_transaction_leaves_nothing(self, index: IndexWriter) -> None:
        """A failed transaction is rolled back, and the next one succeeds."""
        with pytest.raises(sqlite3.Error):
            put(index, "a", None)  # type: ignore[arg-type]
        assert index.get("a") is None
        put(index, "a")

    def test_what_is_no_index_is_refused(self, tmp_path: Path) -> None:
        """A file that is not an index is refused, and not changed."""
        path = tmp_path / "other.sqlite"
        path.write_bytes(b"not a database, and somebody's only copy" * 100)
        with pytest.raises(sqlite3.Error):
            IndexWriter(path)
        assert path.read_bytes().startswith(b"not a database")


class DetailsTests:
    """Metadata and digests, which HEAD and GET have and lists do not."""

    TOLD = ObjectInfo(
        "a", 3, "one", 1.5, (("content-type", "a/ü"), ("x-amz-meta-b", "")), {"md5": b"\0\xff", "sha-256": b"x"}
    )

    def test_come_back(self, index: IndexWriter) -> None:
        """Metadata and digests are read exactly as they were written."""
        index.commit([Change("a", Entry(self.TOLD, b"abc", 0xFFFFFFFF))])
        assert index.get("a") == Entry(self.TOLD, b"abc", 0xFFFFFFFF)
        assert index.head("a") == self.TOLD
        assert index.head("b") is None
        assert index.page(ListQuery()).objects == [ObjectInfo("a", 3, "one", 1.5)]

    def test_one_without_the_other(self, index: IndexWriter) -> None:
        """An object may have only metadata, or only digests."""
        for told in (self.TOLD._replace(metadata=()), self.TOLD._replace(digests={})):
            index.commit([Change("a", Entry(told))])
            assert index.head("a") == told

    def test_go_with_the_object(self, index: IndexWriter) -> None:
        """The details of an overwritten or deleted object are removed."""
        for key in "ab":
            index.commit([Change(key, Entry(self.TOLD._replace(key=key)))])
        put(index, "a")
        delete(index, "b")
        assert index.head("a") == entry("a").info
        assert index._reader.execute("SELECT * FROM details").fetchall() == []


class ConditionTests:
    """Conditions of changes."""

    NEW = Condition()

    @pytest.mark.parametrize("change", [entry("a", "two"), None])
    @pytest.mark.parametrize("condition", [Condition("one"), NEW])
    def test_holds_or_nothing_happens(self, index: IndexWriter, condition: Condition, change: Entry | None) -> None:
        """A change whose condition does not hold changes nothing, for puts and deletes."""
        (outcome,) = index.commit([Change("a", change, condition)])
        if condition.etag is None:
            assert outcome is None
            assert index.get("a") == change
        else:
            assert isinstance(outcome, PreconditionFailed)
            assert index.get("a") is None
        delete(index, "a")
        put(index, "a", "one")
        (outcome,) = index.commit([Change("a", change, condition)])
        if condition.etag == "one":
            assert outcome == "one"
            assert index.get("a") == change
        else:
            assert isinstance(outcome, PreconditionFailed)
            assert index.get("a") == entry("a", "one")

    def test_sees_the_changes_before_it(self, index: IndexWriter) -> None:
        """A condition is checked after the earlier changes of its batch, and a failed one does not stop others."""
        outcomes = index.commit(
            [
                Change("a", entry("a", "one"), self.NEW),
                Change("a", entry("a", "two"), self.NEW),
                Change("b", entry("b", "three")),
                Change("a", entry("a", "four"), Condition("one")),
                Change("a", entry("a", "five"), Condition("one")),
            ]
        )
        assert [type(outcome) for outcome in outcomes] == [
            type(None),
            PreconditionFailed,
            type(None),
            str,
            PreconditionFailed,
        ]
        assert outcomes[3] == "one"
        assert index.get("a") == entry("a", "four")
        assert index.get("b") == entry("b", "three")

    def test_who_fails_leaves_nothing(self, index: IndexWriter) -> None:
        """A change whose condition does not hold leaves no content and no details."""
        put(index, "a", "one", b"old")
        index.commit([Change("a", Entry(DetailsTests.TOLD, b"new"), self.NEW)])
        assert contents(index) == [b"old"]
        assert index._reader.execute("SELECT * FROM details").fetchall() == []
