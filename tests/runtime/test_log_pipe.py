"""The log of one process in that of another, over a pipe."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from twisted.logger import LogLevel, eventAsJSON, globalLogPublisher, textFileLogObserver

from tests.buckets.local.embedded import logged
from tests.daemon import ROOT
from twisted_storaged.runtime.log_pipe import KEPT, LogPipe, log_again


class LogPipeTests:
    """The stream that is written to."""

    def test_lines(self) -> None:
        """Lines arrive as they were written; what cannot be encoded is replaced."""
        reading, writing = os.pipe()
        pipe = LogPipe(writing)
        assert pipe.write("hello\n") == 6
        pipe.write("\udc80é\n")
        assert os.read(reading, 100) == b"hello\n?\xc3\xa9\n"
        os.close(reading)
        os.close(writing)

    def test_a_reader_that_hangs(self) -> None:
        """It never waits: some lines are kept, whole, until the reader goes on, and the rest is dropped."""
        reading, writing = os.pipe()
        pipe = LogPipe(writing)
        line = "x" * 999 + "\n"
        for _ in range(3 * KEPT // 1000):
            pipe.write(line)
        got = b""
        os.set_blocking(reading, False)
        for _ in range(3 * KEPT // 1000):
            pipe.write("")
            try:
                got += os.read(reading, 1 << 20)
            except BlockingIOError:
                break
        assert KEPT <= len(got) < 2 * KEPT
        assert set(got.splitlines(keepends=True)) == {line.encode()}
        os.close(reading)
        os.close(writing)

    def test_a_reader_that_is_gone(self) -> None:
        """Nobody reads any more: that is no error."""
        reading, writing = os.pipe()
        os.close(reading)
        LogPipe(writing).write("hello\n")
        os.close(writing)


class LogAgainTests:
    """The reader's log."""

    def test_events(self) -> None:
        """An event has the level, the format and the values that it had."""
        line = eventAsJSON({"log_format": "{what} happened", "what": "it", "log_level": LogLevel.warn, "log_time": 1.5})
        with logged(LogLevel.warn) as lines:
            log_again([line.encode()], "worker 7")
        assert lines == ["it happened"]

    @pytest.mark.parametrize("line", ["Traceback (most recent call last):", "{", "{}x", "[1]", "{not json", "é"])
    def test_other_lines(self, line: str) -> None:
        """What is no event is logged with its source."""
        with logged(LogLevel.info) as lines:
            log_again([line.encode(), b""], "worker 7")
        assert lines == [f"worker 7: {line}"]

    def test_no_text(self) -> None:
        """Bytes that are no text are replaced."""
        with logged(LogLevel.info) as lines:
            log_again([b"\xff"], "worker 7")
        assert lines == ["worker 7: \N{REPLACEMENT CHARACTER}"]


LOGS = """
import sys
from twisted.logger import Logger
from twisted_storaged.runtime.log_pipe import begin_logging
begin_logging(1)
log = Logger()
log.warn("{what} happened", what="it\\nor not")
try:
    1 / 0
except ZeroDivisionError:
    log.failure("unexpected")
"""


class BeginLoggingTests:
    """A process that logs to another one."""

    def test_everything_arrives(self) -> None:
        """Events with line breaks, and failures with their tracebacks, are as they would have been there."""
        output = subprocess.run([sys.executable, "-c", LOGS], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60)
        stream = io.StringIO()
        observer = textFileLogObserver(stream)
        globalLogPublisher.addObserver(observer)
        try:
            log_again(output.stdout.splitlines(), "worker 7")
        finally:
            globalLogPublisher.removeObserver(observer)
        text = stream.getvalue()
        assert "#warn] it\n\tor not happened" in text
        assert "#critical] unexpected" in text
        assert "\n\tTraceback (most recent call last):\n" in text
        assert "ZeroDivisionError: division by zero" in text
        assert "worker 7" not in text
