"""Whether a process can serve, by what its buckets answer, on a clock that the test moves."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from tests.buckets.local.embedded import logged
from tests.support import MemoryBucket
from twisted_storaged.errors import BucketUnreachable, OutOfSpace
from twisted_storaged.readiness import CHECK_INTERVAL, CHECK_VALID, NOT_ASKED, Readiness
from twisted_storaged.routing import Registry
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.status import BucketStatus


class AskedBucket(MemoryBucket):
    """A bucket that counts how often it was asked, and answers when the test says so if it is `silent`."""

    asked = 0
    silent: Deferred[None] | None = None

    def check(self) -> Deferred[None]:
        self.asked += 1
        return super().check() if self.silent is None else self.silent


class Checked:
    """Two buckets, and whether they are ready."""

    def __init__(self) -> None:
        self.clock: Any = Clock()
        self.first, self.second = AskedBucket(), AskedBucket("other")
        self._meters = Meters()
        kinds = {"primary": "local", "other": "s3"}
        self.readiness = Readiness(Registry([self.first, self.second]), kinds, self._meters, self.clock)

    @property
    def reasons(self) -> list[str]:
        """Why the buckets are not ready."""
        return [bucket.reason for bucket in self.readiness.buckets()]

    @property
    def gauge(self) -> dict[str, int]:
        """The values of the gauge, by bucket."""
        (snapshot,) = self._meters.snapshot()
        assert (snapshot.family.name, snapshot.family.combine) == ("storaged_bucket_ready", "min")
        return {name: value for (name,), value in snapshot.values}


def test_not_asked() -> None:
    """A process that has not heard of its buckets is not ready; how they are is unknown."""
    checked = Checked()
    checked.clock.advance(1)
    assert checked.readiness.buckets() == [
        BucketStatus("primary", "local", False, NOT_ASKED, 1.0),
        BucketStatus("other", "s3", False, NOT_ASKED, 1.0),
    ]
    assert checked.gauge == {}


def test_ready() -> None:
    """Buckets that answer are ready; they are asked every few seconds, and no more once the process stops."""
    checked = Checked()
    checked.readiness.start()
    checked.clock.advance(1)
    assert checked.readiness.buckets()[0] == BucketStatus("primary", "local", True, "", 1.0)
    assert checked.gauge == {"primary": 1, "other": 1}
    checked.clock.pump([1] * 8)
    assert checked.first.asked == 1 + 9 // CHECK_INTERVAL
    assert not checked.readiness.stopping
    for _ in range(2):
        checked.readiness.stop()
    checked.clock.pump([1] * 8)
    assert (checked.first.asked, checked.readiness.stopping) == (1 + 9 // CHECK_INTERVAL, True)


def test_a_failure() -> None:
    """A bucket that fails is not ready; the reason is the kind of error, and only the log has its text, once."""
    checked = Checked()
    checked.readiness.start()
    checked.second.failing = BucketUnreachable("secret.host refuses")
    with logged(LogLevel.warn) as lines:
        checked.clock.pump([1] * 9)
    assert checked.reasons == ["", "bucket unreachable"]
    assert checked.gauge == {"primary": 1, "other": 0}
    assert [line for line in lines if "other" in line] == [
        "not ready: bucket other: bucket unreachable secret.host refuses"
    ]
    with logged(LogLevel.info) as lines:
        checked.second.failing = OutOfSpace("/secret/folder is full")
        checked.clock.pump([1] * 6)
        assert checked.reasons == ["", "out of space"]
        checked.second.failing = None
        checked.clock.pump([1] * 6)
    assert checked.reasons == ["", ""]
    assert lines == [
        "not ready: bucket other: out of space /secret/folder is full",
        "bucket other is ready again",
    ]


def test_no_answer() -> None:
    """A bucket that does not answer is asked once, and not ready when its last answer is too old."""
    checked = Checked()
    checked.readiness.start()
    checked.first.silent = Deferred()
    checked.clock.pump([1] * int(CHECK_VALID))
    assert checked.reasons == ["", ""]
    with logged(LogLevel.warn) as lines:
        checked.clock.pump([1] * 5)
    assert checked.reasons == ["no answer for 10 s", ""]
    assert lines == ["not ready: bucket primary: no answer for 10 s "]
    assert checked.first.asked == 2
    silent, checked.first.silent = checked.first.silent, None
    silent.callback(None)
    assert checked.reasons == ["", ""]
    checked.clock.pump([1] * 3)
    assert checked.first.asked == 3


def test_stopping() -> None:
    """A process that stops, and asks no more, says nothing of its buckets: others of the daemon still do."""
    checked = Checked()
    checked.readiness.start()
    checked.readiness.stop()
    checked.clock.advance(2 * CHECK_VALID)
    assert checked.gauge == {}


def test_unexpected_errors() -> None:
    """An unexpected error in a check is a reason as any other."""
    checked = Checked()
    checked.second.failing = ZeroDivisionError("secret")
    checked.readiness.start()
    assert checked.reasons == ["", "zero division error"]
    checked.second.silent = succeed(None)
    checked.clock.advance(CHECK_INTERVAL)
    assert checked.reasons == ["", ""]
