"""What is counted of a bucket in S3: each metric moves, by what a scripted endpoint does; and is documented."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater

from tests.daemon import ROOT
from tests.engines.scripted import ERROR, Answer, Call, Script, Scripted, scripted
from tests.support import BytesBody, Consumer, reactor, result
from twisted_storaged.buckets.s3 import responses
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.meters import S3Meters
from twisted_storaged.buckets.s3.responses import RequestFailed, Retries, outcome_of
from twisted_storaged.buckets.s3.session import Upkeep
from twisted_storaged.errors import BucketError, ObjectNotFound
from twisted_storaged.protocol.http1 import (
    AmbiguousFailure,
    ConnectionFailed,
    NotConnected,
    Response,
    TimedOut,
    UnexpectedResponse,
)
from twisted_storaged.runtime.metering import Meters

MiB = 1 << 20
#: A body of three parts.
PARTS = b"x" * (11 * MiB)


def value(meters: Meters, name: str, *labels: str) -> Any:
    """The value of a metric; None if there is none for these labels."""
    return next(dict(one.values).get(labels) for one in meters.snapshot() if one.family.name == name)


class Made:
    """A started bucket on a scripted endpoint, and what it counts."""

    def __init__(self, endpoint: Scripted, bucket: S3Bucket, meters: Meters) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self._meters = meters

    def value(self, name: str, *labels: str) -> Any:
        return value(self._meters, f"storaged_s3_{name}", "b", *labels)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        for _ in range(1000):
            if condition():
                return
            await deferLater(reactor, 0.01)
        raise AssertionError("it has not happened")

    async def put(self, data: bytes) -> None:
        await self.bucket.put("k", BytesBody(data, chunk=MiB), 1 << 30)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    monkeypatch.setattr(responses, "_pause", lambda _: 0.0)
    with scripted() as (endpoint, engine):
        meters = Meters()
        bucket = S3Bucket("b", engine.settings("bucket"), reactor, 4, Upkeep(tmp_path / "state"), meters)
        bucket.start()
        yield Made(endpoint, bucket, meters)
        pytest_twisted.blockon(bucket.stop())


def always(name: str, answer: Answer) -> Script:
    """A script that gives every call of this operation this answer."""
    return lambda call: answer if call.name == name else None


def first(name: str, answer: Answer) -> Script:
    """A script that gives the first call of this operation this answer."""
    left = [answer]
    return lambda call: left.pop() if call.name == name and left else None


class Holding:
    """A script that holds back the calls of an operation until it is released."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._released = threading.Event()

    def __call__(self, call: Call) -> None:
        if call.name == self._name:
            assert self._released.wait(30)

    def release(self) -> None:
        self._released.set()


def failed(status: int, code: str = "") -> RequestFailed:
    response = Response(status, {})
    response.body = ERROR % code.encode()
    return RequestFailed("GetObject", response, again=False)


class OutcomeTests:
    """What failures mean."""

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (failed(404, "NoSuchKey"), "not_found"),
            (failed(404), "not_found"),
            (failed(404, "NoSuchBucket"), "error"),
            (failed(412, "PreconditionFailed"), "precondition_failed"),
            (failed(409, "ConditionalRequestConflict"), "conflict"),
            (failed(416, "InvalidRange"), "range_not_satisfiable"),
            (failed(401), "denied"),
            (failed(403, "AccessDenied"), "denied"),
            (failed(429), "busy"),
            (failed(503, "SlowDown"), "busy"),
            (failed(400, "Throttling"), "busy"),
            (failed(500, "InternalError"), "error"),
            (failed(301, "PermanentRedirect"), "error"),
            (TimedOut("not done"), "timed_out"),
            (NotConnected("refused"), "unreachable"),
            (ConnectionFailed("lost"), "unreachable"),
            (UnexpectedResponse("a page"), "error"),
            (AmbiguousFailure("PutObject", ConnectionFailed("lost")), "unknown"),
            (CancelledError(), "cancelled"),
            (ValueError(), "error"),
        ],
    )
    def test_of_failures(self, error: Exception, outcome: str) -> None:
        """Each failure has one of a fixed set of outcomes."""
        assert outcome_of(error) == outcome


