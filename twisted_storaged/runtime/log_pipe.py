"""Logging that waits for no reader; and of several processes to the log of one, as JSON, which that one logs again."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from io import TextIOBase
from typing import TextIO, cast

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    eventFromJSON,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
    jsonFileLogObserver,
)
from zope.interface import provider

#: Bytes that are kept while nobody reads; what is logged beyond that is lost.
KEPT = 1 << 20

_log = Logger()


class LogPipe(TextIOBase):
    """A text stream that does not wait for the reader of a pipe or socket: it keeps some text, and drops the rest.

    Otherwise a reader that hangs would stop the daemon. Writing to a file or a terminal waits, as usual.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._write: Callable[[bytes], int] = partial(os.write, descriptor)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            connected = socket.socket(fileno=os.dup(descriptor))
            self._write = lambda data: connected.send(data, socket.MSG_DONTWAIT)
        elif stat.S_ISFIFO(mode):
            # Opened anew, as other processes may share the open pipe, and do not expect that writing fails. A pipe of
            # another user cannot be opened, and is written to as it is.
            with suppress(OSError):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._write = partial(os.write, os.open(f"/proc/self/fd/{descriptor}", flags))
        self._left = b""
        self._dropped = 0

    def write(self, text: str) -> int:
        """Write text, or keep it for the next write."""
        if len(self._left) >= KEPT:
            self._dropped += 1
        else:
            if self._dropped:
                self._left += f"{self._dropped} events are missing here, as the log was not read\n".encode()
                self._dropped = 0
            self._left += text.encode("utf-8", "replace")
        try:
            while self._left:
                self._left = self._left[self._write(self._left) :]
        except OSError:
            # Full, or the reader is gone.
            pass
        return len(text)


def standard_output() -> TextIO:
    """Return a stream to the standard output that does not wait for its reader."""
    try:
        return cast(TextIO, LogPipe(sys.stdout.fileno()))
    # It is not a file where it was replaced.
    except (OSError, ValueError, AttributeError):
        return sys.stdout


def begin_logging(descriptor: int) -> None:
    """Log to a pipe, whose reader passes the lines to `log_again`."""
    # Without the separator that it has by default: a line is enough of one.
    write = jsonFileLogObserver(cast(TextIO, LogPipe(descriptor)), "")

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            # JSON would have the traceback without the error's text.
            rest = {name: value for name, value in event.items() if name != "log_failure"}
            texts = {"text": formatEvent(event), "traceback": failure.getTraceback()}
            event = {**rest, **texts, "log_format": "{text}\n{traceback}"}
        write(event)

    globalLogBeginner.beginLoggingTo([observe], redirectStandardIO=False)


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
