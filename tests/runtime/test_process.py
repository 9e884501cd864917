"""What SIGTERM and SIGINT do, with handlers that the test calls; and limits, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, getsignal, signal
from typing import Any

import pytest
from twisted.application.service import Service

from tests.daemon import ROOT
from twisted_storaged.runtime.process import StopSignals


class FakeReactor:
    """The three calls of a reactor that the handlers make."""

    def __init__(self) -> None:
        self.stops = 0
        self.when_running: list[Callable[[], None]] = []

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.when_running.append(call)

    def callFromThread(self, call: Callable[[], None]) -> None:
        call()

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture(autouse=True)
def _kept_handlers() -> Iterator[None]:
    """The process of the tests keeps the handlers that it had."""
    kept = {number: getsignal(number) for number in (SIGINT, SIGTERM, SIGHUP)}
    yield
    for number, handler in kept.items():
        signal(number, handler)


class FakeService(Service):
    """A service that counts how often its drain was skipped, and how often it was reloaded."""

    skipped = reloads = 0
    stopping = False

    def skip_drain(self) -> None:
        self.skipped += 1

    def reload(self) -> None:
        self.reloads += 1


def running() -> FakeService:
    """A service that runs."""
    service = FakeService()
    service.startService()
    return service


def serving(reactor: FakeReactor, service: FakeService) -> None:
    """Install the handlers around a service."""
    signals = StopSignals(reactor, lambda status: pytest.fail(f"ended with {status}"))
    signals.install()
    signals.service = service


def deliver(number: int) -> None:
    """Call the handler of a signal, as the interpreter does."""
    handler: Any = getsignal(number)
    handler(number, None)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
class StopSignalsTests:
    """Both signals do the same."""

    def test_while_starting(self, number: int) -> None:
        """Before anything is open, the process ends at once, with status 0."""
        reactor = FakeReactor()
        ended: list[int] = []
        signals = StopSignals(reactor, ended.append)
        signals.install()
        deliver(number)
        signals.service = FakeService()
        deliver(number)
        assert ended == [0, 0]
        assert reactor.stops == 0

    def test_while_serving(self, number: int) -> None:
        """The first signal stops the reactor, and each further one skips the drain, though the service runs no more."""
        reactor, service = FakeReactor(), running()
        serving(reactor, service)
        for skipped in range(3):
            deliver(number)
            assert service.skipped == skipped
            service.running = 0
        assert reactor.stops == 1

    def test_the_reactor_does_not_take_the_handlers_back(self, number: int) -> None:
        """Twisted's handlers, which it installs when it starts, are replaced again."""
        reactor = FakeReactor()
        serving(reactor, running())
        signal(number, lambda *_: None)
        for call in reactor.when_running:
            call()
        deliver(number)
        assert reactor.stops == 1


def printed(code: str, *launcher: str) -> Any:
    """What a program prints as JSON, with all of its standard output and errors."""
    command = [*launcher, sys.executable, "-c", code]
    return json.loads(subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, check=True).stdout)


#: Becomes a user without privileges, makes the process dumpable (a change of the user ends that) and then not.
UNDUMPABLE = """
import ctypes, json, os, resource
from pathlib import Path
from twisted_storaged.runtime.process import disable_core_dumps, resident

get, set = 3, 4
prctl = ctypes.CDLL(None).prctl
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
prctl(set, 1, 0, 0, 0)
before = prctl(get, 0, 0, 0, 0), Path("/proc/self/environ").stat().st_uid == os.geteuid()
disable_core_dumps()
memory = os.memfd_create("x")
os.write(memory, b"hello")
print(json.dumps({
    "before": before,
    "after": [prctl(get, 0, 0, 0, 0), Path("/proc/self/environ").stat().st_uid == os.geteuid()],
    "limits": resource.getrlimit(resource.RLIMIT_CORE),
    "resident": resident() > 0,
    "memory": Path(f"/proc/self/fd/{memory}").read_text(),
    "files": str(memory) in os.listdir("/proc/self/fd"),
}))
"""