class RequestTests:
    """Requests, and how long they take."""

    @pytest_twisted.ensureDeferred
    async def test_successes(self, made: Made) -> None:
        """A PUT and a GET of a small object are counted once each, by the operation."""
        await made.put(b"hello")
        await (await made.bucket.get("k")).deliver(Consumer())
        for operation in ("PutObject", "GetObject"):
            assert made.value("requests", operation, "ok") == 1
            assert sum(made.value("request_seconds", operation)[:-1]) == 1
            assert 0 < made.value("request_seconds", operation)[-1] < 10

    @pytest_twisted.ensureDeferred
    async def test_failures(self, made: Made) -> None:
        """A request that fails is counted once, by its outcome."""
        with pytest.raises(ObjectNotFound):
            await made.bucket.head("k")
        made.endpoint.script = always("HeadObject", Answer(503))
        with pytest.raises(BucketError):
            await made.bucket.head("k")
        assert made.value("requests", "HeadObject", "not_found") == 1
        assert made.value("requests", "HeadObject", "busy") == 1
        assert sum(made.value("request_seconds", "HeadObject")[:-1]) == 2

    @pytest_twisted.ensureDeferred
    async def test_retries(self, made: Made) -> None:
        """An attempt that is repeated is counted as a retry, by how it ended, and not as a request."""
        made.endpoint.objects["k"] = b"x", "etag"
        made.endpoint.script = first("HeadObject", Answer(503))
        await made.bucket.head("k")
        assert made.value("retries", "HeadObject", "busy") == 1
        assert made.value("requests", "HeadObject", "busy") is None
        assert made.value("requests", "HeadObject", "ok") == 1

    @pytest_twisted.ensureDeferred
    async def test_lost_replies(self, made: Made) -> None:
        """A write whose reply was lost is ok if it is found to be carried out, for which S3 is asked once more."""
        made.endpoint.script = first("PutObject", Answer(drop=True, do_it_first=True))
        await made.put(b"hello")
        assert made.value("requests", "PutObject", "ok") == 1
        assert made.value("retries", "PutObject", "unreachable") is None
        assert made.value("requests", "HeadObject", "ok") == 1

    def test_unknown(self) -> None:
        """A decisive write whose replies were all lost is one whose outcome is unknown."""
        clock, meters = Clock(), Meters()

        async def attempt(_: float) -> Response:
            raise ConnectionFailed("lost")

        running = Retries(clock, 100, S3Meters(meters, "b")).run("PutObject", attempt, decisive=True)
        done = Deferred.fromCoroutine(running)
        clock.pump([1] * 10)
        with pytest.raises(AmbiguousFailure):
            result(done)
        assert value(meters, "storaged_s3_requests", "b", "PutObject", "unknown") == 1
        assert value(meters, "storaged_s3_retries", "b", "PutObject", "unreachable") == 2

    def test_seconds(self) -> None:
        """The duration of a request is that of all its attempts, of the last one if it is cancelled meanwhile."""
        clock, meters = Clock(), Meters()
        retries = Retries(clock, 100, S3Meters(meters, "b"))
        attempts: list[Deferred[Response]] = []

        async def attempt(_: float) -> Response:
            attempts.append(Deferred())
            return await attempts[-1]

        running = Deferred.fromCoroutine(retries.run("GetObject", attempt))
        clock.advance(3)
        attempts[0].errback(ConnectionFailed("lost"))
        clock.advance(20)
        clock.advance(4)
        running.cancel()
        with pytest.raises(CancelledError):
            result(running)
        assert value(meters, "storaged_s3_requests", "b", "GetObject", "cancelled") == 1
        assert value(meters, "storaged_s3_retries", "b", "GetObject", "unreachable") == 1
        assert value(meters, "storaged_s3_request_seconds", "b", "GetObject")[-1] == 27

    @pytest_twisted.ensureDeferred
    async def test_resumes(self, made: Made) -> None:
        """A GET that S3 breaks off twice is two resumes."""
        assert made.value("resumes") == 0
        made.endpoint.objects["k"] = b"x" * MiB, "etag"
        cuts = [300_000, 200_000]
        made.endpoint.script = lambda call: Answer(do_it_first=True, cut=cuts.pop()) if cuts else None
        await (await made.bucket.get("k")).deliver(Consumer())
        assert made.value("resumes") == 2
        assert made.value("requests", "GetObject", "ok") == 3


