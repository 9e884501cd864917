"""A log file that several processes append to, and that is renamed, full, or on a disk that hangs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EACCES, EDQUOT, ENOSPC
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.task import Clock

from tests.buckets.local.embedded import logged
from twisted_storaged.errors import StartError
from twisted_storaged.runtime.appended_file import QUEUED, TELL_INTERVAL, AppendedFile, check_appended
from twisted_storaged.runtime.concurrency import Threads

FULL = OSError(ENOSPC, "No space left on device")


class HeldThreads:
    """A thread that works when the test says so, or, by default, at once."""

    def __init__(self) -> None:
        self.hangs = False
        self._calls: list[Callable[[], object]] = []

    def start(self) -> None: ...

    def run(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        outcome: Deferred[Any] = Deferred()
        self._calls.append(lambda: execute(call, *args).chainDeferred(outcome))
        if not self.hangs:
            self.work()
        return outcome

    def work(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def stop(self) -> Deferred[None]:
        self.work()
        return succeed(None)


class Disk:
    """`os.write` on a disk that may be full.

    Attributes:
        room: how many bytes can be written.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 30
        really_write = os.write

        def write(file: int, data: bytes) -> int:
            if not self.room:
                raise FULL
            taken = data[: self.room]
            self.room -= len(taken)
            return really_write(file, taken)

        monkeypatch.setattr(os, "write", write)


