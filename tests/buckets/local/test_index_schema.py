"""The layout of the embedded bucket's index, and its migration."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from twisted_storaged.buckets.local import index_schema as layout
from twisted_storaged.buckets.local.index_reads import Entry, open_index_reader
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.model import ListQuery, ObjectInfo

LAYOUT_2 = """
CREATE TABLE objects (
    key TEXT PRIMARY KEY COLLATE BINARY,
    size INTEGER NOT NULL,
    etag TEXT NOT NULL,
    last_modified REAL NOT NULL,
    row INTEGER
) WITHOUT ROWID;
CREATE TABLE contents (row INTEGER PRIMARY KEY, content BLOB NOT NULL);
INSERT INTO contents VALUES (7, x'616263');
INSERT INTO objects VALUES ('large', 100000, 'f1', 1.5, NULL), ('small', 3, 'f2', 2.5, 7);
PRAGMA user_version = 2;
"""
LARGE = ObjectInfo("large", 100000, "f1", 1.5)
SMALL = ObjectInfo("small", 3, "f2", 2.5)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Make an index of layout 2."""
    path = tmp_path / "index.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(LAYOUT_2)
    connection.close()
    return path


class MigrationTests:
    """Opening an index of layout 2."""

    def test_has_everything_as_it_was(self, old: Path) -> None:
        """All objects are kept, without checksums, which layout 2 did not have."""
        index = IndexWriter(old)
        assert index.get("large") == Entry(LARGE)
        assert index.get("small") == Entry(SMALL, b"abc")
        assert index.page(ListQuery()).objects == [LARGE, SMALL]
        assert list(index.files()) == ["f1"]

    def test_is_one_of_this_layout_from_then_on(self, old: Path) -> None:
        """After the migration, everything can be written, also when it is opened again."""
        IndexWriter(old).close()
        index = IndexWriter(old)
        told = SMALL._replace(metadata=(("content-type", "a/b"),), digests={"md5": b"x"})
        assert index.commit([Change("small", Entry(told, b"xyz", 5)), Change("large", None)]) == [None, "f1"]
        assert index.get("small") == Entry(told, b"xyz", 5)

    def test_a_migration_that_fails_changes_nothing(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a failed migration, the older version can still use the index."""
        steps = (*layout._STEPS[2], "CREATE TABLE objects (already TEXT)")
        with monkeypatch.context() as patch:
            patch.setitem(layout._STEPS, 2, steps)
            with pytest.raises(sqlite3.Error, match="already exists"):
                IndexWriter(old)
        connection = sqlite3.connect(old)
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert len(connection.execute("SELECT * FROM objects").fetchone()) == 5
        connection.close()

    def test_looking_does_not_migrate(self, old: Path) -> None:
        """Opening an old index for reading fails, and says how to migrate it."""
        with pytest.raises(sqlite3.Error, match="start storaged once"):
            open_index_reader(old)
        assert sqlite3.connect(old).execute("PRAGMA user_version").fetchone() == (2,)

    def test_an_index_of_another_time_is_refused(self, old: Path) -> None:
        """An index of an unknown layout is refused."""
        connection = sqlite3.connect(old)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        for open_index in (IndexWriter, open_index_reader):
            with pytest.raises(sqlite3.Error, match="layout 99"):
                open_index(old)
