"""The upload journal: what a killed process leaves in it, and which entries are orphaned."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from twisted.logger import capturedLogs, formatEvent

from twisted_storaged.buckets.s3.journal import PROBE, Journal, JournalEntry
from twisted_storaged.errors import StartError


def opened(state: Path) -> Journal:
    journal = Journal(state)
    journal.open()
    return journal


def crash(journal: Journal) -> None:
    """Release the lock of a run, as the kernel does for a killed process, and nothing else."""
    assert journal._lock is not None
    os.close(journal._lock)
    journal._lock = None


def left(state: Path) -> list[tuple[str, str, str | None]]:
    return [(begun.bucket, begun.key, begun.upload_id) for begun in opened(state).orphaned("b")]


def garbled(path: Path, line: int, to: bytes) -> None:
    """Replace a line of an entry, counted from 0, by something else."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = to
    path.write_bytes(b"".join(lines))


class JournalTests:
    """Entries of one process after the other."""

    def test_is_closed_to_others(self, tmp_path: Path) -> None:
        """The journal and a new state folder are readable only by the daemon's user, whatever the umask."""
        umask = os.umask(0)
        try:
            journal = Journal(tmp_path / "state")
            journal.open()
            journal.begin("bucket", "key")
        finally:
            os.umask(umask)
        made = [tmp_path / "state", *(tmp_path / "state").rglob("*")]
        assert len(made) > 3
        assert [path for path in made if path.stat().st_mode & 0o077] == []
        journal.close()

    def test_a_crash_leaves_what_had_not_ended(self, tmp_path: Path) -> None:
        """The uploads in progress at a crash are orphaned, with their ids if known; those that ended are not."""
        journal = opened(tmp_path)
        journal.begin("b", "before it was created")
        journal.begin("b", "é\n").created("id-1")
        ended = journal.begin("b", "ended")
        ended.created("id-2")
        ended.ended()
        crash(journal)
        assert sorted(left(tmp_path)) == [("b", "before it was created", None), ("b", "é\n", "id-1")]

    def test_it_is_there_until_it_is_ended(self, tmp_path: Path) -> None:
        """An orphaned entry is returned until it is ended."""
        journal = opened(tmp_path)
        journal.begin("b", "k").created("id")
        crash(journal)
        assert left(tmp_path) == left(tmp_path) == [("b", "k", "id")]
        for begun in opened(tmp_path).orphaned("b"):
            begun.ended()
        assert left(tmp_path) == []

    def test_what_a_living_process_does_is_its_own(self, tmp_path: Path) -> None:
        """The entries of a living process are not orphaned."""
        journal = opened(tmp_path)
        journal.begin("b", "k").created("id")
        assert left(tmp_path) == []
        assert list(journal.orphaned("b")) == []

    def test_what_it_gives_up_is_left_behind_too(self, tmp_path: Path) -> None:
        """An entry of this process that is deferred to the reaper is orphaned until it is ended."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        begun.created("id")
        journal.defer_to_reaper(begun)
        for _ in range(2):
            assert [found.upload_id for found in journal.orphaned("b")] == ["id"]
        begun.ended()
        assert list(journal.orphaned("b")) == []

    def test_each_bucket_has_its_own(self, tmp_path: Path) -> None:
        """The entries of another bucket are not orphaned in this one, but their ids are known."""
        journal = opened(tmp_path)
        journal.begin("another", "k").created("id")
        crash(journal)
        assert left(tmp_path) == []
        assert opened(tmp_path).known("b", "k") == {"id"}

    def test_when_it_was_begun_is_kept(self, tmp_path: Path) -> None:
        """The time at which an upload was begun is kept."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        crash(journal)
        (found,) = opened(tmp_path).orphaned("b")
        assert found == JournalEntry(begun.path, "b", "k", begun.began)

    @pytest.mark.parametrize(("keep", "expected"), [(10, []), (-2, [("b", "k", None)])])
    def test_a_torn_line_counts_for_nothing(self, tmp_path: Path, keep: int, expected: list[object]) -> None:
        """An entry with an incomplete first line is no upload; with an incomplete second, it has no id."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        if keep < 0:
            begun.created("id")
        begun.path.write_bytes(begun.path.read_bytes()[:keep])
        crash(journal)
        assert left(tmp_path) == expected

    def test_a_run_leaves_no_folder(self, tmp_path: Path) -> None:
        """The folder of a run is removed when it has ended, or has crashed and has no entries any more."""
        journal = opened(tmp_path)
        journal.begin("b", "k").ended()
        journal.close()
        crashed = opened(tmp_path)
        crashed.begin("b", "k")
        crash(crashed)
        last = opened(tmp_path)
        for begun in last.orphaned("b"):
            begun.ended()
        last.orphaned("b")
        last.close()
        assert list((tmp_path / "uploads").iterdir()) == []

    def test_a_probe_is_kept_too(self, tmp_path: Path) -> None:
        """A probe that was in progress at a crash is orphaned, and distinct from an upload."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k", PROBE)
        crash(journal)
        assert opened(tmp_path).orphaned("b") == [begun]

    def test_a_folder_that_cannot_be_used(self, tmp_path: Path) -> None:
        """A folder that cannot be used is an error at the start that names it."""
        (tmp_path / "uploads").write_text("a file")
        with pytest.raises(StartError, match="uploads"):
            Journal(tmp_path).open()


