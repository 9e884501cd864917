"""The totals of objects and bytes in the embedded bucket's index."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from awscrt.checksums import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.buckets.local.embedded import flip
from tests.daemon import ROOT
from twisted_storaged.buckets.local.index_reads import Entry, Totals
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.buckets.local.start import OpenFolder
from twisted_storaged.model import Condition, ObjectInfo

KEYS = st.sampled_from(["a", "b", "c", "d"])
ENTRIES = st.one_of(st.none(), st.tuples(st.integers(0, 1 << 32), st.booleans()))
CHANGES = st.tuples(KEYS, ENTRIES, st.sampled_from([None, Condition(), Condition("e")]))

# Commits two objects, and is killed at the statement that begins so.
KILLED = """
import os, signal, sys
from pathlib import Path
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.model import ObjectInfo
index = IndexWriter(Path(sys.argv[1]))
def kill(statement):
    if statement.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
index._writer.set_trace_callback(kill)
index.commit([Change(key, Entry(ObjectInfo(key, 5, "e", 1.5), b"x")) for key in "ac"])
"""


@pytest.fixture
def index(tmp_path: Path) -> IndexWriter:
    return started(tmp_path)


def started(path: Path) -> IndexWriter:
    """Open an index as a start does."""
    index = IndexWriter(path / "index.sqlite")
    index.count_start()
    return index


def put(key: str, size: int, *, is_file: bool = False, condition: Condition | None = None) -> Change:
    return Change(key, Entry(ObjectInfo(key, size, "e", 1.5), None if is_file else b"x"), condition)


def counted(index: IndexWriter) -> Totals:
    return Totals(*index._reader.execute("SELECT count(*), ifnull(sum(size), 0) FROM objects").fetchone())


def damage(index: IndexWriter, key: str) -> None:
    index._writer.execute("UPDATE objects SET size = size + 1 WHERE key = ?", (key,))


class TotalsTests:
    """What commits, failures and starts do to the totals."""

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.one_of(st.sampled_from(["start", "failure"]), st.lists(CHANGES, max_size=4)), max_size=12))
    def test_any_sequence(
        self, steps: Sequence[str | list[tuple[str, tuple[int, bool] | None, Condition | None]]]
    ) -> None:
        """After any sequence of writes, failed commits and starts, the totals are what a count says."""
        with TemporaryDirectory() as folder:
            index = started(Path(folder))
            for step in steps:
                if step == "start":
                    index.close()
                    index = started(Path(folder))
                elif step == "failure":
                    # The second object has a size that SQLite refuses.
                    with pytest.raises(OverflowError):
                        index.commit([put("a", 7), put("b", 1 << 63)])
                else:
                    assert not isinstance(step, str)
                    index.commit(
                        [
                            Change(key, None, condition)
                            if entry is None
                            else put(key, entry[0], is_file=entry[1], condition=condition)
                            for key, entry, condition in step
                        ]
                    )
                assert index.totals() == counted(index)
            index.close()

    def test_several_processes(self, tmp_path: Path, index: IndexWriter) -> None:
        """What one process commits, another one sees."""
        other = IndexWriter(tmp_path / "index.sqlite", is_prepared=True)
        index.commit([put("a", 5)])
        other.commit([put("b", 7)])
        index.commit([put("b", 8)])
        assert index.totals() == other.totals() == Totals(2, 13)

    @pytest.mark.parametrize("statement", ["INSERT OR REPLACE INTO objects", "UPDATE totals", "COMMIT"])
    def test_kill_9(self, tmp_path: Path, index: IndexWriter, statement: str) -> None:
        """A commit that was killed has changed neither the objects nor the totals."""
        index.commit([put("a", 1), put("b", 2)])
        command = [sys.executable, "-c", KILLED, str(tmp_path / "index.sqlite"), statement]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, check=False, env=environ).returncode == -signal.SIGKILL
        assert index.totals() == counted(index) == Totals(2, 3)
        index.close()
        assert started(tmp_path).totals() == Totals(2, 3)

    def test_is_not_counted_again(self, tmp_path: Path, index: IndexWriter) -> None:
        """A start takes the totals as they are, however many objects there are."""
        index._writer.execute("UPDATE totals SET objects = 5, bytes = 6")
        index.close()
        assert started(tmp_path).totals() == Totals(5, 6)

    def test_an_earlier_version(self, tmp_path: Path, index: IndexWriter) -> None:
        """After a start of a version that knows of no totals, the next one counts."""
        index.commit([put("a", 5), put("b", 7)])
        index._writer.execute("UPDATE origin SET starts = starts + 1")
        index._writer.execute("DELETE FROM objects WHERE key = 'a'")
        assert index.compare_totals() is None
        index.close()
        assert started(tmp_path).totals() == Totals(1, 7)

    def test_an_index_without_totals(self, tmp_path: Path, index: IndexWriter) -> None:
        """The first start on an index of an earlier version counts."""
        index.commit([put("a", 5), put("b", 7)])
        index._writer.execute("DROP TABLE totals")
        assert index.compare_totals() is None
        index.close()
        assert started(tmp_path).totals() == Totals(2, 12)


class DamagedTests:
    """A damaged index."""

    @pytest.mark.parametrize("change", [put("a", 5), Change("a", None)])
    def test_a_damaged_row(self, tmp_path: Path, index: IndexWriter, change: Change) -> None:
        """Where a damaged row is replaced or deleted, the totals are unknown until the next start has counted."""
        index.commit([put("a", 1), put("b", 2)])
        damage(index, "a")
        index.commit([change, put("c", 3)])
        assert index.totals() is None
        index.commit([put("d", 4)])
        assert index.totals() is None
        expected = counted(index)
        index.close()
        assert started(tmp_path).totals() == expected

    def test_the_totals_themselves(self, tmp_path: Path, index: IndexWriter) -> None:
        """If the page of the totals is damaged, they are unknown; starts and commits go on without them."""
        index.commit([put("a", 1)])
        (page,) = index._writer.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'totals'").fetchone()
        index.close()
        flip(tmp_path / "index.sqlite", (page - 1) * 4096)
        index = started(tmp_path)
        assert index.totals() is None
        assert index.commit([put("a", 2), put("b", 3)]) == [None, None]
        assert counted(index) == Totals(2, 5)

    def test_damage_that_prevents_a_count(self, tmp_path: Path, index: IndexWriter) -> None:
        """If the objects cannot be counted, the totals are unknown, and the start goes on."""
        index.commit([put(f"{number:0900}", 1) for number in range(20)])
        index._writer.execute("DELETE FROM totals")
        (page,) = index._writer.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'objects'").fetchone()
        index.close()
        with closing(sqlite3.connect(tmp_path / "index.sqlite")) as other, suppress(sqlite3.Error):
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with (tmp_path / "index.sqlite").open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 100)
        assert started(tmp_path).totals() is None


class ScrubTests:
    """A scrub verifies the totals."""

    @pytest.mark.parametrize("column", ["objects", "bytes"])
    def test_wrong_totals(self, tmp_path: Path, column: str) -> None:
        """Totals that do not agree with the objects are damage of the index."""
        folder = OpenFolder("local", tmp_path)
        content = b"x"
        folder.writes.commit([Change("a", Entry(ObjectInfo("a", 1, "e", 1.5), content, crc32c(content)))])
        lines: list[str] = []
        Scrub(tmp_path, lines.append).run()
        assert lines == []
        folder.index._writer.execute(f"UPDATE totals SET {column} = 5")
        Scrub(tmp_path, lines.append).run()
        wrong = Totals(**{"objects": 1, "bytes": 1, column: 5})
        assert lines == [f"the index: its totals are {wrong}, but it has 1 objects with 1 bytes"]
        folder.close()
