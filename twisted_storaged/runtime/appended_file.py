"""A log file of several processes, which logrotate(8) may rename: neither a full disk nor one that hangs stops them."""

from __future__ import annotations

import os
from errno import EDQUOT, ENOSPC
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_storaged.errors import StartError
from twisted_storaged.runtime.concurrency import Threads

#: Bytes of batches that may wait for the disk, if they are several; what comes beyond that is lost.
QUEUED = 8 << 20
#: Seconds between two events about lines that are lost.
TELL_INTERVAL = 60.0

_log = Logger()


class AppendedFile:
    """A file to which a thread of its own appends batches of lines.

    Each batch is one write, under a lock, so that those of several processes do not mix. Before that, the file is
    opened anew if its path names no file any more, or another one. What cannot be written is lost, up to a whole line.

    Attributes:
        dropped: how many lines were lost.
    """

    def __init__(self, path: Path, reactor: Any, threads: Threads | None = None) -> None:
        self.dropped = 0
        self._path = path
        self._reactor = reactor
        self._threads = threads or Threads(reactor, 1, "access log")
        self._queued = 0
        #: Used by the thread only, until that has ended.
        self._file: int | None = None
        self._why = ""
        self._told = 0
        self._told_at = -TELL_INTERVAL

    def start(self) -> None:
        """Begin to write, if the file can be opened. A full disk is no error. Raises StartError."""
        check_appended(self._path)
        self._threads.start()

    def stop(self) -> Deferred[None]:
        """Close the file; fires when all that it was given is written or lost."""
        return self._threads.stop().addCallback(lambda _: self._close())

    def write(self, lines: str) -> None:
        """Append lines, each of which ends with a line feed."""
        data = lines.encode("utf-8", "replace")
        # However long it is, one batch is no sign of a disk that hangs.
        if self._queued and self._queued + len(data) > QUEUED:
            self._lose(data.count(b"\n"), "the disk does not answer")
            return

        def appended(outcome: tuple[int, str]) -> None:
            self._queued -= len(data)
            self._lose(*outcome)

        self._queued += len(data)
        self._threads.run(self._append, data).addCallback(appended)

    def _lose(self, count: int, why: str) -> None:
        self.dropped += count
        self._why = why or self._why
        lost = self.dropped - self._told
        now = self._reactor.seconds()
        if lost and now - self._told_at >= TELL_INTERVAL:
            self._told, self._told_at = self.dropped, now
            _log.error("lost lines of {path}: {n} ({why})", n=lost, path=self._path, why=self._why)

    def _append(self, data: bytes) -> tuple[int, str]:
        """Append lines, in the thread; returns how many are lost, and why."""
        written = 0
        try:
            file = self._follow()
            # While another process writes, its last line looks as if it was cut.
            flock(file, LOCK_EX)
            try:
                _end_cut_line(file)
                while written < len(data):
                    written += os.write(file, data[written:])
            finally:
                flock(file, LOCK_UN)
        except OSError as error:
            return data.count(b"\n", written), str(error.strerror)
        return 0, ""

    def _follow(self) -> int:
        """Return the file that the path names. Raises OSError."""
        if self._file is not None and not self._is_current(self._file):
            self._close()
        if self._file is None:
            self._file = _open(self._path)
        return self._file

    def _is_current(self, file: int) -> bool:
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(file))

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def check_appended(path: Path) -> None:
    """Check that a file can be appended to; if there is none, it is created. A full disk is no error.

    Raises:
        StartError: it cannot.
    """
    try:
        os.close(_open(path))
    except OSError as error:
        if error.errno not in {ENOSPC, EDQUOT}:
            raise StartError(f"{path}: cannot be opened as the access log: {error.strerror}") from error


def _end_cut_line(file: int) -> None:
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")


def _open(path: Path) -> int:
    # Readable, to see how it ends. A new file is for its user, and to read for its group, less the umask.
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