class KnownTests:
    """The uploads that are known to belong to a process."""

    def test_a_living_process_may_be_about_to_note_it(self, tmp_path: Path) -> None:
        """No upload of a key can be decided on while a living process has an entry of it without an id."""
        journal, other = opened(tmp_path), opened(tmp_path)
        begun = other.begin("b", "k")
        assert (journal.known("b", "k"), other.known("b", "k")) == (None, None)
        assert (journal.known("b", "another"), journal.known("another", "k")) == (set(), set())
        begun.created("id")
        assert (journal.known("b", "k"), other.known("b", "k")) == ({"id"}, {"id"})

    def test_what_is_over_is_nobodys(self, tmp_path: Path) -> None:
        """An entry without an id blocks nothing if its process has ended or has deferred it to the reaper."""
        journal, other = opened(tmp_path), opened(tmp_path)
        other.begin("b", "k")
        crash(other)
        journal.defer_to_reaper(journal.begin("b", "k"))
        assert journal.known("b", "k") == set()

    def test_an_entry_of_a_living_process_that_cannot_be_read(self, tmp_path: Path) -> None:
        """An unreadable entry of a living process may be of any key."""
        journal, other = opened(tmp_path), opened(tmp_path)
        garbled(other.begin("b", "k").path, 0, b"!\n")
        assert journal.known("b", "another") is None
        crash(other)
        assert journal.known("b", "another") == set()

    def test_a_run_without_its_lock(self, tmp_path: Path) -> None:
        """A run without a lock file counts as that of a living process, and gets no new lock."""
        journal, other = opened(tmp_path), opened(tmp_path)
        begun = other.begin("b", "k")
        (begun.path.parent / "lock").unlink()
        for _ in range(2):
            assert (journal.known("b", "k"), journal.orphaned("b")) == (None, [])
        assert begun.path.exists()
        begun.ended()
        assert journal.orphaned("b") == []
        assert not begun.path.parent.exists()


class DamageTests:
    """Files that a full or failing disk has left."""

    @pytest.mark.parametrize(
        "line",
        [
            b"not JSON\n",
            b"\xff\n",
            b"\0" * 100 + b"\n",
            b"[]\n",
            b"7\n",
            b"{}\n",
            b'{"bucket": "b", "key": "k"}\n',
            b'{"bucket": "b", "key": 7, "began": 1.5}\n',
            b"[" * 100_000 + b"\n",
        ],
        ids=lambda line: repr(line[:20]),
    )
    def test_no_entry_is_set_aside(self, tmp_path: Path, line: bytes) -> None:
        """A file that is not an entry is moved away and logged, and the others are processed."""
        journal = opened(tmp_path)
        entries = [journal.begin("b", "k") for _ in range(3)]
        path = sorted(begun.path for begun in entries)[1]
        garbled(path, 0, line)
        crash(journal)
        with capturedLogs() as logs:
            assert left(tmp_path) == [("b", "k", None)] * 2
        (aside,) = (tmp_path / "uploads-damaged").iterdir()
        assert aside.read_bytes() == line
        (logged,) = [formatEvent(event) for event in logs]
        assert str(path) in str(logged)
        assert str(aside) in str(logged)
        with capturedLogs() as logs:
            assert len(left(tmp_path)) == 2
        assert logs == []

    def test_one_that_was_given_up(self, tmp_path: Path) -> None:
        """A damaged entry that was deferred to the reaper is moved away, too."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        garbled(begun.path, 0, b"!\n")
        journal.defer_to_reaper(begun)
        assert journal.orphaned("b") == journal.orphaned("b") == []
        assert len(list((tmp_path / "uploads-damaged").iterdir())) == 1

    def test_one_that_cannot_be_read_stays(self, tmp_path: Path) -> None:
        """An entry that cannot be read stays for another time, and the others are processed."""
        journal = opened(tmp_path)
        path = sorted(journal.begin("b", "k").path for _ in range(3))[1]
        path.unlink()
        path.mkdir()
        crash(journal)
        assert len(left(tmp_path)) == 2
        assert path.is_dir()

    @pytest.mark.parametrize("line", [b"!\n", b"{}\n", b'{"upload_id": 7}\n', b"[]\n"])
    def test_an_id_that_is_none(self, tmp_path: Path, line: bytes) -> None:
        """A second line without a valid id leaves the id of an entry unknown."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        begun.created("id")
        garbled(begun.path, 1, line)
        crash(journal)
        assert left(tmp_path) == [("b", "k", None)]


class WritesTests:
    """Entries are complete, or not there."""

    def test_writes_that_are_short(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A write that is cut short is continued."""
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
        journal = opened(tmp_path)
        journal.begin("b", "k").created("id")
        crash(journal)
        assert left(tmp_path) == [("b", "k", "id")]

    @pytest.mark.parametrize("failing", ["write", "fsync"])
    def test_that_fail_leave_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
        """A write that fails leaves neither a new entry nor half a line in an old one."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        before, call = begun.path.read_bytes(), getattr(os, failing)
        calls = iter([call, None] if failing == "write" else [None])

        def fails(descriptor: int, *data: bytes) -> int:
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, "no space")
            return int(call(descriptor, *(one[:3] for one in data)))

        monkeypatch.setattr(os, failing, fails)
        with pytest.raises(OSError, match="no space"):
            begun.created("id")
        assert begun.path.read_bytes() == before
        with pytest.raises(OSError, match="no space"):
            journal.begin("b", "another")
        assert [path for path in begun.path.parent.iterdir() if path.name != "lock"] == [begun.path]
