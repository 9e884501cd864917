"""Reads from S3 that break off: they are resumed, or fail, and never end early as if they were complete."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from tests.buckets.conftest import OnScripted
from tests.engines.scripted import ERROR, Answer, Call, Scripted
from tests.support import Consumer, reactor
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.errors import BucketFailed, BucketUnreachable, RangeNotSatisfiable
from twisted_storaged.model import ByteRange
from twisted_storaged.runtime.concurrency import ConsumerGone

DATA = random.Random(7).randbytes(2_000_000)
RANGE = ByteRange(100_000, 1_500_000)
TENTHS = [len(DATA) * tenth // 10 for tenth in range(1, 10)]


@pytest.fixture
def made(on_scripted: OnScripted) -> tuple[Scripted, Callable[[int], S3Bucket]]:
    """A scripted endpoint with an object, and a function that makes a bucket with a number of resumes."""
    endpoint, make_bucket = on_scripted
    endpoint.objects["k"] = DATA, "etag"
    return endpoint, lambda resumes: make_bucket(get_resumes=resumes)


class Cuts:
    """A script that cuts GETs after so many bytes each, as long as there are any left."""

    def __init__(self, *cuts: int) -> None:
        self.left = list(cuts)

    def __call__(self, call: Call) -> Answer | None:
        if call.name == "GetObject" and self.left:
            return Answer(do_it_first=True, cut=self.left.pop(0))
        return None


async def read(bucket: S3Bucket, wanted: ByteRange | None = None, consumer: Consumer | None = None) -> bytes:
    consumer = consumer or Consumer()
    reader = await bucket.get("k", wanted)
    await reader.deliver(consumer)
    assert consumer.producer is None
    return consumer.data


Made = tuple[Scripted, Callable[[int], S3Bucket]]


class ResumeTests:
    """Reads that are resumed where they broke off."""

    @pytest.mark.parametrize("cut", TENTHS)
    @pytest_twisted.ensureDeferred
    async def test_a_cut_anywhere_is_not_noticed(self, made: Made, cut: int) -> None:
        """A read that breaks off is continued with the bytes that are missing, of the same object."""
        endpoint, make = made
        endpoint.script = Cuts(cut)
        assert await read(make(3)) == DATA
        first, second = endpoint.calls
        assert "range" not in first.headers
        assert second.headers["if-match"] == '"etag"'
        start = int(second.headers["range"].removeprefix("bytes=").split("-")[0])
        assert 0 < start <= cut

    @pytest.mark.parametrize("cut", TENTHS)
    @pytest_twisted.ensureDeferred
    async def test_without_resumes_a_cut_is_never_a_clean_end(self, made: Made, cut: int) -> None:
        """A read that breaks off fails without resumes, after a correct part of the bytes."""
        endpoint, make = made
        endpoint.script = Cuts(cut)
        consumer = Consumer()
        with pytest.raises(BucketUnreachable, match="broke off"):
            await read(make(0), consumer=consumer)
        assert DATA.startswith(consumer.data)
        assert len(consumer.data) <= cut
        assert consumer.producer is None

    @pytest.mark.parametrize("wanted", [RANGE, ByteRange(500_000, None), ByteRange(None, 600_000)])
    @pytest_twisted.ensureDeferred
    async def test_ranges_too(self, made: Made, wanted: ByteRange) -> None:
        """A read of a range that breaks off is resumed within that range."""
        endpoint, make = made
        endpoint.script = Cuts(300_000, 200_000)
        start, end = wanted.within(len(DATA))
        assert await read(make(3), wanted) == DATA[start:end]
        assert len(endpoint.calls) == 3

    @pytest_twisted.ensureDeferred
    async def test_so_often_and_not_more(self, made: Made) -> None:
        """A read is resumed three times, each of which is logged; a fourth break fails it."""
        endpoint, make = made
        warnings: list[str] = []

        def observe(event: dict[str, object]) -> None:
            if event.get("log_namespace") == "twisted_storaged.buckets.s3.reader":
                warnings.append(str(event["log_level"]))

        globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
        try:
            endpoint.script = Cuts(300_000, 300_000, 300_000)
            assert await read(make(3)) == DATA
            assert len(warnings) == 3
            endpoint.script = Cuts(300_000, 300_000, 300_000, 300_000)
            with pytest.raises(BucketUnreachable):
                await read(make(3))
        finally:
            globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]

    @pytest_twisted.ensureDeferred
    async def test_an_object_that_was_replaced_is_not_mixed_in(self, made: Made) -> None:
        """A read of an object that is replaced before it is resumed fails."""
        endpoint, make = made

        def replaced(call: Call) -> Answer | None:
            if "range" not in call.headers:
                return Answer(do_it_first=True, cut=500_000)
            endpoint.objects["k"] = DATA[::-1], "another"
            return None

        endpoint.script = replaced
        consumer = Consumer()
        with pytest.raises(BucketFailed, match="412"):
            await read(make(3), consumer=consumer)
        assert DATA.startswith(consumer.data)

    @pytest.mark.parametrize("content", [DATA[::-1], DATA + b"x"])
    @pytest_twisted.ensureDeferred
    async def test_nor_where_the_engine_does_not_look(self, made: Made, content: bytes) -> None:
        """A read of a replaced object fails also if the engine ignores `If-Match`."""
        endpoint, make = made

        def replaced(call: Call) -> Answer | None:
            if "range" not in call.headers:
                return Answer(do_it_first=True, cut=500_000)
            call.headers.pop("if-match")
            endpoint.objects["k"] = content, "another" if len(content) == len(DATA) else "etag"
            return None

        endpoint.script = replaced
        with pytest.raises(BucketFailed, match="replaced meanwhile"):
            await read(make(3))

    @pytest.mark.parametrize("headers", [{}, {"Content-Range": "bytes 0-1999999/2000000"}])
    @pytest_twisted.ensureDeferred
    async def test_an_engine_that_begins_anew_is_not_believed(self, made: Made, headers: dict[str, str]) -> None:
        """A read fails if the engine answers the request for the rest with the whole object."""
        endpoint, make = made
        whole = {"ETag": '"etag"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT", **headers}

        def anew(call: Call) -> Answer | None:
            if "range" not in call.headers:
                return Answer(do_it_first=True, cut=500_000)
            return Answer(200, DATA, whole)

        endpoint.script = anew
        with pytest.raises(BucketFailed, match="gave bytes 0-1999999/2000000"):
            await read(make(3))

    @pytest_twisted.ensureDeferred
    async def test_a_slow_consumer_stays_slow(self, made: Made) -> None:
        """A paused consumer gets no more bytes because a read is resumed."""
        endpoint, make = made
        endpoint.script = Cuts(1_000_000)
        reader = await make(3).get("k")
        consumer = Consumer(paused=True)
        outcome = reader.deliver(consumer)
        for _ in range(100):
            before = len(consumer.data)
            consumer.producer.resumeProducing()
            consumer.producer.pauseProducing()
            await deferLater(reactor, 0.01)
            assert len(consumer.data) - before <= 1 << 20
        consumer.producer.resumeProducing()
        await outcome
        assert consumer.data == DATA

    @pytest_twisted.ensureDeferred
    async def test_a_consumer_that_leaves_meanwhile(self, made: Made) -> None:
        """A consumer that leaves while a read is resumed does not get the rest."""
        endpoint, make = made
        consumer = Consumer()

        def leave(call: Call) -> Answer | None:
            if "range" not in call.headers:
                return Answer(do_it_first=True, cut=500_000)
            reactor.callFromThread(consumer.producer.stopProducing)
            return Answer(do_it_first=True, seconds_per_mib=0.5)

        endpoint.script = leave
        with pytest.raises(ConsumerGone):
            await read(make(3), consumer=consumer)
        assert len(consumer.data) < len(DATA)


@pytest.mark.usefixtures("early_read_ahead")
class SlowAndBrokenTests:
    """Read-ahead from an S3 that is slow and breaks off."""

    @pytest.mark.parametrize("wanted", [None, RANGE])
    @pytest.mark.parametrize("broken", [2, 4, 8])
    @pytest_twisted.ensureDeferred
    async def test_all_bytes_come(self, made: Made, broken: int, wanted: ByteRange | None) -> None:
        """All bytes come once and in order, whichever of the responses break off."""
        endpoint, make = made
        count: list[Call] = []

        def script(call: Call) -> Answer:
            count.append(call)
            if len(count) % broken == 0:
                return Answer(do_it_first=True, cut=50_000)
            return Answer(do_it_first=True, seconds_per_mib=0.3)

        endpoint.script = script
        start, end = wanted.within(len(DATA)) if wanted else (0, len(DATA))
        assert await read(make(10), wanted) == DATA[start:end]
        assert len(endpoint.calls) >= 2  # the first, and a range beside it or in its place

    @pytest_twisted.ensureDeferred
    async def test_the_first_connection_breaks_off(self, made: Made) -> None:
        """If the first connection breaks off before the first range, the bytes between are requested."""
        endpoint, make = made

        def script(call: Call) -> Answer:
            if "range" not in call.headers:
                return Answer(do_it_first=True, cut=300_000, seconds_per_mib=0.3)
            return Answer(do_it_first=True)

        endpoint.script = script
        assert await read(make(1)) == DATA


class RangeAnswerTests:
    """Responses of engines to a range."""

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(416, ERROR % b"InvalidRange", {"Content-Range": "bytes */7"}),
            Answer(416, b"<Error><Code>InvalidRange</Code><ActualObjectSize>7</ActualObjectSize></Error>"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_that_it_has_none_of_it(self, made: Made, answer: Answer) -> None:
        """A 416 with the size, in a header or in the body, is RangeNotSatisfiable."""
        endpoint, make = made
        endpoint.script = lambda _: answer
        with pytest.raises(RangeNotSatisfiable) as caught:
            await make(3).get("k", ByteRange(7, None))
        assert caught.value.size == 7

    @pytest_twisted.ensureDeferred
    async def test_that_it_has_none_and_no_size(self, made: Made) -> None:
        """The size of the object is requested if a 416 does not have it."""
        endpoint, make = made
        endpoint.script = lambda call: Answer(416, ERROR % b"InvalidRange") if call.name == "GetObject" else None
        with pytest.raises(RangeNotSatisfiable) as caught:
            await make(3).get("k", ByteRange(len(DATA), None))
        assert caught.value.size == len(DATA)

    @pytest_twisted.ensureDeferred
    async def test_416_of_what_is_there(self, made: Made) -> None:
        """A satisfiable range that the engine refuses is requested once more, with explicit bounds."""
        endpoint, make = made
        refuse = Answer(416, ERROR % b"InvalidRange", {"Content-Range": f"bytes */{len(DATA)}"})
        endpoint.script = lambda call: refuse if call.headers.get("range") == "bytes=-9999999" else None
        assert await read(make(3), ByteRange(None, 9_999_999)) == DATA
        endpoint.script = lambda _: refuse
        with pytest.raises(RangeNotSatisfiable):
            await make(3).get("k", ByteRange(None, 9_999_999))

    @pytest_twisted.ensureDeferred
    async def test_everything(self, made: Made) -> None:
        """The whole object in response to a range is an error, and not delivered."""
        endpoint, make = made
        headers = {"ETag": '"etag"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
        endpoint.script = lambda _: Answer(200, DATA, headers)
        with pytest.raises(BucketFailed, match="gave bytes 0-1999999/2000000 of 'k' for bytes=1-2"):
            await make(3).get("k", ByteRange(1, 2))
