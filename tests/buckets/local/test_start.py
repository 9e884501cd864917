"""Opening a folder as one of several processes, and the leftovers of those that have ended."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.buckets.local.embedded import contents
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change
from twisted_storaged.buckets.local.start import OpenFolder, prepare
from twisted_storaged.buckets.local.sweep import sweep_abandoned
from twisted_storaged.buckets.local.writer import CommitLock
from twisted_storaged.errors import DamagedObject, StartError, WritesSuspended
from twisted_storaged.model import ObjectInfo


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    """The descriptor of a prepared folder's lock."""
    descriptor = prepare("local", tmp_path)
    yield descriptor
    os.close(descriptor)


def join(path: Path, lock: int) -> OpenFolder:
    """Open a prepared folder."""
    return OpenFolder("local", path, os.dup(lock))


def upload(folder: OpenFolder) -> str:
    """Write a content, and do not commit it; returns its name."""
    content = folder.directory.create()
    content.seal()
    return content.name


def commit(folder: OpenFolder, key: str, name: str) -> None:
    folder.writes.commit([Change(key, Entry(ObjectInfo(key, 0, name, 1.5), None, 0))])


class PrepareTests:
    """What `prepare` leaves, and who may open it."""

    def test_the_last_process_closes_the_index(self, tmp_path: Path, lock: int) -> None:
        """`index.state` says that the index is open, and its log is there, until the last process closes it."""
        one, two = join(tmp_path, lock), join(tmp_path, lock)
        one.close()
        assert json.loads((tmp_path / "index.state").read_bytes())["is_open"]
        assert (tmp_path / "index.sqlite-wal").stat().st_size > 0
        two.close()
        assert not json.loads((tmp_path / "index.state").read_bytes())["is_open"]
        assert not (tmp_path / "index.sqlite-wal").exists()
        with pytest.raises(StartError, match="is not the index that this daemon has started with"):
            join(tmp_path, lock)

    def test_a_turn_that_does_not_end(self, tmp_path: Path, lock: int) -> None:
        """A process that cannot get a turn to close the index leaves it open: another one is there."""
        folder = join(tmp_path, lock)
        with open(tmp_path / "commit.lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            folder.close()
        assert json.loads((tmp_path / "index.state").read_bytes())["is_open"]
        assert (tmp_path / "index.sqlite-wal").stat().st_size > 0

    @pytest.mark.parametrize("name", ["index.sqlite-shm", "index.sqlite-wal", "commit.lock"])
    def test_a_file_that_is_removed(self, tmp_path: Path, lock: int, name: str) -> None:
        """No process commits after a file was removed by which it sees what others do."""
        folder = join(tmp_path, lock)
        (tmp_path / name).unlink()
        with pytest.raises(WritesSuspended, match=f"{name} was removed"):
            folder.writes.commit([])
        folder.close()

    def test_counts_one_start(self, tmp_path: Path, lock: int) -> None:
        """Processes that open the folder count no starts."""
        folders = [join(tmp_path, lock) for _ in range(3)]
        assert json.loads((tmp_path / "index.state").read_bytes())["starts"] == 1
        for folder in folders:
            folder.close()

    def test_a_folder_in_use(self, tmp_path: Path, lock: int) -> None:
        """A folder is not prepared while a process has its lock."""
        with pytest.raises(StartError, match="is in use by another storaged"):
            prepare("local", tmp_path)

    def test_a_lost_index_is_not_created(self, tmp_path: Path, lock: int) -> None:
        """A process creates no index in place of one that was lost."""
        (tmp_path / "index.sqlite").unlink()
        with pytest.raises(StartError, match="cannot be used: unable to open database file"):
            join(tmp_path, lock)
        assert not (tmp_path / "index.sqlite").exists()

    @pytest.mark.parametrize("change", [{"is_open": False}, {"generation": "another"}, {"starts": 2}])
    def test_another_index(self, tmp_path: Path, lock: int, change: dict[str, object]) -> None:
        """An index that was not prepared by this daemon is refused."""
        state = tmp_path / "index.state"
        state.write_text(json.dumps({**json.loads(state.read_text()), **change}))
        with pytest.raises(StartError, match=r"index.sqlite is not the index that this daemon has started with"):
            join(tmp_path, lock)

    def test_no_commit_is_under_way(self, tmp_path: Path) -> None:
        """After a kill in a commit, a start makes its outcome certain, so that the next commit need not."""
        for _ in range(2):
            os.close(prepare("local", tmp_path))
            with closing(CommitLock(tmp_path / "commit.lock")) as turns:
                assert not turns.is_unsettled
                turns.is_unsettled = True

    def test_a_lost_lock_of_commits(self, tmp_path: Path, lock: int) -> None:
        """If commit.lock was removed, no process writes: others might lock another file of that name."""
        folder = join(tmp_path, lock)
        (tmp_path / "commit.lock").unlink()
        with pytest.raises(WritesSuspended, match=r"commit.lock was removed"):
            folder.writes.commit([])
        folder.close()

    def test_closes_what_it_opened(self, tmp_path: Path, lock: int) -> None:
        """Opening and closing leave no descriptor open, and no folder of notes."""
        before, pending = os.listdir("/proc/self/fd"), os.listdir(tmp_path / "pending")
        join(tmp_path, lock).close()
        assert os.listdir("/proc/self/fd") == before
        assert os.listdir(tmp_path / "pending") == pending


class AbandonedTests:
    """Leftovers of processes that have ended."""

    def sweep(self, folder: OpenFolder) -> int:
        return sweep_abandoned(folder.directory, folder.index, folder.writes.check)

    def test_only_what_nobody_names(self, tmp_path: Path, lock: int) -> None:
        """Contents with a note of an ended process go, unless a key names them; others stay, also without a key."""
        ended, lives = join(tmp_path, lock), join(tmp_path, lock)
        leftover, committed = upload(ended), upload(ended)
        commit(ended, "a", committed)
        in_progress, without_a_note = upload(lives), upload(lives)
        lives.directory.drop_note(without_a_note)
        ended.close()
        assert self.sweep(lives) == 1
        assert contents(tmp_path) == {committed, in_progress, without_a_note}
        assert lives.directory.pending().keys() == {in_progress}
        assert leftover not in contents(tmp_path)
        lives.close()

    def test_replaced_files(self, tmp_path: Path, lock: int) -> None:
        """Files that an ended process has replaced go; their rows go with the next commit, and no others."""
        ended, lives = join(tmp_path, lock), join(tmp_path, lock)
        names = [upload(ended) for _ in range(3)]
        for name in names:
            commit(ended, "a", name)
            ended.directory.drop_note(name)
        ended.close()
        assert self.sweep(lives) == 2
        assert contents(tmp_path) == {names[2]}
        commit(lives, "a", upload(lives))
        assert lives.index.replaced() == {names[2]}
        lives.close()

    def test_nothing_while_the_log_is_unsettled(self, tmp_path: Path, lock: int) -> None:
        """Nothing goes while a commit of the ended process could come back."""
        ended, lives = join(tmp_path, lock), join(tmp_path, lock)
        name = upload(ended)
        ended.close()

        def fail() -> None:
            raise WritesSuspended("cannot be truncated", begun=False)

        with pytest.raises(WritesSuspended):
            sweep_abandoned(lives.directory, lives.index, fail)
        assert lives.directory.pending().keys() == {name} == contents(tmp_path)
        lives.close()

    def test_nothing_if_a_row_is_damaged(self, tmp_path: Path, lock: int) -> None:
        """Nothing goes if a damaged row could be the one that names it."""
        ended, lives = join(tmp_path, lock), join(tmp_path, lock)
        name = upload(ended)
        commit(ended, "a", name)
        ended.close()
        lives.index._writer.execute("UPDATE objects SET etag = ?", ("0" * 32,))
        with pytest.raises(DamagedObject):
            self.sweep(lives)
        assert contents(tmp_path) == {name}
        lives.close()