class CoreDumpTests:
    """Core dumps."""

    def test_are_disabled(self) -> None:
        """The process cannot be dumped; a user without privileges still gets at its own files in /proc/self."""
        assert printed(UNDUMPABLE) == {
            "before": [1, True],
            "after": [0, False],
            "limits": [0, 0],
            "resident": True,
            "memory": "hello",
            "files": True,
        }


#: Prints what it is, and runs itself again once when it ends.
AGAIN = """
import json, os, signal, sys
from twisted_storaged.runtime.process import HANDLED, run_again_at_exit

print(json.dumps({
    "pid": os.getpid(), "arguments": sys.argv[1:], "options": sys.flags.dont_write_bytecode, "folder": os.getcwd(),
    "again": os.environ.get("AGAIN"), "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(HANDLED)),
}), flush=True)
if "AGAIN" not in os.environ:
    run_again_at_exit(lambda environ: environ.update(AGAIN="yes"), os.environ, os.getcwd())
    os.chdir("/")
    signal.signal(signal.SIGHUP, lambda *_: print("too early"))
sys.exit(3)
"""


class RunAgainTests:
    """Running the program again when it ends."""

    def test_is_the_same_process(self, tmp_path: Path) -> None:
        """It has the same number, command line and working folder, and its signals wait until it handles them."""
        program = tmp_path / "program.py"
        program.write_text(AGAIN)
        ended = subprocess.run(
            [sys.executable, "-B", str(program), "--one", "two words"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            capture_output=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (3, b"")
        first, second = map(json.loads, ended.stdout.splitlines())
        assert first["blocked"] == []
        assert second == {**first, "again": "yes", "blocked": sorted([SIGHUP, SIGINT, SIGTERM])}


FILES = """
import json, resource
from twisted.logger import globalLogPublisher, formatEvent
from twisted_storaged.runtime.process import raise_file_limit

lines = []
globalLogPublisher.addObserver(lambda event: lines.append(formatEvent(event)))
raise_file_limit()
print(json.dumps([*resource.getrlimit(resource.RLIMIT_NOFILE), *lines]))
"""


class FileLimitTests:
    """The limit of open files."""

    def test_is_raised(self) -> None:
        """The soft limit becomes the hard one."""
        assert printed(FILES, "prlimit", "--nofile=256:2048") == [2048, 2048]

    def test_that_is_low(self) -> None:
        """A hard limit below 1024 is worth a warning."""
        soft, hard, *lines = printed(FILES, "prlimit", "--nofile=256:1023")
        assert (soft, hard) == (1023, 1023)
        assert lines == ["only 1023 files and connections can be open: raise the limit, see LimitNOFILE="]

    def test_that_cannot_be_set(self) -> None:
        """Where a sandbox forbids the call, the daemon starts, with a warning."""
        forbid = "import resource\ndef setrlimit(*_): raise PermissionError(1, 'no')\nresource.setrlimit = setrlimit\n"
        soft, hard, *lines = printed(forbid + FILES, "prlimit", "--nofile=256:2048")
        assert (soft, hard) == (256, 2048)
        assert lines == ["the limit of open files cannot be set: [Errno 1] no"]


class ReloadTests:
    """SIGHUP."""

    def test_while_serving(self) -> None:
        """It reloads the service."""
        reactor, service = FakeReactor(), running()
        serving(reactor, service)
        deliver(SIGHUP)
        assert (service.reloads, reactor.stops) == (1, 0)

    def test_while_starting(self) -> None:
        """It neither ends a process that has no service yet, nor is it an error."""
        reactor = FakeReactor()
        StopSignals(reactor, lambda status: pytest.fail(f"ended with {status}")).install()
        deliver(SIGHUP)
        assert reactor.stops == 0
