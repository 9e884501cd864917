"""Metrics of a process: its processor time, memory, open files and threads, and how late its reactor is."""

from __future__ import annotations

import gc
import os
import resource
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorTime

from twisted_storaged.runtime.metering import Meters
from twisted_storaged.runtime.process import resident

#: Seconds between two checks of how late the reactor is, and the number of checks whose worst is told: a minute.
EVERY = 0.5
RECENT = 120

_STAT = Path("/proc/self/stat")


def watch_process(meters: Meters, reactor: Any) -> None:
    """Let metrics tell what this process uses, and how late its reactor is as soon as it runs."""
    reactor.callWhenRunning(ReactorLag(meters, reactor).start)
    seconds = meters.counter("storaged_cpu_seconds", "Processor time, of all threads.", ("mode",))
    seconds.watch(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_utime, "user")
    seconds.watch(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_stime, "system")
    meters.gauge("storaged_resident_memory_bytes", "Resident memory.").watch(resident)
    meters.gauge(
        "storaged_open_files", "Files and connections that are open, of the process with the most.", combine="max"
    ).watch(_open_files)
    meters.gauge(
        "storaged_open_files_limit", "Files and connections that a process may have open.", combine="min"
    ).watch(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    meters.gauge("storaged_threads", "Threads.").watch(_threads)
    collections = meters.counter("storaged_garbage_collections", "Collections of cyclic garbage.", ("generation",))
    for generation in range(len(gc.get_stats())):
        collections.watch(partial(_collections, generation), str(generation))


class ReactorLag:
    """Checks how late timed calls are: each of them, and each request, has to wait for whatever the reactor does."""

    def __init__(self, meters: Meters, clock: IReactorTime) -> None:
        self._clock = clock
        self._lag = meters.histogram("storaged_reactor_lag_seconds", "How late timed calls of the reactor were.")
        self._recent: deque[float] = deque(maxlen=RECENT)
        worst = meters.gauge("storaged_reactor_lag_worst_seconds", "The worst of the last minute.", combine="max")
        worst.watch(lambda: max(self._recent, default=0.0))

    def start(self) -> None:
        """Begin to check, for as long as the reactor runs."""
        self._clock.callLater(EVERY, self._check, self._clock.seconds() + EVERY)

    def _check(self, due: float) -> None:
        lag = max(self._clock.seconds() - due, 0.0)
        self._lag.observe(lag)
        self._recent.append(lag)
        self.start()


def _open_files() -> int:
    # The size of this folder is the number of its files since Linux 6.2; listing 10,000 of them takes 5 ms. A list has
    # one more: that which it is read from.
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1


def _threads() -> int:
    # The name of the program comes first, in parentheses, and may have spaces. See proc_pid_stat(5)
    return int(_STAT.read_bytes().rpartition(b")")[2].split()[17])


def _collections(generation: int) -> float:
    count: int = gc.get_stats()[generation]["collections"]
    return count
