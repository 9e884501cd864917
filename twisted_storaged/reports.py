"""What a process of the daemon reports of itself, and the reports of all of them, so that one answer shows them all.

With several workers, each writes its report to a file in memory once a second, and whoever is asked reads the others'.
The supervisor keeps these files, and the counters of workers that have ended. What a worker has counted after its last
report is lost if it is killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from msgspec import MsgspecError, Struct
from msgspec.json import decode, encode
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_storaged.runtime.concurrency import deferred
from twisted_storaged.runtime.metering import Meters, Snapshot, merge, only_gauges, without_gauges
from twisted_storaged.runtime.process_meters import watch_process
from twisted_storaged.runtime.report_file import ReportWriter, make_report_file, read_report
from twisted_storaged.status import ProcessStatus

_log = Logger()


class Report(Struct):
    """What a process reports of itself.

    Attributes:
        pid: its id.
        written: when it made this report, in seconds since the epoch.
        metrics: its counters, gauges and histograms.
        status: what is under way in it; None for the supervisor, which serves no requests.
    """

    pid: int
    written: float
    metrics: Snapshot
    status: ProcessStatus | None = None


class OtherReports(Protocol):
    """A way to the reports of the other processes of the daemon."""

    def collect(self) -> Deferred[list[Report]]:
        """Return their latest reports. Fails with SupervisorSilent."""


def count_workers(meters: Meters, alive: Callable[[], int]) -> None:
    """Let a gauge of the process that knows it tell how many workers there are."""
    meters.gauge("storaged_workers", "Worker processes that are alive.").watch(alive)


class Log(Protocol):
    """A log that counts the lines that it has dropped."""

    dropped: int


def count_dropped(meters: Meters, log: Log, name: str) -> None:
    """Count the lines that a log of this process drops."""
    dropped = meters.counter("storaged_log_lines_dropped", "Lines of a log that are lost.", ("log",))
    dropped.watch(lambda: log.dropped, name)


class Reports:
    """The report of this process, and those of all.

    Attributes:
        meters: what this process counts.
        status: tells what is under way in it, if it serves requests.
    """

    def __init__(
        self,
        meters: Meters,
        others: OtherReports | None = None,
        wall_clock: Callable[[], float] = time.time,
        file: int | None = None,
    ) -> None:
        """Report what `meters` have, to other processes in `file`. Without `others`, there is no other process."""
        self.meters = meters
        self.status: Callable[[], ProcessStatus] | None = None
        self._others = others
        self._wall_clock = wall_clock
        self._writer = None if file is None else ReportWriter(file)
        #: The last report that no scrape has asked for.
        self._last: Report | None = None

    def own(self) -> Report:
        """Make the report of this process."""
        status = None if self.status is None else self.status()
        return Report(os.getpid(), self._wall_clock(), self.meters.snapshot(), status)

    def write(self) -> None:
        """Write the report of this process to its file, if it has one."""
        self._last = self.own()
        if self._writer is not None:
            write_file(self._writer, self._last)

    def _write_counters(self, report: Report) -> None:
        """Write what only grows, as it was shown: if this process is killed, that must not go back.

        Prometheus would take it for a restart from 0. Gauges stay as they were last: now they have the scrape itself,
        which will have ended when another process reads them.
        """
        if self._writer is not None and self._last is not None:
            metrics = [*without_gauges(report.metrics), *only_gauges(self._last.metrics)]
            write_file(self._writer, replace(self._last, metrics=metrics))

    @deferred
    async def all(self) -> list[Report]:
        """Make the report of this process, and collect those of the others, which are about a second old.

        Raises:
            SupervisorSilent: the others cannot be collected.
        """
        others = [] if self._others is None else await self._others.collect()
        own = self.own()
        self._write_counters(own)
        return [own, *others]


class SupervisorReports:
    """The reports of workers, as their supervisor keeps them, and its own: with the counters of those that have ended.

    Attributes:
        file: the descriptor of the file with its own report.
    """

    def __init__(self, alive: Callable[[], int], reactor: Any, log: Log | None = None) -> None:
        """`alive` tells how many workers there are, and `log` is that of the supervisor. Raises OSError."""
        self.file = make_report_file()
        self._writer = ReportWriter(self.file)
        self._ended: Snapshot = []
        meters = Meters()
        count_workers(meters, alive)
        watch_process(meters, reactor)
        if log is not None:
            count_dropped(meters, log, "main")
        #: By how they ended.
        self._ends = meters.counter("storaged_workers_ended", "Worker processes that have ended.", ("how",))
        # From the start, as Prometheus does not see the increase with which a series begins.
        for how in ("stopped", "killed", "failed"):
            self._ends.add(0, how)
        self._reports = Reports(meters)

    def worker_ended(self, file: int, how: str) -> None:
        """Keep the counters of a worker that has ended, and close its file.

        `how` is `stopped` if it was told to, `killed` if a signal ended it, or `failed`.
        """
        self._ends.values[how,] += 1
        report = read_file(file)
        os.close(file)
        if report is not None:
            self._ended = merge([self._ended, without_gauges(report.metrics)])

    def write(self) -> None:
        """Write its own report to its file."""
        report = self._reports.own()
        report.metrics = merge([report.metrics, self._ended])
        write_file(self._writer, report)


def write_file(writer: ReportWriter, report: Report) -> None:
    """Write a report to a file, for other processes."""
    if not writer.write(encode(report)):
        _log.error("the report of this process is too long for its file: others see the last one")


def read_file(file: int) -> Report | None:
    """Read a report from a file; None if there is none that this version understands."""
    try:
        return decode(read_report(file), type=Report)
    except MsgspecError:
        return None