class Log:
    """A file in a folder, and what appends to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "access.log"
        self.clock = Clock()
        self.threads = HeldThreads()
        self.file = AppendedFile(self.path, self.clock, cast(Threads, self.threads))

    def lines(self) -> list[str]:
        return self.path.read_text("utf-8").splitlines()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    log.file.start()
    yield log
    log.file.stop()


class WriteTests:
    """What is written where."""

    def test_appends(self, log: Log) -> None:
        """Lines are appended to what is there."""
        log.path.write_text("old\n")
        log.file.write("a\nb\n")
        log.file.write("é\udc80\n")
        assert log.lines() == ["old", "a", "b", "é?"]
        assert log.file.dropped == 0

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o077, 0o600)])
    def test_mode(self, tmp_path: Path, umask: int, mode: int) -> None:
        """A new file can be read by its group at most; one that exists keeps its mode."""
        kept = os.umask(umask)
        try:
            check_appended(tmp_path / "log")
        finally:
            os.umask(kept)
        assert (tmp_path / "log").stat().st_mode & 0o777 == mode
        (tmp_path / "log").chmod(0o644)
        check_appended(tmp_path / "log")
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o644

    def test_a_batch_is_one_write(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lines of several processes do not mix."""
        written: list[bytes] = []

        def write(_: int, data: bytes) -> int:
            written.append(data)
            return len(data)

        monkeypatch.setattr(os, "write", write)
        lines = "x" * 1000 + "\n"
        log.file.write(lines * 500)
        assert written == [lines.encode() * 500]

    def test_another_process_writes(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """While one has written a part of its batch, another waits: that part is no line that was cut."""
        other = AppendedFile(log.path, Clock(), cast(Threads, HeldThreads()))
        waits = Thread(target=other.write, args=("b\n",))
        really_write = os.write

        def write(file: int, data: bytes) -> int:
            count = really_write(file, data[:1])
            if data == b"aa\n":
                waits.start()
                waits.join(0.1)
            return count

        monkeypatch.setattr(os, "write", write)
        log.file.write("aa\n")
        waits.join()
        other.stop()
        assert log.lines() == ["aa", "b"]

    @pytest.mark.parametrize("begun", [True, False])
    def test_renamed(self, log: Log, begun: bool) -> None:
        """A file that was renamed is not written to any more; the new one may be there already."""
        log.file.write("a\n")
        renamed = log.path.rename(log.path.with_suffix(".1"))
        if begun:
            log.path.touch(0o600)
        log.file.write("b\n")
        assert (renamed.read_text(), log.path.read_text()) == ("a\n", "b\n")
        open_files = len(os.listdir("/proc/self/fd"))
        log.path.unlink()
        log.file.write("c\n")
        assert log.path.read_text() == "c\n"
        assert len(os.listdir("/proc/self/fd")) == open_files

    def test_stop(self, log: Log) -> None:
        """What waits is written, and the file is closed."""
        open_files = len(os.listdir("/proc/self/fd"))
        log.threads.hangs = True
        log.file.write("a\n")
        log.file.stop()
        assert log.lines() == ["a"]
        assert len(os.listdir("/proc/self/fd")) == open_files


class StartTests:
    """Files that cannot be opened."""

    def test_what_the_operator_must_change(self, tmp_path: Path) -> None:
        """A folder that is not there, or a folder in place of a file, is a StartError that names it."""
        with pytest.raises(StartError, match="/none/log: cannot be opened as the access log: No such file"):
            AppendedFile(tmp_path / "none" / "log", Clock()).start()
        with pytest.raises(StartError, match="Is a directory"):
            AppendedFile(tmp_path, Clock()).start()

    @pytest.mark.parametrize("number", [ENOSPC, EDQUOT])
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        """A daemon starts although its log has no room; it has lines when there is."""
        log = Log(tmp_path)

        def refuse(*_: object) -> int:
            raise OSError(number, "full")

        monkeypatch.setattr(os, "open", refuse)
        log.file.start()
        log.file.write("a\n")
        monkeypatch.undo()
        log.file.write("b\n")
        assert (log.lines(), log.file.dropped) == (["b"], 1)
        log.file.stop()


class LostTests:
    """Lines that cannot be written."""

    def test_a_full_disk(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lines are counted that are not there as a whole; when there is room again, the cut one is ended."""
        disk = Disk(monkeypatch)
        disk.room = 5
        with logged() as errors:
            log.file.write("one\ntwo\nthree\n")
            assert (log.path.read_bytes(), log.file.dropped) == (b"one\nt", 2)
            log.file.write("four\n")
            assert log.file.dropped == 3
            disk.room = 1 << 30
            log.file.write("five\nsix\n")
        assert log.lines() == ["one", "t", "five", "six"]
        assert log.file.dropped == 3
        assert errors == [f"lost lines of {log.path}: 2 (No space left on device)"]

    def test_is_told_once_a_minute(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """The log of the daemon says how many lines are lost and why, also when that is over."""
        disk = Disk(monkeypatch)
        disk.room = 0
        with logged() as errors:
            for _ in range(3):
                log.file.write("a\n")
                log.clock.advance(TELL_INTERVAL / 2)
            disk.room = 1 << 30
            log.file.write("b\n")
            log.clock.advance(TELL_INTERVAL / 2)
            log.file.write("c\n")
            log.clock.advance(TELL_INTERVAL)
            log.file.write("d\n")
        told = [f"lost lines of {log.path}: {n} (No space left on device)" for n in (1, 2)]
        assert errors == told
        assert log.lines() == ["b", "c", "d"]

    def test_a_long_batch(self, log: Log) -> None:
        """A batch that is longer than what may wait is written, and the next one too, as the disk answers."""
        for _ in range(2):
            log.file.write("x" * QUEUED + "\n")
        assert (len(log.lines()), log.file.dropped) == (2, 0)

    def test_a_disk_that_hangs(self, log: Log) -> None:
        """What waits is bounded; the rest is lost, and whatever calls goes on. Later, what waited is written."""
        log.threads.hangs = True
        lines = "x" * 99_999 + "\n"
        count = 2 * QUEUED // len(lines)
        with logged() as errors:
            for _ in range(count):
                log.file.write(lines)
        kept = QUEUED // len(lines)
        assert log.file.dropped == count - kept
        assert errors == [f"lost lines of {log.path}: 1 (the disk does not answer)"]
        log.threads.hangs = False
        log.threads.work()
        log.file.write("after\n")
        assert log.path.stat().st_size == kept * len(lines) + len("after\n")

    def test_a_folder_that_cannot_be_written_to(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that was renamed, and cannot be begun anew, gets no lines: they are counted."""
        log.file.write("a\n")
        renamed = log.path.rename(log.path.with_suffix(".1"))

        def refuse(*_: object) -> int:
            raise OSError(EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        with logged() as errors:
            log.file.write("b\n")
        assert errors == [f"lost lines of {log.path}: 1 (Permission denied)"]
        monkeypatch.undo()
        log.file.write("c\n")
        assert (renamed.read_text(), log.path.read_text(), log.file.dropped) == ("a\n", "c\n", 1)
