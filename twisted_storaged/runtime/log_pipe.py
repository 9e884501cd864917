"""Logging of several processes to the log of one: as JSON, a line for each event, which that one logs again."""

from __future__ import annotations

import os
from collections.abc import Iterable
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

#: Bytes that are kept while the other process does not read; what is logged beyond that is lost.
KEPT = 1 << 20

_log = Logger()


class LogPipe(TextIOBase):
    """A text stream to a pipe that never waits, as its reader may hang: it keeps some, and drops the rest."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._left = b""

    def write(self, text: str) -> int:
        """Write a line, or keep it for the next write."""
        if len(self._left) < KEPT:
            self._left += text.encode("utf-8", "replace")
        try:
            while self._left:
                self._left = self._left[os.write(self._descriptor, self._left) :]
        except OSError:
            # Full, or the reader is gone.
            pass
        return len(text)


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
