"""Metrics of a process, and how late its reactor is."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from socket import socketpair
from threading import Event, Thread
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from twisted_storaged.runtime.metering import Meters
from twisted_storaged.runtime.process_meters import EVERY, RECENT, ReactorLag, watch_process


def value(meters: Meters, name: str, *labels: str) -> Any:
    """The present value of a metric."""
    return {one.family.name: dict(one.values) for one in meters.snapshot()}[name][labels]


class WatchProcessTests:
    """What a process uses."""

    @pytest.fixture(autouse=True)
    def _made(self) -> None:
        self.meters = Meters()
        self.reactor: Any = MemoryReactorClock()
        watch_process(self.meters, self.reactor)

    def growth(self, use: Callable[[], object], name: str, *labels: str) -> float:
        """How much a metric has grown when something was done; what that returns is kept meanwhile."""
        before = value(self.meters, name, *labels)
        kept = use()
        grown: float = value(self.meters, name, *labels) - before
        del kept
        return grown

    def test_processor_time(self) -> None:
        """Computing takes time in user mode, system calls in system mode."""

        def until(mode: int, call: Callable[[], object]) -> None:
            end = os.times()[mode] + 0.02
            while os.times()[mode] < end:
                call()

        name = "storaged_cpu_seconds"
        assert self.growth(lambda: until(0, lambda: sum(range(10_000))), name, "user") > 0.01
        assert self.growth(lambda: until(1, lambda: os.stat("/proc/self/maps")), name, "system") > 0.01

    def test_memory(self) -> None:
        """Memory that is written to is resident."""
        # Only half of it, as the kernel may reclaim cold pages of this process meanwhile.
        assert self.growth(lambda: b"x" * (128 << 20), "storaged_resident_memory_bytes") > 64 << 20

    def test_open_files(self) -> None:
        """Each descriptor counts, and the limit is that of the process."""
        assert self.growth(socketpair, "storaged_open_files") == 2
        assert value(self.meters, "storaged_open_files") < value(self.meters, "storaged_open_files_limit")

    def test_open_files_of_older_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before Linux 6.2, the size of the folder is 0, and its entries are counted."""
        newer = value(self.meters, "storaged_open_files")
        monkeypatch.setattr(os, "stat", lambda _: os.stat_result([0] * 10))
        assert value(self.meters, "storaged_open_files") == newer

    def test_threads(self) -> None:
        """Each thread counts."""
        end = Event()
        thread = Thread(target=end.wait)
        assert self.growth(thread.start, "storaged_threads") == 1
        end.set()
        thread.join()

    def test_garbage_collections(self) -> None:
        """A full collection is one of the last generation."""
        assert self.growth(gc.collect, "storaged_garbage_collections", "2") == 1

    def test_reactor(self) -> None:
        """The reactor is checked from when it runs."""
        ((start, *_),) = self.reactor.whenRunningHooks
        start()
        self.reactor.advance(EVERY)
        assert value(self.meters, "storaged_reactor_lag_seconds")[-1] == 0
        assert sum(value(self.meters, "storaged_reactor_lag_seconds")) == 1


class ReactorLagTests:
    """How late the reactor is."""

    @pytest.fixture(autouse=True)
    def _made(self) -> None:
        self.meters = Meters()
        self.clock = Clock()
        ReactorLag(self.meters, self.clock).start()

    @property
    def seen(self) -> tuple[float, float, float]:
        """The number of checks, the sum of what they found, and the worst of the last minute."""
        *counts, total = value(self.meters, "storaged_reactor_lag_seconds")
        return sum(counts), total, value(self.meters, "storaged_reactor_lag_worst_seconds")

    def test_before_the_first_check(self) -> None:
        """Nothing is known yet."""
        assert self.seen == (0, 0, 0)

    def test_in_time(self) -> None:
        """A reactor that is idle calls in time."""
        self.clock.pump([EVERY] * 5)
        assert self.seen == (5, 0, 0)

    def test_late(self) -> None:
        """A call that comes later than asked for counts by how much, and so do those after it."""
        self.clock.advance(EVERY + 0.75)
        self.clock.advance(EVERY + 0.25)
        assert self.seen == (2, 1, 0.75)

    def test_the_worst_is_forgotten(self) -> None:
        """After a minute."""
        self.clock.advance(EVERY + 3)
        self.clock.pump([EVERY] * (RECENT - 1))
        assert self.seen == (RECENT, 3, 3)
        self.clock.advance(EVERY)
        assert self.seen == (RECENT + 1, 3, 0)
