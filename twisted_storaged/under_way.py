"""What is under way in this process, measured once a second, and the status of the daemon, made of that of all.

What a status consists of is defined in `status`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import nlargest, nsmallest
from platform import python_version
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from msgspec.structs import replace
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

import twisted
from twisted_storaged import __version__
from twisted_storaged.admission import PutSlots
from twisted_storaged.errors import ObjectNotFound, PreconditionFailed, RangeNotSatisfiable, SupervisorSilent
from twisted_storaged.reports import Reports
from twisted_storaged.routing import Policy
from twisted_storaged.runtime.concurrency import deferred
from twisted_storaged.runtime.log_format import redacted
from twisted_storaged.server.ended_requests import EndedRequest
from twisted_storaged.server.request import StreamingRequest
from twisted_storaged.server.site import StorageSite
from twisted_storaged.status import (
    INTERVAL,
    INTERVALS,
    MOST_REFUSALS,
    MOST_TRANSFERS,
    BucketStatus,
    Interval,
    ProcessStatus,
    Refusal,
    Rule,
    Status,
    Transfer,
)

#: Seconds between two measurements.
SAMPLE_INTERVAL = 1.0
#: The rate of a transfer is an average over this many of these intervals: the kernel takes the bytes of a GET in
#: batches of some MiB, and a slow client may take seconds to read one of them.
RATE_INTERVALS = 5

#: What a transfer waits for, by the kind of its bucket.
_BUCKETS = {"s3": "S3", "local": "disk"}
#: Errors that say how an object is, and nothing about the daemon. They would displace all others.
_ORDINARY = frozenset(error.__name__ for error in (ObjectNotFound, PreconditionFailed, RangeNotSatisfiable))

#: Operations whose bytes are counted. Those of a page that is open would show as traffic of a daemon that is idle.
_COUNTED = frozenset({"put", "get", "list"})

#: The key of a transfer as it is shown. It is asked for each second, and to search a long one takes up to 0.3 ms.
_shown = lru_cache(maxsize=1024)(redacted)

_log = Logger()


class PastRequests:
    """What is kept of requests that have ended.

    Attributes:
        received, sent: the bytes of the bodies of all that were puts, gets or lists.
        refused: the last that were refused or failed, the latest last.
    """

    def __init__(self) -> None:
        self.received = self.sent = 0
        self.refused: deque[EndedRequest] = deque(maxlen=MOST_REFUSALS)

    def add(self, ended: Sequence[EndedRequest]) -> None:
        """Count requests that have ended."""
        for request in ended:
            if request.operation in _COUNTED:
                self.received += request.received
                self.sent += request.sent
            reason = _reason(request)
            if reason and reason not in _ORDINARY:
                self.refused.append(request)

    def refusals(self) -> list[Refusal]:
        """The last requests that were refused or failed, the latest first."""
        return [
            Refusal(
                request.at,
                request.id,
                _address(request.client),
                request.operation,
                request.bucket,
                _shown(request.key),
                request.status,
                _reason(request),
            )
            for request in reversed(self.refused)
        ]


class _Sample(NamedTuple):
    """What was measured of a transfer: when, by the reactor's clock, and its bytes."""

    at: float
    done: int


