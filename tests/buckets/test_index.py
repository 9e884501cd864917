"""The embedded bucket's index."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from twisted_storaged.buckets.index import Entry, Index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index.sqlite")


def entry(key: str, file: str = "f") -> Entry:
    return Entry(key, file, 3, 1.5)


class IndexTests:
    """Keys to files."""

    def test_put_says_what_it_replaced(self, index: Index) -> None:
        """So that the old file can be removed."""
        assert index.put(entry("a", "one")) is None
        assert index.put(entry("a", "two")) == "one"
        assert index.get("a") == entry("a", "two")

    def test_delete_says_what_it_removed(self, index: Index) -> None:
        """Nothing, the second time."""
        index.put(entry("a", "one"))
        assert index.delete("a") == "one"
        assert index.delete("a") is None
        assert index.get("a") is None

    def test_pages_are_in_the_order_of_utf8_bytes(self, index: Index) -> None:
        """As S3 lists; which is not how UTF-16 sorts."""
        keys = ["a", "a/b", "a//b", "a!", "b", "Z", "é", "\uffff", "😀", "a\x80"]
        for key in keys:
            index.put(entry(key))
        assert [item.key for item in index.page("", False, 100)] == sorted(keys, key=str.encode)

    def test_a_page_goes_on_after_the_last(self, index: Index) -> None:
        """Or at it."""
        for key in "abcd":
            index.put(entry(key))
        assert [item.key for item in index.page("b", True, 1)] == ["c"]
        assert [item.key for item in index.page("b", False, 2)] == ["b", "c"]

    def test_files_are_in_order(self, index: Index) -> None:
        """Which is what a sweep needs."""
        for key, file in [("a", "3"), ("b", "1"), ("c", "2")]:
            index.put(entry(key, file))
        assert list(index.files()) == ["1", "2", "3"]

    def test_everything_is_there_after_opening_again(self, tmp_path: Path, index: Index) -> None:
        """Whether or not it was closed."""
        index.put(entry("a"))
        assert Index(tmp_path / "index.sqlite").get("a") == entry("a")

    def test_commits_are_durable(self, index: Index) -> None:
        """The two settings that make a commit wait for the disk."""
        assert index._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert index._writer.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_a_failed_transaction_leaves_nothing(self, index: Index) -> None:
        """And the next one works."""
        with pytest.raises(sqlite3.Error):
            index.put(entry("a")._replace(size=None))  # type: ignore[arg-type]
        assert index.get("a") is None
        index.put(entry("a"))

    def test_an_index_of_another_time_is_refused(self, tmp_path: Path, index: Index) -> None:
        """Instead of being misread."""
        index._writer.execute("PRAGMA user_version = 99")
        index.close()
        with pytest.raises(sqlite3.Error, match="layout 99"):
            Index(tmp_path / "index.sqlite")

    def test_what_is_no_index_is_refused(self, tmp_path: Path) -> None:
        """And left alone."""
        path = tmp_path / "other.sqlite"
        path.write_bytes(b"not a database, and somebody's only copy" * 100)
        with pytest.raises(sqlite3.Error):
            Index(path)
        assert path.read_bytes().startswith(b"not a database")
