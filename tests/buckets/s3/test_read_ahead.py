"""Read-ahead of a large object from a slow S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.engines.scripted import ERROR, Answer, Call, Scripted, scripted
from tests.support import Consumer, reactor, result
from twisted_storaged.buckets.s3 import read_ahead as readahead
from twisted_storaged.buckets.s3 import reader as s3reader
from twisted_storaged.buckets.s3 import response_body as s3front
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.read_ahead import SEGMENT, ReadAhead, SegmentBudget, SegmentLease
from twisted_storaged.buckets.s3.response_body import FAST_BYTES_PER_SECOND
from twisted_storaged.buckets.s3.session import Upkeep
from twisted_storaged.errors import BucketFailed
from twisted_storaged.runtime.concurrency import ConsumerGone


class Ranges:
    """Fetches that end when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.waiting: list[Deferred[bytes]] = []

    async def fetch(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        fetching: Deferred[bytes] = Deferred()
        self.waiting.append(fetching)
        return await fetching


def lease(total: int) -> tuple[SegmentBudget, SegmentLease]:
    """A budget of so many segments, and the lease of its only user."""
    budget = SegmentBudget(total, total)
    return budget, budget.enter(lambda _: None)


class ReadAheadTests:
    """Ranges that are fetched and delivered."""

    def test_in_order_whatever_comes_first(self) -> None:
        """Ranges are delivered in order, and the segments of the lease bound those that are fetched or sent."""
        ranges, consumer = Ranges(), Consumer(paused=True)
        size = 10 + 3 * SEGMENT + 5
        budget, allowed = lease(2)
        ahead = ReadAhead(ranges.fetch, 10, size, allowed)
        seen = ahead.begin()
        done = Deferred.fromCoroutine(ahead.deliver(consumer))
        assert ranges.asked == [(10, 10 + SEGMENT), (10 + SEGMENT, 10 + 2 * SEGMENT)]
        ranges.waiting[1].callback(b"second,")
        assert consumer.data == b""
        ranges.waiting[0].callback(b"first,")
        assert result(seen) == b"first,"
        assert (consumer.data, len(ranges.asked)) == (b"first,", 2)
        consumer.producer.resumeProducing()
        assert consumer.data == b"first,second,"
        assert ranges.asked[2:] == [(10 + 2 * SEGMENT, 10 + 3 * SEGMENT), (10 + 3 * SEGMENT, size)]
        ranges.waiting[3].callback(b"fourth")
        ranges.waiting[2].callback(b"third,")
        result(done)
        assert (consumer.data, consumer.producer) == (b"first,second,third,fourth", None)
        assert budget.reserved == 0

    def test_a_full_consumer_stops_it(self) -> None:
        """No more ranges are fetched for a full consumer than there are segments; all are free when it leaves."""
        ranges, consumer = Ranges(), Consumer(paused=True)
        budget, allowed = lease(3)
        ahead = ReadAhead(ranges.fetch, 0, 100 * SEGMENT, allowed)
        ahead.begin()
        done = Deferred.fromCoroutine(ahead.deliver(consumer))
        for waiting in list(ranges.waiting):
            waiting.callback(b"x")
        assert len(ranges.asked) == 3
        consumer.producer.stopProducing()
        with pytest.raises(ConsumerGone):
            result(done)
        assert budget.reserved == 0

    def test_a_failure_ends_it(self) -> None:
        """When one range fails, the delivery fails, and the fetches of the others are cancelled."""
        ranges, consumer = Ranges(), Consumer()
        budget, allowed = lease(3)
        ahead = ReadAhead(ranges.fetch, 0, 100 * SEGMENT, allowed)
        ahead.begin().addErrback(lambda _: None)
        done = Deferred.fromCoroutine(ahead.deliver(consumer))
        ranges.waiting[0].errback(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            result(done)
        assert [waiting.called for waiting in ranges.waiting] == [True] * 3
        assert (consumer.producer, budget.reserved) == (None, 0)

    def test_a_consumer_that_leaves_cancels_the_fetches(self) -> None:
        """A consumer that leaves cancels all fetches, that of the range it waits for included."""
        ranges, consumer = Ranges(), Consumer()
        budget, allowed = lease(2)
        ahead = ReadAhead(ranges.fetch, 0, 100 * SEGMENT, allowed)
        ahead.begin().addErrback(lambda _: None)
        done = Deferred.fromCoroutine(ahead.deliver(consumer))
        consumer.producer.stopProducing()
        with pytest.raises(ConsumerGone):
            result(done)
        assert [waiting.called for waiting in ranges.waiting] == [True] * 2
        assert (consumer.data, budget.reserved) == (b"", 0)


class SlowS3Tests:
    """GETs from an endpoint whose connections are slow."""

    DATA = bytes(range(256)) * 16384  # 4 MiB

    @pytest.fixture
    def slow(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Scripted, S3Bucket]]:
        for module in (readahead, s3front, s3reader):
            for name, value in {
                "FROM_SIZE": 1 << 20,
                "TIMED_BYTES": 1 << 17,
                "SEGMENT": 1 << 18,
                "LEAD": 1 << 19,
            }.items():
                monkeypatch.setattr(module, name, value, raising=False)
        with scripted() as (endpoint, engine):
            bucket = S3Bucket("primary", engine.settings("bucket"), reactor, 4, Upkeep(tmp_path / "state"))
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
        """All bytes are delivered in order, from ranges of the same object."""
        endpoint, bucket = slow
        assert await self.read(bucket) == self.DATA
        ranges = self.ranges(endpoint)
        assert len(ranges) >= 8
        assert {call.headers["if-match"] for call in ranges} == {'"etag"'}
        assert sum("range" not in call.headers for call in endpoint.calls) == 1

    @pytest_twisted.ensureDeferred
    async def test_more_gets_than_there_is_memory_for(
        self, slow: tuple[Scripted, S3Bucket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GETs without memory for ranges deliver every byte, and no more segments are reserved than there are."""
        endpoint, bucket = slow
        budget, most, scarce = bucket._reading.ahead, 0, Event()
        assert budget.has_room(12)
        # However loaded this host is, all GETs find S3 slow, and ranges come only when some GET waits for memory.
        monkeypatch.setattr(s3front, "FAST_BYTES_PER_SECOND", float("inf"))

        def script(call: Call) -> Answer:
            if "range" not in call.headers:
                return Answer(do_it_first=True, seconds_per_mib=0.5)
            assert scarce.wait(30)
            return Answer(do_it_first=True)

        endpoint.script = script
        admit = budget.admit

        def watch() -> None:
            nonlocal most
            admit()
            most = max(most, budget.reserved)
            if budget._waiting:
                scarce.set()

        monkeypatch.setattr(budget, "admit", watch)
        readers = [await bucket.get("k") for _ in range(16)]
        consumers = [Consumer() for _ in readers]
        for done in [reader.deliver(consumer) for reader, consumer in zip(readers, consumers, strict=True)]:
            await done
        assert [len(consumer.data) for consumer in consumers] == [len(self.DATA)] * 16
        assert self.ranges(endpoint)
        assert (most, budget.reserved) == (12, 0)

    @pytest_twisted.ensureDeferred
    async def test_a_fast_s3_is_read_on_one_connection(self, slow: tuple[Scripted, S3Bucket]) -> None:
        """A fast S3 is read on one connection."""
        endpoint, bucket = slow
        endpoint.script = lambda _: None
        s3front.FAST_BYTES_PER_SECOND = 1.0  # slower than any machine
        try:
            assert await self.read(bucket) == self.DATA
        finally:
            s3front.FAST_BYTES_PER_SECOND = FAST_BYTES_PER_SECOND
        assert self.ranges(endpoint) == []

    @pytest_twisted.ensureDeferred
    async def test_an_engine_without_ranges(self, slow: tuple[Scripted, S3Bucket]) -> None:
        """An engine without ranges is read on one connection, to the end."""
        endpoint, bucket = slow

        def whole(call: Call) -> Answer:
            if "range" in call.headers:
                return Answer(200, self.DATA[: 1 << 19])
            return Answer(do_it_first=True, seconds_per_mib=0.2)

        endpoint.script = whole
        assert await self.read(bucket) == self.DATA

    @pytest_twisted.ensureDeferred
    async def test_an_object_that_is_replaced_meanwhile(self, slow: tuple[Scripted, S3Bucket]) -> None:
        """The bytes of an object that is replaced are not mixed with those of the new one."""
        endpoint, bucket = slow
        count = []

        def replaced(call: Call) -> Answer:
            count.append(call)
            if len(count) > 4:
                return Answer(412, ERROR % b"PreconditionFailed")
            return Answer(do_it_first=True, seconds_per_mib=0.2)

        endpoint.script = replaced
        with pytest.raises(BucketFailed, match="PreconditionFailed"):
            await self.read(bucket)
        assert self.DATA.startswith(self.got)
        assert len(self.got) < len(self.DATA)

    def test_nobody_waits_for_too_small_an_object(self) -> None:
        """Read-ahead begins at 64 MiB and below 150 MB/s by default."""
        values: Any = (readahead.FROM_SIZE, s3front.FAST_BYTES_PER_SECOND, readahead.LEAD, readahead.SEGMENT)
        assert values == (64 << 20, 150e6, 16 << 20, 4 << 20)