class UnderWay:
    """What is under way in this process."""

    def __init__(  # noqa: PLR0913 (its parts)
        self,
        site: StorageSite,
        slots: PutSlots,
        past: PastRequests,
        kinds: Mapping[str, str],
        reactor: Any,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`past` observes the requests of `site` that end; `kinds` has the kinds of buckets, by their names."""
        self._site = site
        self._slots = slots
        self._past = past
        self._kinds = kinds
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._started = wall_clock()
        self._sampling = LoopingCall(self.sample)
        self._sampling.clock = reactor
        self._samples: WeakKeyDictionary[StreamingRequest, deque[_Sample]] = WeakKeyDictionary()
        #: The bytes that were received and sent until the last measurement.
        self._received = self._sent = 0
        self._intervals: deque[Interval] = deque()

    def start(self) -> None:
        """Begin to measure."""
        stopped = self._sampling.start(SAMPLE_INTERVAL)
        stopped.addErrback(lambda failure: _log.failure("what is under way is measured no more", failure))

    def stop(self) -> None:
        """Stop to measure. May be called again."""
        if self._sampling.running:
            self._sampling.stop()

    def sample(self) -> None:
        """Measure the rates of transfers, and count the bytes that have passed since the last time."""
        now = self._reactor.seconds()
        received, sent = self._past.received, self._past.sent
        for channel in self._site.channels:
            for request in channel.requests:
                if request.operation in _COUNTED:
                    received += request.body.received_bytes
                    sent += request.sentLength
                # Small requests end sooner.
                if request.dispatched and now - request.began >= SAMPLE_INTERVAL:
                    self._measure(request, now)
        interval = self._interval()
        # A request that has ended may not have been counted yet: the next time makes up for it.
        interval.received += max(0, received - self._received)
        interval.sent += max(0, sent - self._sent)
        self._received, self._sent = max(received, self._received), max(sent, self._sent)

    def _measure(self, request: StreamingRequest, now: float) -> None:
        samples = self._samples.get(request)
        if samples is None:
            samples = self._samples[request] = deque([_Sample(request.began, 0)], maxlen=RATE_INTERVALS + 1)
        if now > samples[-1].at:
            samples.append(_Sample(now, _done(request)))

    def _interval(self) -> Interval:
        """The interval of this moment."""
        at = int(self._wall_clock()) // INTERVAL * INTERVAL
        # The wall clock may have been set back.
        while self._intervals and self._intervals[-1].at > at:
            self._intervals.pop()
        while self._intervals and self._intervals[0].at <= at - INTERVAL * INTERVALS:
            self._intervals.popleft()
        if not self._intervals or self._intervals[-1].at < at:
            self._intervals.append(Interval(at, 0, 0))
        return self._intervals[-1]

    def status(self) -> ProcessStatus:
        """The status of this process."""
        channels = self._site.channels
        # With those whose clients are gone, but whose upload is still being aborted.
        holders = set(self._slots.holders)
        requests = holders | {request for channel in channels for request in channel.requests if request.key}
        shown = nsmallest(MOST_TRANSFERS, requests, key=lambda one: (one not in holders, one.began))
        transfers = [self._transfer(request, request in holders) for request in shown]
        return ProcessStatus(
            os.getpid(),
            self._started,
            self._site.draining,
            len(channels),
            sum(bool(channel.requests) for channel in channels),
            self._slots.taken,
            sorted(transfers, key=lambda transfer: -transfer.age),
            self._past.refusals(),
            list(self._intervals),
        )

    def _transfer(self, request: StreamingRequest, holds_slot: bool) -> Transfer:
        done = _done(request)
        age = self._reactor.seconds() - request.began
        samples = self._samples.get(request)
        if samples is not None:
            rate = (samples[-1].done - samples[0].done) / (samples[-1].at - samples[0].at)
        else:
            # Until it is measured for the first time.
            rate = done / age if age > 0 else 0.0
        return Transfer(
            request.id,
            _address(request.client),
            request.operation,
            request.bucket,
            _shown(request.key),
            request.body.declared if request.operation == "put" else request.announced,
            done,
            0.0 if request.gone else rate,
            age,
            holds_slot,
            _waits_for(request, _BUCKETS.get(self._kinds.get(request.bucket, ""), "storaged")),
            os.getpid(),
        )


class StatusCollector:
    """The status of the daemon, made of those of its processes."""

    def __init__(
        self,
        reports: Reports,
        slots: PutSlots,
        policy: Policy,
        buckets: Callable[[], list[BucketStatus]],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`reports` are those of all processes, and `buckets` tells what this one knows of the buckets."""
        self._reports = reports
        self._slots = slots
        self._rules = [Rule(rule.prefix, rule.max_put, rule.bucket, rule.slots) for rule in policy.rules]
        self._buckets = buckets
        self._wall_clock = wall_clock

    @deferred
    async def collect(self) -> Status:
        """Return the status; what it has of other processes is about a second old. May lack them; does not fail."""
        try:
            reports = await self._reports.all()
        except SupervisorSilent:
            reports = [self._reports.own()]
        processes = [report.status for report in reports if report.status is not None]
        return merged(processes, self._wall_clock(), self._slots.limit, self._buckets(), self._rules)


def merged(
    processes: Sequence[ProcessStatus], at: float, slots: int, buckets: list[BucketStatus], rules: list[Rule]
) -> Status:
    """Make one status of those of all processes, with what is the same for all of them."""
    return Status(
        at=at,
        versions={"storaged": __version__, "python": python_version(), "twisted": twisted.__version__},
        slots_taken=sum(process.slots_taken for process in processes),
        slots=slots,
        connections=sum(process.connections for process in processes),
        requests_under_way=sum(process.requests_under_way for process in processes),
        transfers=sorted((one for process in processes for one in process.transfers), key=lambda one: -one.age),
        refusals=nlargest(
            MOST_REFUSALS, (one for process in processes for one in process.refusals), key=lambda one: one.at
        ),
        intervals=_summed(one for process in processes for one in process.intervals),
        buckets=buckets,
        policies=rules,
        workers=[replace(process, transfers=[], refusals=[], intervals=[]) for process in processes],
    )


def _summed(intervals: Iterable[Interval]) -> list[Interval]:
    sums: dict[int, Interval] = {}
    for one in intervals:
        before = sums.get(one.at) or Interval(one.at, 0, 0)
        sums[one.at] = Interval(one.at, before.received + one.received, before.sent + one.sent)
    return [sums[at] for at in sorted(sums)][-INTERVALS:]


def _done(request: StreamingRequest) -> int:
    """How many bytes of its body have passed."""
    return request.body.received_bytes if request.operation == "put" else request.sentLength


def _waits_for(request: StreamingRequest, bucket: str) -> str:
    """Who is to act next, so that a request goes on: `bucket` or another."""
    body = request.body
    if request.gone:
        # What was written is being removed.
        return bucket
    if request.operation == "put":
        if body.complete:
            return bucket
        if not body.paused:
            return "client"
        return bucket if body.started else "storaged"
    return "client" if request.channel.transport_is_full else bucket


def _reason(request: EndedRequest) -> str:
    """The name of the error that a request failed with, or why it was cut; empty for others."""
    return request.reason or (request.outcome[5:] if request.outcome.startswith("cut: ") else "")


def _address(client: Any) -> str:
    """The address of a client, with its port; a client of a socket in the file system has none."""
    host = getattr(client, "host", None)
    if host is None:
        return "unix"
    return f"[{host}]:{client.port}" if ":" in host else f"{host}:{client.port}"
