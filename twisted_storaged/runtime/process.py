"""The process: the signals that stop it, its limits, and memory that is returned to the system after a load."""

from __future__ import annotations

import atexit
import ctypes
import os
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIG_BLOCK, SIG_UNBLOCK, SIGHUP, SIGINT, SIGTERM, pthread_sigmask, signal
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: Open files below which a hard limit is worth a warning: each connection is one, as is each file that is read.
FEW_FILES = 1024

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>

_log = Logger()


class Controlled(Protocol):
    """A service that signals control.

    Attributes:
        running: whether it runs.
        stopping: whether it stops, for whatever reason.
    """

    running: Any
    stopping: bool

    def skip_drain(self) -> None:
        """Wait no longer for requests under way, while it stops."""

    def reload(self) -> Any:
        """Read the settings again, if it can, and replace what has the old ones."""


class StopSignals:
    """The handlers of SIGTERM and SIGINT, which end the daemon with status 0, and of SIGHUP, which reloads it.

    The first signal to end lets requests under way complete; the second ends that wait.

    Attributes:
        service: what must be stopped before the process ends, once it runs; None while it is being made.
        stopping: whether a signal to end has come.
    """

    service: Controlled | None = None

    def __init__(self, reactor: Any, end: Callable[[int], object] = os._exit) -> None:
        """`end` ends the process at once, with a status."""
        self._reactor = reactor
        self._end = end
        self.stopping = False

    def install(self) -> None:
        """Handle the signals from now on."""
        # Again when the reactor has started, as it installs handlers of its own then: with those the process would die
        # of the signal in the end, and a second signal would be a traceback.
        self._reactor.callWhenRunning(self._set_handlers)
        self._set_handlers()
        # A process that was replaced by this one has blocked them, since they would have ended it meanwhile.
        pthread_sigmask(SIG_UNBLOCK, HANDLED)

    def _set_handlers(self) -> None:
        for number in (SIGTERM, SIGINT):
            signal(number, lambda *_: self.stop())
        signal(SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))

    def stop(self) -> None:
        """Stop; a further call ends the wait for requests under way. The rest takes a bounded time."""
        if self.service is not None and (self.stopping or self.service.stopping):
            self._reactor.callFromThread(self.service.skip_drain)
            return
        if self.service is None or not self.service.running:
            # Whatever this interrupts might catch an exception (a Deferred does), and start after all. A start is as
            # safe against ending here as it is against kill -9, and twistd removes a pid file that is stale.
            self._end(0)
            return
        self.stopping = True
        # A reactor that does not run yet makes this call as soon as it does.
        self._reactor.callFromThread(self._reactor.stop)

    def _reload(self) -> None:
        # A signal that comes while the daemon starts is heard when the reactor runs.
        if self.service is not None:
            self.service.reload()


#: The signals that `StopSignals` handles.
HANDLED = (SIGTERM, SIGINT, SIGHUP)


def run_again_at_exit(
    prepare: Callable[[dict[str, str]], None], environ: Mapping[str, str], folder: str
) -> Callable[[], None]:
    """When this process would end, run its command line again in it: it keeps its number, parent and open files.

    `prepare` is called before, and may change the environment. `folder` is the working folder. Returns the function
    that `atexit` calls.
    """

    def run() -> None:
        # Their default effect, until the new program handles them, would end it.
        pthread_sigmask(SIG_BLOCK, HANDLED)
        changed = dict(environ)
        prepare(changed)
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)  # noqa: S606

    # At the very end: twistd has removed its pid file by then, which would keep the program from starting again.
    return atexit.register(run)


def disable_core_dumps() -> None:
    """Keep the memory of this process, which holds credentials and objects, out of core dumps.

    Processes of the same user cannot read it any more either, as a debugger does. See PR_SET_DUMPABLE(2const).
    """
    # The limit alone does not hold where core_pattern(5) is a pipe, as with systemd-coredump.
    _set_limit("the size of core dumps", resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        why = os.strerror(ctypes.get_errno())
        _log.warn("the memory of this process may be dumped or read: prctl failed: {why}", why=why)


def raise_file_limit() -> None:
    """Raise the limit of open files to the one that only root may raise, and log a warning if that is low."""
    # The usual soft limit of 1024 is for programs that call select(2).
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _set_limit("open files", resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        _log.warn("only {hard} files and connections can be open: raise the limit, see LimitNOFILE=", hard=hard)


def _set_limit(what: str, number: int, limits: tuple[int, int]) -> None:
    # A sandbox may forbid the call, and the daemon works without it.
    try:
        resource.setrlimit(number, limits)
    except (OSError, ValueError) as error:
        _log.warn("the limit of {what} cannot be set: {error}", what=what, error=error)


#: Seconds between two checks. A check takes 10 µs, a trim some ms after a load and 50 µs if there is nothing to return.
EVERY = 5.0
#: A trim is tried if the process has more resident memory, by so many bytes, than it ever had at least.
WORTH_IT = 16 << 20

_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Return the resident memory of this process, in bytes. See proc_pid_statm(5)."""
    return int(_STATM.read_bytes().split()[1]) * _PAGE


def trim() -> None:
    """Return free memory that malloc keeps to the system."""
    # Small allocations of many clients are freed in the middle of the heap, and malloc keeps those pages. See
    # https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    # A C library other than glibc has no such call, and needs none.
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class HeapTrimmer:
    """Trims the heap every few seconds, while the process has more memory than when it was idle."""

    def __init__(
        self, clock: IReactorTime, trim: Callable[[], None] = trim, resident: Callable[[], int] = resident
    ) -> None:
        self._trim = trim
        self._resident = resident
        self._least = resident()
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def start(self) -> None:
        """Begin to check."""
        self._looking.start(EVERY, now=False)

    def stop(self) -> None:
        """Stop checking."""
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        # While no more files can be open, it cannot be known. An error would end the LoopingCall.
        with suppress(OSError):
            now = self._resident()
            if now > self._least + WORTH_IT:
                self._trim()
                now = self._resident()
            self._least = min(self._least, now)
