"""The log of one process in that of another, over a pipe."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from twisted.logger import LogLevel, eventAsJSON, globalLogPublisher, textFileLogObserver

from tests.buckets.local.embedded import logged
from tests.daemon import ROOT
from twisted_storaged.runtime.log_pipe import KEPT, LogPipe, log_again

LINE = "x" * 99 + "\n"


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[[], bytes], int]]:
    """A function that reads what there is, and the descriptor to write to."""
    if request.param == "pipe":
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        yield lambda: os.read(reading, 10 * KEPT), writing
        os.close(reading)
        os.close(writing)
    else:
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            yield lambda: one.recv(10 * KEPT), other.fileno()


def rest(read: Callable[[], bytes]) -> bytes:
    """Read until nothing is left."""
    data = b""
    while True:
        try:
            data += read()
        except BlockingIOError:
            return data


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

    def test_a_reader_that_hangs(self, ends: tuple[Callable[[], bytes], int]) -> None:
        """Nothing waits for it. It gets whole lines later, without those beyond the limit, and how many these are."""
        read, writing = ends
        stream = LogPipe(writing)
        written = 3 * KEPT // len(LINE)
        for _ in range(written):
            stream.write(LINE)
        data = rest(read)
        for _ in range(2 * KEPT // 4096):
            # What is kept follows when more is written.
            stream.write("more\n")
            data += rest(read)
        lines = data.decode().splitlines()
        (missing,) = (line for line in lines if "missing" in line)
        assert missing.endswith(" events are missing here, as the log was not read")
        assert lines.count(LINE.strip()) + int(missing.split()[0]) >= written
        assert {line for line in lines if "missing" not in line} == {LINE.strip(), "more"}
        assert os.get_blocking(writing)

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
