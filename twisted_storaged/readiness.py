"""Whether this process can serve: what its buckets answered when they were last asked, and whether it stops."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged.errors import in_words
from twisted_storaged.routing import Registry
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.status import BucketStatus

#: Seconds between two checks of a bucket, and for how long an answer holds.
CHECK_INTERVAL, CHECK_VALID = 3.0, 10.0

NOT_ASKED = "not asked yet"

_log = Logger()


class _Answer(NamedTuple):
    """What a bucket answered.

    Attributes:
        at: when, by the reactor's clock.
        reason: why it is not ready, in words that may be shown to anyone; empty if it is.
        cause: the same for the log.
    """

    at: float
    reason: str
    cause: str


class Readiness:
    """Asks each bucket every few seconds, and keeps what it answered.

    Attributes:
        stopping: whether the process stops.
    """

    def __init__(self, registry: Registry, kinds: Mapping[str, str], meters: Meters, reactor: Any) -> None:
        """`kinds` are those of the buckets, by their names."""
        self.stopping = False
        self._registry = registry
        self._kinds = kinds
        self._reactor = reactor
        self._checking = LoopingCall(self.check)
        self._checking.clock = reactor
        #: The buckets that have not answered yet. A call that hangs in a thread must not be followed by others.
        self._asked: set[str] = set()
        unknown = _Answer(reactor.seconds(), NOT_ASKED, "")
        self._answers = {bucket.name: unknown for bucket in registry.buckets}
        self._logged = dict.fromkeys(self._answers, NOT_ASKED)
        gauge = meters.gauge(
            "storaged_bucket_ready", "Whether the bucket answers every process.", ("bucket",), combine="min"
        )
        for name in self._answers:
            gauge.watch(partial(self._value, name), name)

    def start(self) -> None:
        """Begin to ask."""
        stopped = self._checking.start(CHECK_INTERVAL)
        stopped.addErrback(lambda failure: _log.failure("buckets are checked no more", failure))

    def stop(self) -> None:
        """Ask no more, and be ready no more: the process stops. May be called again."""
        self.stopping = True
        if self._checking.running:
            self._checking.stop()

    def check(self) -> None:
        """Ask the buckets that are not being asked."""
        for bucket in self._registry.buckets:
            if bucket.name not in self._asked:
                self._asked.add(bucket.name)
                bucket.check().addBoth(self._answered, bucket.name)
        self._log_changes()

    def buckets(self) -> list[BucketStatus]:
        """What is known of each bucket."""
        now = self._reactor.seconds()
        return [
            BucketStatus(name, self._kinds[name], not self._reason(name), self._reason(name), now - answer.at)
            for name, answer in self._answers.items()
        ]

    def _reason(self, name: str) -> str:
        """Why a bucket is not ready; empty if it is."""
        answer = self._answers[name]
        if not answer.reason and self._reactor.seconds() - answer.at > CHECK_VALID:
            return f"no answer for {CHECK_VALID:g} s"
        return answer.reason

    def _value(self, name: str) -> int | None:
        """The value of the gauge: unknown in a process that has just begun, or that asks no more."""
        reason = self._reason(name)
        return None if self.stopping or reason == NOT_ASKED else int(not reason)

    def _answered(self, result: Failure | None, name: str) -> None:
        self._asked.remove(name)
        reason = cause = ""
        if result is not None:
            # The text of the error names hosts and folders.
            reason = in_words(type(result.value))
            cause = str(result.value)
        self._answers[name] = _Answer(self._reactor.seconds(), reason, cause)

    def _log_changes(self) -> None:
        for name, answer in self._answers.items():
            reason, before = self._reason(name), self._logged[name]
            self._logged[name] = reason
            if reason == before:
                continue
            if reason:
                _log.warn("not ready: bucket {name}: {reason} {cause}", name=name, reason=reason, cause=answer.cause)
            elif before != NOT_ASKED:
                _log.info("bucket {name} is ready again", name=name)
