"""Uploading a body: parts, the window, back-pressure, failures, and the memory of parts."""

from __future__ import annotations

from traceback import walk_tb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.support import Body, BytesBody, RunLater, result, run_now
from twisted_storaged.buckets.upload import KEEP_IDLE, BodyDigests, ThreadedSink, Uploader
from twisted_storaged.errors import BodyLost, BucketError, DigestMismatch
from twisted_storaged.model import NO_OPTIONS, ObjectInfo, PutOptions
from twisted_storaged.runtime.buffers import BufferPool, FairShare

PART = 10


class CountedBuffers(BufferPool):
    """A pool that counts the pieces that were taken and not given back."""

    def __init__(self) -> None:
        super().__init__(PART, keep=100)
        self.owned = 0

    def take(self, size: int) -> memoryview:
        self.owned += 1
        return super().take(size)

    def give_back(self, piece: memoryview) -> None:
        self.owned -= 1
        super().give_back(piece)


class Sink:
    """A sink that records its calls; the call named by `failing` raises."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.told: list[str] = []
        self.parts: dict[int, bytes] = {}

    def _do(self, what: str) -> None:
        self.told.append(what)
        if what == self.failing:
            raise BucketError(what)

    def whole(self, body: memoryview) -> ObjectInfo:
        self._do("whole")
        self.parts[1] = bytes(body)
        return ObjectInfo("key", len(body), "etag", 0)

    def begin(self) -> None:
        self._do("begin")

    def part(self, number: int, body: memoryview) -> None:
        self._do(f"part {number}")
        self.parts[number] = bytes(body)

    def complete(self) -> ObjectInfo:
        self._do("complete")
        return ObjectInfo("key", sum(map(len, self.parts.values())), "etag", 0)

    def abort(self) -> None:
        self._do("abort")

    @property
    def content(self) -> bytes:
        return b"".join(self.parts[number] for number in sorted(self.parts))


def upload(body: object, sink: Sink, run: object = run_now, window: int = 2) -> Deferred[ObjectInfo]:
    uploader = Uploader(BufferPool(PART, keep=2), FairShare(window, window, window))
    return Deferred.fromCoroutine(uploader.store(body, ThreadedSink(sink, run), BodyDigests(NO_OPTIONS, run)))  # type: ignore[arg-type]


class WholeTests:
    """A body that fits one part."""

    @pytest.mark.parametrize("size", [0, 1, PART - 1, PART])
    @pytest.mark.parametrize("chunked", [True, False])
    def test_is_stored_in_one_call(self, size: int, chunked: bool) -> None:
        """A body that fits into one part is stored by one call of `whole`, even if its length was unknown."""
        sink = Sink()
        info = result(upload(BytesBody(b"x" * size, chunk=3, chunked=chunked), sink))
        assert (sink.told, sink.content, info.size) == (["whole"], b"x" * size, size)

    def test_failure_is_passed_on(self) -> None:
        """A failure of `whole` is raised, and nothing is aborted, as nothing was begun."""
        sink = Sink(failing="whole")
        with pytest.raises(BucketError):
            result(upload(BytesBody(b"x"), sink))
        assert sink.told == ["whole"]


class PartsTests:
    """A body of several parts."""

    @given(
        chunks=st.lists(st.binary(min_size=1, max_size=35), max_size=12),
        known=st.booleans(),
        window=st.integers(1, 4),
    )
    def test_the_bytes_arrive_in_equal_parts(self, chunks: list[bytes], known: bool, window: int) -> None:
        """For any chunks, all parts but the last have the same size, and joined they are the body."""
        data = b"".join(chunks)
        sink, body = Sink(), Body(len(data) if known else None)
        outcome = upload(body, sink, window=window)
        for chunk in chunks:
            body.send(chunk)
        body.end()
        assert result(outcome).size == len(data)
        assert sink.content == data
        assert {len(part) for number, part in sink.parts.items() if number < max(sink.parts)} <= {PART}
        assert sink.told[-1] == ("complete" if len(data) > PART else "whole")

    def test_begin_waits_for_a_second_part(self) -> None:
        """A full part of a body of unknown length is held until more bytes arrive: it may be the whole body."""
        sink, body = Sink(), Body()
        outcome = upload(body, sink)
        body.send(b"x" * PART)
        assert sink.told == []
        body.send(b"y")
        assert sink.told == ["begin", "part 1"]
        body.end()
        result(outcome)

    def test_parts_leave_while_more_bytes_come(self) -> None:
        """Parts are stored while the body is still being received."""
        sink, body = Sink(), Body()
        outcome = upload(body, sink)
        for _ in range(35):
            body.send(b"x")
        assert sink.told == ["begin", "part 1", "part 2", "part 3"]
        body.end()
        result(outcome)

    @pytest.mark.parametrize("sent", [14, 16, 100])
    def test_a_length_that_was_not_true_stores_nothing(self, sent: int) -> None:
        """A body with fewer or more bytes than declared is not stored."""
        sink, body = Sink(), Body(15)
        outcome = upload(body, sink)
        body.send(b"x" * sent)
        if sent < 15:
            body.end()
        with pytest.raises(BodyLost, match="15"):
            result(outcome)
        assert "complete" not in sink.told


class WindowTests:
    """How many parts are in flight, and how much is in memory."""

    def test_no_more_parts_than_the_window_are_in_flight(self) -> None:
        """While the window is full, the next part waits, and the body is paused."""
        sink, body, run = Sink(), Body(), RunLater()
        outcome = upload(body, sink, run, window=2)
        body.send(b"x" * 11)
        run.step()
        assert run.names == ["part"]
        body.send(b"x" * 10)
        assert run.names == ["part", "part"]
        assert not body.paused
        body.send(b"x" * 10)
        assert run.names == ["part", "part"]
        assert body.paused
        run.step()
        assert run.names == ["part", "part"]
        assert not body.paused
        body.end()
        run.run()
        result(outcome)

    def test_a_write_after_the_pause_is_taken(self) -> None:
        """Bytes that a producer writes after it was paused are part of the body."""
        sink, body, run = Sink(), Body(), RunLater()
        outcome = upload(body, sink, run, window=1)
        body.send(b"x" * 21)
        assert body.paused
        body.send(b"y" * 35)
        body.end()
        run.run()
        result(outcome)
        assert sink.content == b"x" * 21 + b"y" * 35

    def test_one_body_alone_has_more_of_it(self) -> None:
        """A single body has the maximum window, several share the total, and none has less than the minimum."""
        window = FairShare(total=16, minimum=4, maximum=8)
        shares = []
        with window.taken():
            shares.append(window())
            with window.taken(), window.taken():
                shares.append(window())
                with window.taken(), window.taken(), window.taken():
                    shares.append(window())
        assert shares == [8, 5, 4]
        assert window.count == 0

    def test_complete_waits_for_every_part(self) -> None:
        """`complete` is called after all parts are stored, in whatever order they were."""
        sink, body, run = Sink(), Body(), RunLater()
        outcome = upload(body, sink, run, window=3)
        body.send(b"x" * 25)
        run.step()
        body.end()
        assert run.names == ["part", "part", "part"]
        run.step(2)
        run.step(1)
        assert run.names == ["part"]
        run.step()
        assert run.names == ["complete"]
        run.step()
        result(outcome)


class FailureTests:
    """After any failure, nothing is left in the sink."""

    @pytest.mark.parametrize("failing", ["begin", "part 1", "part 2", "part 3", "complete"])
    @pytest.mark.parametrize("window", [1, 2, 4])
    def test_failure_of_the_sink_aborts(self, failing: str, window: int) -> None:
        """When a call of the sink fails, `abort` is called once, as the last call."""
        sink = Sink(failing)
        with pytest.raises(BucketError, match=failing):
            result(upload(BytesBody(b"x" * 25, chunk=4), sink, window=window))
        assert sink.told[-1] == "abort"
        assert sink.told.count("abort") == 1

    def test_failure_of_the_body_aborts(self) -> None:
        """When the client disconnects, the parts are discarded."""
        sink, body = Sink(), Body()
        outcome = upload(body, sink)
        body.send(b"x" * 25)
        body.fail(BodyLost())
        with pytest.raises(BodyLost):
            result(outcome)
        assert sink.told == ["begin", "part 1", "part 2", "abort"]

    def test_failure_of_a_short_body_leaves_nothing_to_abort(self) -> None:
        """When the client disconnects within the first part, the sink is not called at all."""
        sink, body = Sink(), Body(5)
        outcome = upload(body, sink)
        body.send(b"x")
        body.fail(BodyLost())
        with pytest.raises(BodyLost):
            result(outcome)
        assert sink.told == []

    def test_a_failed_part_stops_the_peer_at_once(self) -> None:
        """A failure of a part stops the body at once, not when the next part is full."""
        sink, body, run = Sink("part 1"), Body(), RunLater()
        outcome = upload(body, sink, run)
        body.send(b"x" * 11)
        run.run()
        assert body.stopped
        body.send(b"late bytes are dropped" * 10)
        with pytest.raises(BucketError):
            result(outcome)
        assert sink.told == ["begin", "part 1", "abort"]

    def test_abort_waits_for_the_parts_in_flight(self) -> None:
        """`abort` is called after all parts have returned: one that is stored later would never be removed."""
        sink, body, run = Sink("part 1"), Body(), RunLater()
        outcome = upload(body, sink, run)
        body.send(b"x" * 25)
        run.step()
        run.step()
        assert run.names == ["part"]
        assert not outcome.called
        run.step()
        assert run.names == ["abort"]
        run.step()
        with pytest.raises(BucketError):
            result(outcome)

    def test_a_body_that_ends_too_soon_while_its_first_part_is_taken(self) -> None:
        """Its first part is not stored as if it were the whole body."""
        body = BytesBody(b"x" * 12, chunk=11)
        body.declared = 15
        sink = Sink()
        with pytest.raises(BodyLost, match="15"):
            result(upload(body, sink))
        assert sink.told == []

    def test_when_the_abort_fails_too_the_first_failure_counts(self) -> None:
        """When `abort` fails as well, the failure that caused it is raised."""
        sink = Sink("abort")
        body = Body()
        outcome = upload(body, sink)
        body.send(b"x" * 11)
        body.fail(BodyLost())
        with pytest.raises(BodyLost):
            result(outcome)

    def test_a_body_that_ended_is_not_stopped(self) -> None:
        """`stopProducing` is not called on a body that has ended."""
        body = Body()
        outcome = upload(body, Sink())
        body.send(b"x")
        body.end()
        result(outcome)
        assert not body.stopped


class OwnershipTests:
    """The memory of parts is given back on every path."""

    @staticmethod
    def _upload(body: object, sink: Sink, options: PutOptions = NO_OPTIONS) -> tuple[CountedBuffers, Failure | None]:
        buffers = CountedBuffers()
        uploader = Uploader(buffers, FairShare(2, 2, 2))
        storing = Deferred.fromCoroutine(
            uploader.store(body, ThreadedSink(sink, run_now), BodyDigests(options, run_now))  # type: ignore[arg-type]
        )
        outcome: list[object] = []
        storing.addBoth(outcome.append)
        return buffers, outcome[0] if outcome and isinstance(outcome[0], Failure) else None

    @pytest.mark.parametrize("size", [5, PART, 3 * PART, 3 * PART + 1])
    @pytest.mark.parametrize("failing", ["", "whole", "begin", "part 1", "part 2", "part 4", "complete"])
    @pytest.mark.parametrize("chunked", [True, False])
    def test_after_whatever_the_sink_does(self, failing: str, size: int, chunked: bool) -> None:
        """No memory is kept after any call of the sink has failed, or after none did."""
        buffers, _ = self._upload(BytesBody(b"x" * size, chunk=3, chunked=chunked), Sink(failing))
        assert buffers.owned == 0

    @pytest.mark.parametrize("size", [5, 3 * PART])
    def test_after_a_wrong_digest(self, size: int) -> None:
        """No memory is kept of a body that is refused at its end for its digest."""
        options = PutOptions(expected={"md5": b"no"})
        buffers, failure = self._upload(BytesBody(b"x" * size), Sink(), options)
        assert failure is not None
        assert failure.check(DigestMismatch)
        assert buffers.owned == 0

    @pytest.mark.parametrize("sent", [0, 5, PART, PART + 5, 3 * PART + 5])
    def test_after_a_client_that_leaves(self, sent: int) -> None:
        """No memory is kept after a client disconnects, at any point of its body."""
        body, buffers = Body(100), CountedBuffers()
        uploader = Uploader(buffers, FairShare(2, 2, 2))
        storing = Deferred.fromCoroutine(
            uploader.store(body, ThreadedSink(Sink(), run_now), BodyDigests(NO_OPTIONS, run_now))
        )
        body.send(b"x" * sent)
        body.fail(BodyLost("gone"))
        with pytest.raises(BodyLost):
            result(storing)
        assert buffers.owned == 0

    @pytest.mark.parametrize("failing", ["whole", "part 2", "complete"])
    def test_an_error_that_is_kept_keeps_no_part(self, failing: str) -> None:
        """The frames in the traceback of an error do not refer to parts."""
        size = 5 if failing == "whole" else 3 * PART
        _, failure = self._upload(BytesBody(b"x" * size), Sink(failing))
        assert failure is not None
        assert failure.value is not None
        frames = [frame.f_locals for frame, _ in walk_tb(failure.value.__traceback__)]
        assert len(frames) > 2
        assert not any(isinstance(value, memoryview) for variables in frames for value in variables.values())

    def test_an_error_whose_causes_lead_in_a_circle(self) -> None:
        """An error whose causes form a cycle is raised like any other."""
        error, cause = BucketError("one"), BucketError("other")
        error.__cause__, cause.__cause__ = cause, error
        body = Body(100)
        storing = upload(body, Sink())
        body.fail(error)
        with pytest.raises(BucketError, match="one"):
            result(storing)

    def test_few_are_kept_while_there_is_no_put(self) -> None:
        """After the last upload, only a few free buffers are kept."""
        buffers, _ = self._upload(BytesBody(b"x" * 20 * PART), Sink())
        assert len(buffers._free[PART]) <= KEEP_IDLE
