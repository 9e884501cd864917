"""Reading a large object from a slow S3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.engines.scripted import ERROR, Answer, Call, Scripted, scripted
from tests.support import UPKEEP, Consumer, reactor, result
from twisted_storaged.buckets import s3reader
from twisted_storaged.buckets.s3 import S3Bucket
from twisted_storaged.deferreds import ConsumerGone
from twisted_storaged.errors import DamagedObject
from twisted_storaged.s3 import front as s3front
from twisted_storaged.s3 import readahead
from twisted_storaged.s3.front import FAST
from twisted_storaged.s3.readahead import SEGMENT, ReadAhead


class Ranges:
    """Fetches that end when the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.waiting: list[Deferred[bytes]] = []

    async def fetch(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        fetching: Deferred[bytes] = Deferred()
        self.waiting.append(fetching)
        return await fetching


class ReadAheadTests:
    """The ranges."""

    def test_in_order_whatever_comes_first(self) -> None:
        """And never more than the width at a time."""
        ranges, consumer = Ranges(), Consumer()
        size = 10 + 3 * SEGMENT + 5
        ahead = ReadAhead(ranges.fetch, 10, size, 2)
        seen = ahead.begin()
        done = Deferred.fromCoroutine(ahead.deliver(consumer))
        assert ranges.asked == [(10, 10 + SEGMENT), (10 + SEGMENT, 10 + 2 * SEGMENT)]
        ranges.waiting[1].callback(b"second,")
        assert consumer.data == b""
        ranges.waiting[0].callback(b"first,")
        assert result(seen) == b"first,"
        assert consumer.data == b"first,second,"
        assert ranges.asked[2:] == [(10 + 2 * SEGMENT, 10 + 3 * SEGMENT), (10 + 3 * SEGMENT, size)]
        ranges.waiting[3].callback(b"fourth")
        ranges.waiting[2].callback(b"third,")
        result(done)
        assert (consumer.data, consumer.producer) == (b"first,second,third,fourth", None)

    def test_a_full_consumer_stops_it(self) -> None:
        """What is in memory is the width, and no more."""
        ranges, consumer = Ranges(), Consumer(paused=True)
        ahead = ReadAhead(ranges.fetch, 0, 100 * SEGMENT, 2)
        ahead.begin()
        done = Deferred.fromCoroutine(ahead.deliver(consumer))
        for waiting in list(ranges.waiting):
            waiting.callback(b"x")
        for waiting in ranges.waiting[2:]:
            waiting.callback(b"x")
        assert len(ranges.asked) == 3
        consumer.producer.stopProducing()
        with pytest.raises(ConsumerGone):
            result(done)

    def test_a_failure_ends_it(self) -> None:
        """The others are let go of."""
        ranges, consumer = Ranges(), Consumer()
        ahead = ReadAhead(ranges.fetch, 0, 100 * SEGMENT, 3)
        ahead.begin().addErrback(lambda _: None)
        done = Deferred.fromCoroutine(ahead.deliver(consumer))
        ranges.waiting[0].errback(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            result(done)
        ranges.waiting[1].errback(ZeroDivisionError())
        assert consumer.producer is None


class SlowS3Tests:
    """The whole of it, against an endpoint that takes its time with each connection."""

    DATA = bytes(range(256)) * 16384  # 4 MiB

    @pytest.fixture
    def slow(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Scripted, S3Bucket]]:
        for module in (readahead, s3front, s3reader):
            for name, value in {"FROM_SIZE": 1 << 20, "PROBE": 1 << 17, "SEGMENT": 1 << 18, "LEAD": 1 << 19}.items():
                monkeypatch.setattr(module, name, value, raising=False)
        with scripted() as (endpoint, engine):
            bucket = S3Bucket("primary", engine.settings("bucket"), reactor, 4, UPKEEP)
            bucket.start()
            endpoint.objects["k"] = self.DATA, "etag"
            endpoint.script = lambda _: Answer(do_it_first=True, seconds_per_mib=0.2)
            yield endpoint, bucket
            pytest_twisted.blockon(bucket.stop())

    async def read(self, bucket: S3Bucket) -> bytes:
        consumer = Consumer()
        reader = await bucket.get("k")
        try:
            await reader.deliver(consumer)
        finally:
            self.got = consumer.data
        return consumer.data

    @staticmethod
    def ranges(endpoint: Scripted) -> list[Call]:
        return [call for call in endpoint.calls if "range" in call.headers]

    @pytest_twisted.ensureDeferred
    async def test_ranges_are_fetched_beside_it(self, slow: tuple[Scripted, S3Bucket]) -> None:
        """All bytes, in order, each range of the same object."""
        endpoint, bucket = slow
        assert await self.read(bucket) == self.DATA
        ranges = self.ranges(endpoint)
        assert len(ranges) >= 8
        assert {call.headers["if-match"] for call in ranges} == {'"etag"'}
        assert sum("range" not in call.headers for call in endpoint.calls) == 1

    @pytest_twisted.ensureDeferred
    async def test_a_fast_s3_is_read_on_one_connection(self, slow: tuple[Scripted, S3Bucket]) -> None:
        """It costs least."""
        endpoint, bucket = slow
        endpoint.script = lambda _: None
        s3front.FAST = 1.0  # slower than any machine
        try:
            assert await self.read(bucket) == self.DATA
        finally:
            s3front.FAST = FAST
        assert self.ranges(endpoint) == []

    @pytest_twisted.ensureDeferred
    async def test_an_engine_without_ranges(self, slow: tuple[Scripted, S3Bucket]) -> None:
        """Is read on one connection, to the end."""
        endpoint, bucket = slow

        def whole(call: Call) -> Answer:
            if "range" in call.headers:
                return Answer(200, self.DATA[: 1 << 19])
            return Answer(do_it_first=True, seconds_per_mib=0.2)

        endpoint.script = whole
        assert await self.read(bucket) == self.DATA

    @pytest_twisted.ensureDeferred
    async def test_an_object_that_is_replaced_meanwhile(self, slow: tuple[Scripted, S3Bucket]) -> None:
        """Is never mixed with the new one."""
        endpoint, bucket = slow
        count = []

        def replaced(call: Call) -> Answer:
            count.append(call)
            if len(count) > 4:
                return Answer(412, ERROR % b"PreconditionFailed")
            return Answer(do_it_first=True, seconds_per_mib=0.2)

        endpoint.script = replaced
        with pytest.raises(DamagedObject, match="PreconditionFailed"):
            await self.read(bucket)
        assert self.DATA.startswith(self.got)
        assert len(self.got) < len(self.DATA)

    def test_nobody_waits_for_too_small_an_object(self) -> None:
        """The defaults: 64 MiB, and less than 150 MB/s."""
        values: Any = (readahead.FROM_SIZE, s3front.FAST, readahead.LEAD, readahead.SEGMENT)
        assert values == (64 << 20, 150e6, 16 << 20, 4 << 20)
