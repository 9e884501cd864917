"""Cutting a body into parts."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from tests.support import Body, result
from twisted_storaged.buckets.part_stream import PartStream
from twisted_storaged.errors import BodyLost
from twisted_storaged.runtime.buffers import BufferPool

PART = 4


def started(length: int | None) -> tuple[Body, PartStream]:
    body = Body(length)
    stream = PartStream(body, BufferPool(PART, keep=9))
    stream.start()
    return body, stream


def next_part(stream: PartStream) -> bytes:
    return bytes(result(Deferred.fromCoroutine(stream.next())))


def read_in_place(stream: PartStream, data: bytes) -> None:
    stream.room()[: len(data)] = data
    stream.filled(len(data))


class RoomTests:
    """Reading a body straight into the memory of its parts."""

    @pytest.mark.parametrize("length", [7, None])
    def test_asking_for_room_changes_nothing(self, length: int | None) -> None:
        """`room` may be called any number of times: no part is cut, nothing is paused, and it is never empty."""
        body, stream = started(length)
        for data in (b"ab", b"cd", b"efg"):
            before = body.paused
            assert len({len(stream.room()) for _ in range(3)}) == 1
            assert len(stream.room()) >= len(data)
            assert body.paused == before
            read_in_place(stream, data)
        body.end()
        assert [next_part(stream), next_part(stream)] == [b"abcd", b"efg"]
        assert stream.exhausted

    def test_a_part_is_handed_over_as_soon_as_it_is_full(self) -> None:
        """Where the declared length says that more bytes follow, the next byte is not waited for."""
        body, stream = started(7)
        read_in_place(stream, b"abcd")
        assert body.paused
        assert next_part(stream) == b"abcd"
        assert not body.paused

    def test_a_full_part_of_unknown_length_waits(self) -> None:
        """It may be the last: the next byte tells that it is not, the end that it is."""
        body, stream = started(None)
        read_in_place(stream, b"abcd")
        assert not body.paused
        read_in_place(stream, b"e")
        assert body.paused
        assert next_part(stream) == b"abcd"
        read_in_place(stream, b"fgh")
        body.end()
        assert next_part(stream) == b"efgh"
        assert stream.exhausted

    def test_the_last_part_is_not_copied(self) -> None:
        """A part that is shorter than its memory is a view of it."""
        body, stream = started(None)
        memory = stream.room().obj
        read_in_place(stream, b"ab")
        body.end()
        part = result(Deferred.fromCoroutine(stream.next()))
        assert bytes(part) == b"ab"
        assert part.obj is memory

    def test_bytes_after_a_failure_are_dropped(self) -> None:
        """A producer that was not stopped yet still finds room, and no part comes of what it reads."""
        body, stream = started(None)
        stream.write(b"abcde")
        body.fail(BodyLost("gone"))
        for _ in range(3):
            read_in_place(stream, b"abc")
        with pytest.raises(BodyLost):
            next_part(stream)
