"""Delivering an object to a consumer."""

from __future__ import annotations

import pytest

from tests.support import BytesSource, Consumer, RunLater, result, run_now
from twisted_storaged.buckets.local.files import ALIGNMENT
from twisted_storaged.buckets.local.reader import AHEAD, CHUNK, Chunk, FileReader
from twisted_storaged.errors import BucketError, DamagedObject
from twisted_storaged.model import ObjectInfo, Span
from twisted_storaged.runtime.buffers import DELIVERY_BYTES, DeliveryBudget
from twisted_storaged.runtime.concurrency import ConsumerGone


def reader(source: object, size: int, run: object = run_now) -> FileReader:
    return FileReader(ObjectInfo("key", size, "etag", 0), Span(0, size), source, DeliveryBudget(), run)  # type: ignore[arg-type]


class DeliverTests:
    """Writing an object to a consumer."""

    @pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    def test_all_bytes_arrive(self, size: int) -> None:
        """All bytes are delivered, then the source is closed and the consumer's producer unregistered."""
        source, consumer = BytesSource(b"x" * size), Consumer()
        result(reader(source, size).deliver(consumer))
        assert consumer.data == b"x" * size
        assert source.closed
        assert consumer.producer is None

    def test_no_read_is_spent_on_learning_the_end(self) -> None:
        """A small object is one read, as its size is known."""
        source = BytesSource(b"x" * 10)
        result(reader(source, 10).deliver(Consumer()))
        assert source.reads == 1

    def test_reads_ahead_by_two_chunks_and_no_more(self) -> None:
        """A client that stops reading holds three chunks, and no thread."""
        source, consumer, run = BytesSource(b"x" * 5 * CHUNK), Consumer(), RunLater()
        outcome = reader(source, 5 * CHUNK, run).deliver(consumer)
        assert run.names == ["read"] * AHEAD
        consumer.producer.pauseProducing()
        run.run()
        assert (len(consumer.data), source.reads) == (CHUNK, 1 + AHEAD)
        assert run.names == []
        consumer.producer.resumeProducing()
        run.run()
        result(outcome)
        assert len(consumer.data) == 5 * CHUNK

    def test_what_was_read_first_is_not_always_done_first(self) -> None:
        """Reads that return out of order are delivered in order."""
        data, consumer, run = bytes(range(256)) * (3 * CHUNK // 256 + 1), Consumer(), RunLater()
        outcome = reader(BytesSource(data), len(data), run).deliver(consumer)
        while run.names:
            run.step(-1)
        result(outcome)
        assert consumer.data == data

    def test_every_read_begins_where_a_block_does(self) -> None:
        """Reads are aligned, whatever the share of memory, as O_DIRECT requires."""
        offsets: list[int] = []

        class Noted(BytesSource):
            def read(self, offset: int, size: int) -> Chunk:
                offsets.append(offset)
                return super().read(offset, size)

        open_reader = reader(Noted(b"x" * 3 * CHUNK), 3 * CHUNK)
        open_reader._budget.count = 50
        result(open_reader.deliver(Consumer()))
        assert len(offsets) > 3
        assert not any(offset % ALIGNMENT for offset in offsets)

    def test_waits_until_the_last_chunk_has_left(self) -> None:
        """Delivery ends when the consumer took the last chunk, as the end of the answer starts the idle timer."""
        consumer, run = Consumer(), RunLater()
        outcome = reader(BytesSource(b"x"), 1, run).deliver(consumer)
        consumer.producer.pauseProducing()
        run.step()
        assert consumer.data == b"x"
        assert not outcome.called
        consumer.producer.resumeProducing()
        result(outcome)

    def test_what_the_source_does_not_pass_is_not_delivered(self) -> None:
        """A chunk that `check` refuses is not written to the consumer."""

        class Damaged(BytesSource):
            def check(self, chunk: Chunk) -> None:
                if bytes(chunk.data) == b"yy":
                    raise DamagedObject("bad")

        source, consumer = Damaged(b"x" * 2 * CHUNK + b"yy"), Consumer()
        with pytest.raises(DamagedObject, match="bad"):
            result(reader(source, 2 * CHUNK + 2).deliver(consumer))
        assert consumer.data == b"x" * 2 * CHUNK
        assert source.closed

    def test_a_failed_read_is_passed_on(self) -> None:
        """A failed read is raised after the source was closed."""

        class Broken(BytesSource):
            def read(self, offset: int, size: int) -> Chunk:
                raise BucketError("gone")

        source = Broken(b"")
        with pytest.raises(BucketError, match="gone"):
            result(reader(source, 1).deliver(Consumer()))
        assert source.closed

    def test_a_client_that_leaves_closes_the_source(self) -> None:
        """When the client disconnects, the source is closed after the reads under way."""
        source, consumer, run = BytesSource(b"x" * 3 * CHUNK), Consumer(), RunLater()
        outcome = reader(source, 3 * CHUNK, run).deliver(consumer)
        producer = consumer.producer
        producer.pauseProducing()
        run.step()
        producer.stopProducing()
        assert run.names == ["read"] * AHEAD
        run.step()
        assert not source.closed
        run.run()
        with pytest.raises(ConsumerGone):
            result(outcome)
        assert source.closed


class BudgetTests:
    """How much memory GETs hold together."""

    def test_what_is_held_is_counted(self) -> None:
        """Memory is counted from the read until the bytes were sent, or the client disconnected."""
        budget, consumer, run = DeliveryBudget(), Consumer(), RunLater()
        info, data = ObjectInfo("key", 9 * CHUNK, "etag", 0), b"x" * 9 * CHUNK
        outcome = FileReader(info, Span(0, 9 * CHUNK), BytesSource(data), budget, run).deliver(consumer)
        consumer.producer.pauseProducing()
        run.run()
        assert (budget.count, budget.held) == (1, (AHEAD + 1) * CHUNK)
        consumer.producer.stopProducing()
        with pytest.raises(ConsumerGone):
            result(outcome)
        assert (budget.count, budget.held) == (0, 0)

    def test_all_clients_are_served_when_others_hold_everything(self) -> None:
        """A GET that finds no free memory makes smallest reads, and delivers every byte."""
        budget = DeliveryBudget(total=3 * CHUNK)
        first = budget.join(AHEAD + 1)
        first.hold(3 * CHUNK)
        consumer, data = Consumer(), bytes(range(256)) * 4096
        source = BytesSource(data)
        info = ObjectInfo("key", len(data), "etag", 0)
        result(FileReader(info, Span(0, len(data)), source, budget, run_now).deliver(consumer))
        assert consumer.data == data
        assert source.reads == len(data) // budget.least
        assert budget.held == 3 * CHUNK

    def test_slow_clients_together(self) -> None:
        """A thousand clients that read nothing hold no more than the total, and one smallest read each."""
        budget, run, size = DeliveryBudget(), RunLater(), 8 * CHUNK
        for _ in range(1000):
            source = BytesSource(b"x" * size)
            reader = FileReader(ObjectInfo("key", size, "etag", 0), Span(0, size), source, budget, run)
            consumer = Consumer(paused=True)
            reader.deliver(consumer)
            run.run()
        assert budget.held <= DELIVERY_BYTES + 1000 * budget.least