class ConnectionTests:
    """Connections to S3."""

    @pytest_twisted.ensureDeferred
    async def test_of_the_reactor(self, made: Made) -> None:
        """A connection is open while a request is under way, and idle afterwards."""
        assert (made.value("connections"), made.value("connections_idle")) == (0, 0)
        made.endpoint.objects["k"] = b"x", "etag"
        made.endpoint.script = holding = Holding("HeadObject")
        running = Deferred.fromCoroutine(made.bucket.head("k"))
        await made.until(lambda: (made.value("connections"), made.value("connections_idle")) == (1, 0))
        holding.release()
        await running
        assert (made.value("connections"), made.value("connections_idle")) == (1, 1)

    @pytest_twisted.ensureDeferred
    async def test_of_threads(self, made: Made) -> None:
        """The connections of threads, which send large bodies, are counted, too."""
        made.endpoint.script = holding = Holding("PutObject")
        running = Deferred.fromCoroutine(made.put(b"x" * MiB))
        await made.until(lambda: (made.value("connections"), made.value("connections_idle")) == (1, 0))
        holding.release()
        await running
        assert (made.value("connections"), made.value("connections_idle")) == (1, 1)


class UploadTests:
    """Multipart uploads and their parts."""

    @pytest_twisted.ensureDeferred
    async def test_completed(self, made: Made) -> None:
        """Parts are in flight while they are sent; the upload is counted as completed."""
        made.endpoint.script = holding = Holding("UploadPart")
        running = Deferred.fromCoroutine(made.put(PARTS))
        await made.until(lambda: bool(made.value("parts_in_flight") == 3))
        assert made.value("uploads", "completed") == 0
        holding.release()
        await running
        assert made.value("parts_in_flight") == 0
        assert [made.value("uploads", how) for how in ("completed", "aborted", "left")] == [1, 0, 0]

    @pytest_twisted.ensureDeferred
    async def test_aborted(self, made: Made) -> None:
        """An upload that fails is aborted, and none of its parts counts as in flight any more."""
        made.endpoint.script = always("UploadPart", Answer(403))
        with pytest.raises(BucketError):
            await made.put(PARTS)
        assert made.value("parts_in_flight") == 0
        assert [made.value("uploads", how) for how in ("completed", "aborted", "left")] == [0, 1, 0]

    @pytest_twisted.ensureDeferred
    async def test_reaped(self, made: Made) -> None:
        """An upload that S3 does not abort is left to the reaper, and counted when that has aborted it."""
        answers = {"UploadPart": Answer(403), "AbortMultipartUpload": Answer(403)}
        made.endpoint.script = lambda call: answers.get(call.name)
        with pytest.raises(BucketError):
            await made.put(PARTS)
        assert [made.value("uploads", how) for how in ("completed", "aborted", "left")] == [0, 0, 1]
        assert made.value("uploads_reaped") == 0
        answers.clear()
        await made.bucket._reaper.reap()
        assert made.value("uploads_reaped") == 1
        assert made.endpoint.uploads == {}


def test_documented() -> None:
    """The section of the page on metrics has each of them, with its type and labels."""
    meters = Meters()
    S3Meters(meters)
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    section = page.partition("## Buckets in S3\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\|", section, re.MULTILINE)
    families = [one.family for one in meters.snapshot()]
    assert {(name, kind): tuple(re.findall(r"\w+", labels)) for name, kind, labels in rows} == {
        (one.name + ("_total" if one.kind == "counter" else ""), one.kind): one.labels for one in families
    }
