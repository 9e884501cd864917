"""Logs that are full, or not read; and the log of one process in that of another, over a pipe."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import ENOSPC
from threading import Thread

import pytest
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    eventAsJSON,
    formatEvent,
    globalLogPublisher,
    textFileLogObserver,
)

from tests.buckets.local.embedded import logged
from tests.daemon import ROOT
from twisted_storaged.runtime.log_format import as_json, as_text
from twisted_storaged.runtime.log_pipe import KEPT, LogWriter, log_again, open_standard_output

LINE = "x" * 999


@contextmanager
def redirected(descriptor: int) -> Iterator[None]:
    """Let the standard output of Python be this descriptor, as long as a log is opened."""
    kept = sys.stdout
    with open(descriptor, "w", closefd=False) as file:
        sys.stdout = file
        try:
            yield
        finally:
            sys.stdout = kept


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


class Disk:
    """A file on a disk that may be full.

    Attributes:
        data: what was written.
        room: how many bytes may be written.
    """

    def __init__(self, room: int = 1 << 30) -> None:
        self.data = b""
        self.room = room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(ENOSPC, "No space left on device")
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.data += taken
        return len(taken)


def said(line: str, **more: object) -> LogEvent:
    """An event with this line."""
    return {"log_format": "{line}", "line": line, "log_level": LogLevel.info, "log_time": 0.0, **more}


def plain(event: LogEvent) -> str:
    """The text of an event alone."""
    return f"{formatEvent(event)}\n"


def missing(lines: Sequence[str]) -> list[int]:
    """The numbers of lines that are missing by what a log says."""
    counts = [re.fullmatch(r"(\d+) lines are missing here: the log was full, or not read", line) for line in lines]
    return [int(match[1]) for match in counts if match]


class LogWriterTests:
    """What is written, kept, dropped and counted."""

    def test_a_reader_that_hangs(self, ends: tuple[Callable[[], bytes], int]) -> None:
        """Nothing waits for it. It gets whole lines later, without those beyond the limit, and how many these are."""
        read, writing = ends
        with redirected(writing):
            log = open_standard_output(LogWriter(plain), {})
        written = 3 * KEPT // len(LINE)
        for _ in range(written):
            log(said(LINE))
        data = rest(read)
        for _ in range(2 * KEPT // 4096):
            # What is kept follows when more is written.
            log(said("more"))
            data += rest(read)
        lines = data.decode().splitlines()
        (count,) = missing(lines)
        assert log.dropped == count > 0
        assert lines.count(LINE) + count >= written
        assert {line for line in lines if "missing" not in line} == {LINE, "more"}
        assert os.get_blocking(writing)

    def test_a_pipe_of_another_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pipe that cannot be opened anew, as in a container, is not waited for, either."""
        reading, writing = os.pipe()

        def refuse(*_: object) -> int:
            raise PermissionError

        with redirected(writing):
            monkeypatch.setattr(os, "open", refuse)
            log = open_standard_output(LogWriter(plain), {})
            monkeypatch.undo()
        written = 4 * KEPT // len(LINE)
        for _ in range(written):
            log(said(LINE))
        assert log.dropped > 0
        os.set_blocking(reading, False)
        data = rest(lambda: os.read(reading, 10 * KEPT))
        assert set(data.decode().splitlines()[:-1]) == {LINE}
        os.close(reading)
        # The reader is gone: that is no error, either.
        log(said("more"))
        os.close(writing)

    def test_a_batch_has_room_in_a_pipe(self) -> None:
        """The lines of a batch do not wait in this process for the next event."""
        reading, writing = os.pipe()
        with redirected(writing):
            log = open_standard_output(LogWriter(plain), {})
        log(said("\n".join([LINE] * 500)))
        os.set_blocking(reading, False)
        assert rest(lambda: os.read(reading, KEPT)).count(b"\n") == 500
        os.close(reading)
        os.close(writing)

    def test_a_full_disk(self) -> None:
        """A line that was cut is completed when there is room again, and what was dropped meanwhile is counted."""
        disk = Disk(room=1500)
        log = LogWriter(plain).open(disk.write)
        count = 2 * KEPT // 1000
        for number in range(count):
            log(said(f"{number:999}"))
        kept = (KEPT + 1500) // 1000 + 1
        assert (log.dropped, len(disk.data)) == (count - kept, 1500)
        disk.room = 1 << 30
        log(said("lost"))
        log(said("after"))
        lines = disk.data.decode().splitlines()
        # It is found out by the next event whether there is room; and that one is lost, too.
        assert lines[:kept] == [f"{number:999}" for number in range(kept)]
        assert (missing(lines[kept:]), lines[-1], log.dropped) == ([count - kept + 1], "after", count - kept + 1)

    def test_lines_of_the_access_log_are_counted(self) -> None:
        """An event with several of them counts as so many."""
        log = LogWriter(plain).open(Disk(room=0).write)
        log(said("x" * KEPT))
        log({"log_format": "{lines}", "lines": "a\nb\nc"})
        assert log.dropped == 3
        log(said("one\ntwo"))
        assert log.dropped == 4

    def test_missing_lines_in_json(self) -> None:
        """What a log in JSON says of lines that are missing is an object, too."""
        disk = Disk(room=0)
        log = LogWriter(as_json).open(disk.write)
        for _ in range(2):
            log(said("x" * KEPT))
        disk.room = 1 << 30
        for _ in range(2):
            log(said("x"))
        told = [json.loads(line) for line in disk.data.decode().splitlines()]
        assert missing([one["message"] for one in told]) == [2]
        assert {one["level"] for one in told} == {"info", "warn"}

    def test_a_long_event(self) -> None:
        """What many writes take is not copied for each: that would keep the daemon busy for minutes."""
        pieces: list[memoryview] = []

        def write(data: memoryview) -> int:
            pieces.append(data[:1000])
            return len(pieces[-1])

        LogWriter(plain).open(write)(said("x" * 10_000 + "y"))
        assert b"".join(pieces) == b"x" * 10_000 + b"y\n"
        assert len({id(piece.obj) for piece in pieces}) == 1

    def test_an_event_within_a_write(self) -> None:
        """Python may log while it writes, as when it collects garbage: nothing hangs, or is written twice."""
        disk = Disk()

        def write(data: memoryview) -> int:
            if b"outer" in bytes(data):
                log(said("inner"))
            return disk.write(data)

        log = LogWriter(plain).open(write)
        log(said("outer"))
        assert disk.data == b"outer\ninner\n"

    def test_threads(self) -> None:
        """Several threads may log at once: no line is lost, cut or doubled."""
        reading, writing = os.pipe()
        with redirected(writing):
            log = open_standard_output(LogWriter(plain), {})

        def work(n: int) -> None:
            for i in range(300):
                log(said(f"{n} {i}"))

        threads = [Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.set_blocking(reading, False)
        lines = rest(lambda: os.read(reading, KEPT)).decode().splitlines()
        assert sorted(lines) == sorted(f"{n} {i}" for n in range(4) for i in range(300))
        os.close(reading)
        os.close(writing)

    def test_what_cannot_be_encoded(self) -> None:
        """It is replaced."""
        disk = Disk()
        LogWriter(plain).open(disk.write)(said("\udc80é"))
        assert disk.data == b"?\xc3\xa9\n"


class JournalTests:
    """Priorities, for the journal of systemd only."""

    def lines(self, variable: str, format_event: Callable[[LogEvent], str]) -> list[str]:
        """What an event with two lines is, with JOURNAL_STREAM of this format."""
        one, other = socket.socketpair()
        with one, other, redirected(other.fileno()):
            status = os.fstat(other.fileno())
            named = variable.format(device=status.st_dev, inode=status.st_ino)
            log = open_standard_output(LogWriter(format_event), {"JOURNAL_STREAM": named} if named else {})
            log(said("a\nb", log_level=LogLevel.error))
            return one.recv(10_000).decode().splitlines()

    def test_text(self) -> None:
        """Each line has its priority, and so has each that follows in the same event."""
        first, second = self.lines("{device}:{inode}", as_text)
        assert first.startswith("<3>")
        assert first.endswith("#error] a")
        assert second == "<3>\tb"

    def test_json(self) -> None:
        """The priority stands before the object."""
        (line,) = self.lines("{device}:{inode}", as_json)
        assert json.loads(line.removeprefix("<3>"))["message"] == "a\nb"

    @pytest.mark.parametrize("variable", ["", "{device}:1", "1:{inode}", ":", "{device}"])
    def test_that_is_elsewhere(self, variable: str) -> None:
        """If the output is not the journal, as the variable may be of a parent, there are no priorities."""
        assert not any(line.startswith("<") for line in self.lines(variable, as_text))


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
log.info("{lines}", lines='{"a":1}\\n{"a":2}', is_json=True)
"""


class BeginLoggingTests:
    """A process that logs to another one."""

    def logged_again(self, make: Callable[[io.StringIO], ILogObserver]) -> str:
        """What the log of the reader has, written by the observer that is made for a stream."""
        output = subprocess.run([sys.executable, "-c", LOGS], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60)
        stream = io.StringIO()
        observer = make(stream)
        globalLogPublisher.addObserver(observer)
        try:
            log_again(output.stdout.splitlines(), "worker 7")
        finally:
            globalLogPublisher.removeObserver(observer)
        return stream.getvalue()

    def test_everything_arrives(self) -> None:
        """Events with line breaks, and failures with their tracebacks, are as they would have been there."""
        text = self.logged_again(textFileLogObserver)
        assert "#warn] it\n\tor not happened" in text
        assert "#critical] unexpected" in text
        assert "\n\tTraceback (most recent call last):\n" in text
        assert "ZeroDivisionError: division by zero" in text
        assert "worker 7" not in text

    def test_in_json(self) -> None:
        """So they are in a log in JSON, each as one object, and what is JSON already stays as it is."""
        disk = Disk()
        self.logged_again(lambda _: LogWriter(as_json).open(disk.write))
        first, second, *others = [json.loads(line) for line in disk.data.splitlines()]
        assert (first["level"], first["message"]) == ("warn", "it\nor not happened")
        assert (second["level"], second["message"]) == ("critical", "unexpected")
        assert second["traceback"].strip().endswith("ZeroDivisionError: division by zero")
        assert others == [{"a": 1}, {"a": 2}]
