"""The process: the signals that stop it, its limits, and memory that is returned to the system after a load."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGTERM, signal
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: Open files below which a hard limit is worth a warning: each connection is one, as is each file that is read.
FEW_FILES = 1024

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>

_log = Logger()


class Drainable(Protocol):
    """A service that lets requests complete when it stops.

    Attributes:
        running: whether it runs.
    """

    running: Any

    def skip_drain(self) -> None:
        """Wait no longer for requests under way, while it stops."""


class StopSignals:
    """The handlers of SIGTERM and SIGINT: each ends the daemon with status 0, while it starts and while it serves.

    The first lets requests under way complete; the second ends that wait.

    Attributes:
        service: what must be stopped before the process ends, once it runs; None while it is being made.
    """

    service: Drainable | None = None

    def __init__(self, reactor: Any, end: Callable[[int], object] = os._exit) -> None:
        """`end` ends the process at once, with a status."""
        self._reactor = reactor
        self._end = end
        self._stopping = False

    def install(self) -> None:
        """Handle the signals from now on."""
        # Again when the reactor has started, as it installs handlers of its own then: with those the process would die
        # of the signal in the end, and a second signal would be a traceback.
        self._reactor.callWhenRunning(self._set_handlers)
        self._set_handlers()

    def _set_handlers(self) -> None:
        for number in (SIGTERM, SIGINT):
            signal(number, self._received)

    def _received(self, *_: object) -> None:
        """Stop; a further signal ends the wait for requests under way. The rest takes a bounded time."""
        if self._stopping:
            assert self.service is not None
            self._reactor.callFromThread(self.service.skip_drain)
            return
        if self.service is None or not self.service.running:
            # Whatever this interrupts might catch an exception (a Deferred does), and start after all. A start is as
            # safe against ending here as it is against kill -9, and twistd removes a pid file that is stale.
            self._end(0)
            return
        self._stopping = True
        # A reactor that does not run yet makes this call as soon as it does.
        self._reactor.callFromThread(self._reactor.stop)


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
        now = self._resident()
        if now > self._least + WORTH_IT:
            self._trim()
            now = self._resident()
        self._least = min(self._least, now)
