"""The order of writes to the disk and of the response, in the system calls of the daemon."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.daemon import Daemon
from tests.integration.test_daemon import ask, wait_for

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"),
]

TRACED = "pwrite64,write,fsync,fdatasync,unlink,unlinkat,sendto,sendmsg,writev"
LARGE = b"x" * (5 << 20)

FILE = r"objects/\w\w/\w{32}"
FOLDER = r"objects/\w\w>"
LOG = r"index\.sqlite-wal>"

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")


class Call(NamedTuple):
    """A system call: the lines of the trace where it begins and ends, its name, and its arguments as text."""

    begin: int
    end: int
    name: str
    arguments: str


class Trace:
    """The system calls of one run, in the order of their ends."""

    def __init__(self, path: Path) -> None:
        self.calls: list[Call] = []
        begun: dict[str, tuple[int, str]] = {}
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines()):
            if match := _LINE.match(line):
                thread, resumed, name, rest = match.groups()
                if rest.endswith("<unfinished ...>"):
                    begun[thread] = number, rest
                else:
                    begin, arguments = begun.pop(thread) if resumed else (number, "")
                    self.calls.append(Call(begin, number, resumed or name, arguments + rest))

    def all(self, names: str, arguments: str) -> list[Call]:
        """The calls of these names whose arguments match."""
        return [call for call in self.calls if call.name in names.split("|") and re.search(arguments, call.arguments)]

    def one(self, names: str, arguments: str) -> Call:
        """The only call of these names whose arguments match."""
        (call,) = self.all(names, arguments)
        return call

    def commit_before(self, answer: Call) -> Call:
        """The last sync of SQLite's write-ahead log before a response."""
        return [call for call in self.all("fdatasync|fsync", LOG) if call.end < answer.begin][-1]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    # -y: only root reads the names of files of a process that cannot be dumped, but root in a user namespace suffices.
    root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    # -D: strace detaches, so that the process that is started is the daemon.
    strace = [*root, "strace", "-D", "-f", "-y", "-s", "40", "-e", f"trace={TRACED}", "-o", str(tmp_path / "trace")]
    with Daemon(tmp_path, launcher=strace) as daemon:
        yield daemon


def traced(daemon: Daemon) -> Trace:
    """Stop the daemon; returns its system calls."""
    assert daemon.stop() == 0
    path = daemon.folder / "trace"
    wait_for(lambda: re.search(rf"^{daemon.process.pid} +\+\+\+ exited", path.read_text("utf-8", "replace"), re.M))
    return Trace(path)


def answers(trace: Trace, status: int) -> list[Call]:
    return trace.all("sendto|sendmsg|write|writev", f"HTTP/1.1 {status} ")


class WriteOrderTests:
    """The order of writes of the embedded bucket."""

    def test_a_large_object(self, daemon: Daemon) -> None:
        """A large PUT syncs the file, its folder, and then the transaction that sets the key, before it is answered."""
        assert ask(daemon, "PUT", "/storage/put/a", LARGE)[0] == 200
        trace = traced(daemon)
        (answer,) = answers(trace, 200)
        data, folder, commit = trace.one("fsync", FILE), trace.one("fsync", FOLDER), trace.commit_before(answer)
        entry = [call for call in trace.all("pwrite64", LOG) if call.end < answer.begin][-1]
        assert max(call.end for call in trace.all("pwrite64|write", FILE)) < data.begin
        assert data.end < folder.begin
        assert folder.end < entry.begin
        assert entry.end < commit.begin
        assert commit.end < answer.begin

    def test_a_small_object(self, daemon: Daemon) -> None:
        """A small PUT is in the transaction, which is synced before the response, and has no file."""
        assert ask(daemon, "PUT", "/storage/put/a", b"x")[0] == 200
        trace = traced(daemon)
        (answer,) = answers(trace, 200)
        written = [call for call in trace.all("pwrite64", LOG) if call.end < answer.begin]
        assert written[-1].end < trace.commit_before(answer).begin
        assert trace.all("pwrite64|write|fsync", FILE) == []

    def test_an_overwrite(self, daemon: Daemon) -> None:
        """An overwrite removes the old file only after the transaction that sets the key is synced."""
        for _ in range(2):
            assert ask(daemon, "PUT", "/storage/put/a", LARGE)[0] == 200
        trace = traced(daemon)
        _, second = answers(trace, 200)
        assert trace.commit_before(second).end < trace.one("unlink|unlinkat", FILE).begin

    def test_a_delete(self, daemon: Daemon) -> None:
        """A DELETE removes the file after the transaction is synced, and so is the 204."""
        assert ask(daemon, "PUT", "/storage/put/a", LARGE)[0] == 200
        assert ask(daemon, "DELETE", "/storage/delete/a")[0] == 204
        trace = traced(daemon)
        (stored,), (deleted,) = answers(trace, 200), answers(trace, 204)
        commit = trace.commit_before(deleted)
        assert stored.end < commit.begin
        assert commit.end < trace.one("unlink|unlinkat", FILE).begin
