"""The consumer of a GET, in front of the answers that it is made of."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.support import Consumer, Producer, SpliceConsumer
from twisted_storaged.buckets.s3.response_body import FAST_BYTES_PER_SECOND, TIMED_BYTES, ResponseSequence


class FrontTests:
    """The first connection."""

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
        """After enough bytes to tell."""
        clock, _, _, front, slow = self.make()
        for _ in range(8):
            clock.advance(TIMED_BYTES / 4 / speed)
            front.write(bytes(TIMED_BYTES // 4))
        assert slow == expected

    def test_the_clients_time_is_not_s3s(self) -> None:
        """A client that computes between two reads does not make S3 slow."""
        clock, consumer, producer, front, slow = self.make()
        front.write(bytes(TIMED_BYTES // 2))
        consumer.producer.pauseProducing()
        clock.advance(1000)
        consumer.producer.resumeProducing()
        front.write(bytes(TIMED_BYTES // 2))
        assert (slow, producer.told) == ([], ["pause", "resume"])

    def test_counts_what_the_consumer_takes_itself(self) -> None:
        """And lets it take no more than up to the end."""
        _, consumer, producer, front, _ = self.make(SpliceConsumer)
        front.end = 7
        consumer.take = lambda _, count: min(count, 5)
        assert [front.take_from(None, 100) for _ in range(2)] == [5, 2]  # type: ignore[arg-type]
        assert (front.delivered, producer.told) == (7, ["stop"])

    def test_a_consumer_may_be_unable_to_take(self) -> None:
        """At all, or now: then it is written to."""
        *_, front, _ = self.make()
        assert front.take_from(None, 100) is None  # type: ignore[arg-type]
        *_, front, _ = self.make(SpliceConsumer)
        assert front.take_from(None, 100) is None  # type: ignore[arg-type]
        assert front.delivered == 0

    def test_is_cut_off_at_the_end(self) -> None:
        """To the byte."""
        _, consumer, producer, front, _ = self.make()
        front.end = 10
        front.write(b"0123456")
        assert producer.told == []
        front.write(b"789abc")
        assert (consumer.data, producer.told) == (b"0123456789", ["stop"])

    def test_is_one_producer_for_all(self) -> None:
        """Who comes later finds the consumer as it is: full, or not there any more."""
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
