"""Logging that waits for no reader and no disk space; and of several processes to the log of one.

A worker writes its events to a pipe as JSON, and the supervisor logs them again.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from threading import RLock
from typing import TypeAlias

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsJSON,
    eventFromJSON,
    globalLogBeginner,
    globalLogPublisher,
)
from zope.interface import implementer

from twisted_storaged.runtime.log_format import level_of, message_of, with_priority

#: Bytes that are kept while nobody reads, or the disk is full; what is logged beyond that is lost.
KEPT = 1 << 20
#: Bytes from which on what is kept is another piece.
_PIECE = 1 << 16

#: Writes some of the bytes, and returns how many these were. It may raise OSError.
Write: TypeAlias = Callable[[memoryview], int]

_log = Logger()


@implementer(ILogObserver)
class LogWriter:
    """Writes events to a log which may be full, or whose reader may hang: it keeps some lines, and drops the rest.

    Attributes:
        dropped: how many lines were dropped. An event of several lines counts as one, unless it is of the access log.
    """

    def __init__(self, format_event: Callable[[LogEvent], str]) -> None:
        """`format_event` returns the lines of an event; empty if it is not to be logged."""
        self.dropped = 0
        self._format_event = format_event
        # Nowhere, until it is opened.
        self._write: Write = len
        self._has_priorities = False
        self._told = 0
        self._left: deque[bytes] = deque()
        #: Bytes of the first piece that were written.
        self._done = 0
        self._size = 0
        # Other threads log as well; and so may Python within a write, when it collects garbage.
        self._lock = RLock()
        self._is_writing = False

    def open(self, write: Write, *, has_priorities: bool = False) -> LogWriter:
        """Write by `write` from now on, and each line with its priority if there is a journal to read it."""
        self._write = write
        self._has_priorities = has_priorities
        return self

    def __call__(self, event: LogEvent) -> None:
        """Write an event, or keep it for the next write."""
        data = self._encoded(event)
        if not data:
            return
        with self._lock:
            if self._size >= KEPT:
                self.dropped += event["lines"].count("\n") + 1 if "lines" in event else 1
            else:
                if self.dropped > self._told:
                    self._keep(self._encoded(_missing(self.dropped - self._told)))
                    self._told = self.dropped
                self._keep(data)
            if not self._is_writing:
                self._is_writing = True
                try:
                    self._write_left()
                except OSError:
                    # Full, or the reader is gone.
                    pass
                finally:
                    self._is_writing = False

    def _keep(self, data: bytes) -> None:
        left = self._left
        # Few pieces, so that they are soon written; but none changes that is being written.
        if left and len(left[-1]) < _PIECE and not self._is_writing:
            left[-1] += data
        else:
            left.append(data)
        self._size += len(data)

    def _write_left(self) -> None:
        while self._left:
            # Not a copy of what is left: a batch of the access log may be written by thousands of writes.
            piece = memoryview(self._left[0])[self._done :]
            count = self._write(piece)
            self._size -= count
            if count < len(piece):
                self._done += count
            else:
                self._done = 0
                self._left.popleft()

    def _encoded(self, event: LogEvent) -> bytes:
        lines = self._format_event(event)
        if lines and self._has_priorities:
            lines = with_priority(lines, level_of(event))
        return lines.encode("utf-8", "replace")


def _missing(count: int) -> LogEvent:
    return {
        "log_format": "{n} lines are missing here: the log was full, or not read",
        "log_level": LogLevel.warn,
        "log_namespace": __name__,
        "log_time": time.time(),
        "n": count,
    }


def open_standard_output(log: LogWriter, environ: Mapping[str, str]) -> LogWriter:
    """Let a log go to the standard output; with priorities if that is the journal of systemd."""
    try:
        descriptor = sys.stdout.fileno()
    # It is not a file where it was replaced.
    except (OSError, ValueError, AttributeError):
        return log.open(_replaced_output)
    status = os.fstat(descriptor)
    # See systemd.exec(5).
    is_journal = environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return log.open(_writing_to(descriptor), has_priorities=is_journal)


def _replaced_output(data: memoryview) -> int:
    sys.stdout.write(str(data, "utf-8", "replace"))
    return len(data)


def _writing_to(descriptor: int) -> Write:
    """Return a function that writes to a descriptor, and does not wait for the reader if that is a pipe or a socket."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        connected = socket.socket(fileno=os.dup(descriptor))
        return lambda data: connected.send(data, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode):
        return _writing_to_pipe(descriptor)
    return partial(os.write, descriptor)


def _writing_to_pipe(descriptor: int) -> Write:
    # A batch of the access log has room, so that it does not wait for the next event.
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, KEPT)
    try:
        # Opened anew, as other processes may share the open pipe, and do not expect that writing fails.
        descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # The pipe of another user, as in a container. If it is ready, it has room for a page.
        ready = select.poll()
        ready.register(descriptor, select.POLLOUT)

        def write(data: memoryview) -> int:
            if not ready.poll(0):
                raise BlockingIOError
            return os.write(descriptor, data[: select.PIPE_BUF])

        return write
    return partial(os.write, descriptor)


def begin_logging(descriptor: int) -> LogWriter:
    """Log to a pipe, whose reader passes the lines to `log_again`."""
    log = LogWriter(_for_log_again).open(_writing_to(descriptor))
    globalLogBeginner.beginLoggingTo([log], redirectStandardIO=False)
    return log


def _for_log_again(event: LogEvent) -> str:
    message, traceback = message_of(event)
    if traceback:
        # JSON would have the traceback without the error's text.
        rest = {name: value for name, value in event.items() if name != "log_failure"}
        event = {**rest, "text": message, "traceback": traceback, "log_format": "{text}\n{traceback}"}
    return eventAsJSON(event) + "\n"


def log_again(lines: Iterable[bytes], source: str) -> None:
    """Log the events of another process; lines that are none, such as a traceback of Python's, with their `source`."""
    for line in lines:
        text = line.decode("utf-8", "replace")
        try:
            event = eventFromJSON(text) if line.startswith(b"{") else None
        except ValueError:
            event = None
        if event is not None:
            globalLogPublisher(event)
        elif line:
            _log.info("{source}: {line}", source=source, line=text)
