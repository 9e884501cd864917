"""ResponseSequence, the consumer of all responses of one GET."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.support import Consumer, Producer, SpliceConsumer
from twisted_storaged.buckets.s3.response_body import FAST_BYTES_PER_SECOND, TIMED_BYTES, ResponseSequence


class FrontTests:
    """One producer for several responses."""

    def make(
        self, make_consumer: type[Consumer] = Consumer
    ) -> tuple[Clock, Any, Producer, ResponseSequence, list[int]]:
        clock, consumer, producer, slow = Clock(), make_consumer(), Producer(), []
        front: ResponseSequence = ResponseSequence(consumer, clock, lambda: slow.append(front.delivered))
        front.open()
        front.registerProducer(producer, True)
        return clock, consumer, producer, front, slow

    @pytest.mark.parametrize(
        ("speed", "expected"), [(FAST_BYTES_PER_SECOND * 1.1, []), (FAST_BYTES_PER_SECOND * 0.9, [TIMED_BYTES])]
    )
    def test_says_once_whether_s3_is_slow(self, speed: float, expected: list[int]) -> None:
        """A slow S3 is reported once, after enough bytes to measure its speed."""
        clock, _, _, front, slow = self.make()
        for _ in range(8):
            clock.advance(TIMED_BYTES / 4 / speed)
            front.write(bytes(TIMED_BYTES // 4))
        assert slow == expected

    def test_the_clients_time_is_not_s3s(self) -> None:
        """The time in which the client is paused does not count as that of S3."""
        clock, consumer, producer, front, slow = self.make()
        front.write(bytes(TIMED_BYTES // 2))
        consumer.producer.pauseProducing()
        clock.advance(1000)
        consumer.producer.resumeProducing()
        front.write(bytes(TIMED_BYTES // 2))
        assert (slow, producer.told) == ([], ["pause", "resume"])

    def test_counts_what_the_consumer_takes_itself(self) -> None:
        """Bytes that the consumer takes from the socket are counted, and limited to the end."""
        _, consumer, producer, front, _ = self.make(SpliceConsumer)
        front.end = 7
        consumer.take = lambda _, count: min(count, 5)
        assert [front.take_from(None, 100) for _ in range(2)] == [5, 2]  # type: ignore[arg-type]
        assert (front.delivered, producer.told) == (7, ["stop"])

    def test_a_consumer_may_be_unable_to_take(self) -> None:
        """A consumer that cannot take bytes from the socket takes none."""
        *_, front, _ = self.make()
        assert front.take_from(None, 100) is None  # type: ignore[arg-type]
        *_, front, _ = self.make(SpliceConsumer)
        assert front.take_from(None, 100) is None  # type: ignore[arg-type]
        assert front.delivered == 0

    def test_is_cut_off_at_the_end(self) -> None:
        """The producer is stopped at exactly the end, and surplus bytes are dropped."""
        _, consumer, producer, front, _ = self.make()
        front.end = 10
        front.write(b"0123456")
        assert producer.told == []
        front.write(b"789abc")
        assert (consumer.data, producer.told) == (b"0123456789", ["stop"])

    def test_is_one_producer_for_all(self) -> None:
        """A producer that is registered later is paused or stopped if the consumer is full or gone."""
        _, consumer, _, front, _ = self.make()
        front.unregisterProducer()
        consumer.producer.pauseProducing()
        second = Producer()
        front.registerProducer(second, True)
        assert (consumer.producer, second.told) == (front, ["pause"])
        consumer.producer.resumeProducing()
        front.unregisterProducer()
        consumer.producer.stopProducing()
        third = Producer()
        front.registerProducer(third, True)
        front.write(b"too late")
        assert (second.told, third.told, consumer.data) == (["pause", "resume"], ["stop"], b"")
