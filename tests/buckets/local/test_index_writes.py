"""The embedded bucket's index."""

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
    """Keys to contents."""

    def test_put_says_what_it_replaced(self, index: IndexWriter) -> None:
        """So that the old file can be removed."""
        assert put(index, "a", "one") is None
        assert put(index, "a", "two") == "one"
        assert index.get("a") == entry("a", "two")

    def test_delete_says_what_it_removed(self, index: IndexWriter) -> None:
        """Nothing, the second time."""
        put(index, "a", "one")
        assert delete(index, "a") == "one"
        assert delete(index, "a") is None
        assert index.get("a") is None

    def test_keeps_a_small_content(self, index: IndexWriter) -> None:
        """An empty one, too."""
        put(index, "a", "one", b"abc")
        put(index, "b", "two", b"")
        assert index.get("a") == entry("a", "one", b"abc")
        assert index.get("b") == entry("b", "two", b"")

    def test_an_old_small_content_goes(self, index: IndexWriter) -> None:
        """With the commit that overwrites or deletes it; no file is named that never was."""
        for key in "abc":
            put(index, key, "one", b"old")
        assert put(index, "a", "two", b"new") is None
        assert put(index, "b", "file") is None
        assert delete(index, "c") is None
        assert contents(index) == [b"new"]
        assert put(index, "b", "three", b"small again") == "file"

    def test_changes_are_made_together_and_in_order(self, index: IndexWriter) -> None:
        """Two of one key are as if one had come after the other."""
        changes = [Change("a", entry("a", "one")), Change("a", entry("a", "two", b"abc")), Change("a", None)]
        assert index.commit([*changes, Change("a", entry("a", "three"))]) == [None, "one", None, None]
        assert index.get("a") == entry("a", "three")
        assert contents(index) == []

    def test_all_changes_or_none(self, index: IndexWriter) -> None:
        """One that cannot be made takes the others back."""
        bad = Entry(ObjectInfo("b", None, "x", 1.5))  # type: ignore[arg-type]
        with pytest.raises(sqlite3.Error):
            index.commit([Change("a", entry("a", "one", b"abc")), Change("b", bad)])
        assert index.get("a") is None
        assert contents(index) == []

    def test_pages_are_in_the_order_of_utf8_bytes(self, index: IndexWriter) -> None:
        """As S3 lists; which is not how UTF-16 sorts."""
        keys = ["a", "a/b", "a//b", "a!", "b", "Z", "é", "\uffff", "😀", "a\x80"]
        for key in keys:
            put(index, key)
        assert [info.key for info in index.page(ListQuery()).objects] == sorted(keys, key=str.encode)

    def test_a_page_goes_on_after_the_last(self, index: IndexWriter) -> None:
        """Of the page before; `after` is for the first."""
        for key in "abcd":
            put(index, key)
        page = index.page(ListQuery(page_limit=2, after="a"))
        assert [info.key for info in page.objects] == ["b", "c"]
        page = index.page(ListQuery(page_limit=2, after="a"), page.token)
        assert [info.key for info in page.objects] == ["d"]
        assert page.token is None

    def test_files_are_in_order(self, index: IndexWriter) -> None:
        """Which is what a sweep needs; a small content is none."""
        put(index, "d", "0", b"abc")
        for key, file in [("a", "3"), ("b", "1"), ("c", "2")]:
            put(index, key, file)
        assert list(index.files()) == ["1", "2", "3"]

    def test_everything_is_there_after_opening_again(self, tmp_path: Path, index: IndexWriter) -> None:
        """Whether or not it was closed."""
        put(index, "a")
        assert IndexWriter(tmp_path / "index.sqlite").get("a") == entry("a")

    def test_commits_are_durable(self, index: IndexWriter) -> None:
        """The two settings that make a commit wait for the disk."""
        assert index._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert index._writer.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_a_failed_transaction_leaves_nothing(self, index: IndexWriter) -> None:
        """And the next one works."""
        with pytest.raises(sqlite3.Error):
            put(index, "a", None)  # type: ignore[arg-type]
        assert index.get("a") is None
        put(index, "a")

    def test_what_is_no_index_is_refused(self, tmp_path: Path) -> None:
        """And left alone."""
        path = tmp_path / "other.sqlite"
        path.write_bytes(b"not a database, and somebody's only copy" * 100)
        with pytest.raises(sqlite3.Error):
            IndexWriter(path)
        assert path.read_bytes().startswith(b"not a database")


class DetailsTests:
    """What HEAD and GET say, and lists do not."""

    TOLD = ObjectInfo(
        "a", 3, "one", 1.5, (("content-type", "a/ü"), ("x-amz-meta-b", "")), {"md5": b"\0\xff", "sha-256": b"x"}
    )

    def test_come_back(self, index: IndexWriter) -> None:
        """To the letter."""
        index.commit([Change("a", Entry(self.TOLD, b"abc", 0xFFFFFFFF))])
        assert index.get("a") == Entry(self.TOLD, b"abc", 0xFFFFFFFF)
        assert index.head("a") == self.TOLD
        assert index.head("b") is None
        assert index.page(ListQuery()).objects == [ObjectInfo("a", 3, "one", 1.5)]

    def test_one_without_the_other(self, index: IndexWriter) -> None:
        """Metadata, or digests."""
        for told in (self.TOLD._replace(metadata=()), self.TOLD._replace(digests={})):
            index.commit([Change("a", Entry(told))])
            assert index.head("a") == told

    def test_go_with_the_object(self, index: IndexWriter) -> None:
        """Nothing is left of those of an overwritten or deleted one."""
        for key in "ab":
            index.commit([Change(key, Entry(self.TOLD._replace(key=key)))])
        put(index, "a")
        delete(index, "b")
        assert index.head("a") == entry("a").info
        assert index._reader.execute("SELECT * FROM details").fetchall() == []


class ConditionTests:
    """What must be so for a change to happen."""

    NEW = Condition()

    @pytest.mark.parametrize("change", [entry("a", "two"), None])
    @pytest.mark.parametrize("condition", [Condition("one"), NEW])
    def test_holds_or_nothing_happens(self, index: IndexWriter, condition: Condition, change: Entry | None) -> None:
        """For puts and deletes, with an object there and without."""
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
        """Those of its own batch, too; and who fails does not keep the others from going on."""
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
        """Of a content, or of details."""
        put(index, "a", "one", b"old")
        index.commit([Change("a", Entry(DetailsTests.TOLD, b"new"), self.NEW)])
        assert contents(index) == [b"old"]
        assert index._reader.execute("SELECT * FROM details").fetchall() == []
