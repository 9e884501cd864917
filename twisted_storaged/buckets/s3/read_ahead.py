"""Read-ahead from a slow S3: several ranges of an object are fetched in parallel, and delivered in order.

Real S3 gives one connection 80 to 100 MB/s, and allows any number of connections. So the first connection of a GET is
timed, and if S3 rather than the client is slow, ranges further on are fetched in parallel. When the first range has
come, the first connection is cut off where that begins; until then nothing depends on the ranges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from twisted_storaged.runtime.concurrency import BackpressureGate, ConsumerGone

#: The least segments of a GET that reads ahead: one is sent while another is fetched.
MIN_SEGMENTS = 2
#: Bytes of a span from which on read-ahead is worth it.
FROM_SIZE = 64 << 20
#: Bytes of one range; and bytes between the current position and the first range, which should come meanwhile.
SEGMENT = 4 << 20
LEAD = 16 << 20

#: Fetches the bytes from one offset up to, but not including, another.
Fetch = Callable[[int, int], Awaitable[bytes]]


class SegmentBudget:
    """The memory for ranges that are read ahead: `total` segments for all GETs, at most `most` for each.

    The bound always holds, since a segment is taken before it is fetched, and given back when its last byte has been
    sent. A GET that was admitted always has at least `MIN_SEGMENTS`, so it never waits for the client of another. One
    that was not reads on one connection until there is room.
    """

    def __init__(self, total: int, most: int) -> None:
        """`total` must be at least `MIN_SEGMENTS`."""
        self._total = total
        self._most = most
        self._admitted: set[SegmentLease] = set()
        self._waiting: deque[SegmentLease] = deque()

    @property
    def reserved(self) -> int:
        """Segments that are in use or set aside for the GETs that were admitted."""
        return sum(lease.reserved for lease in self._admitted)

    @property
    def share(self) -> int:
        """Segments that each admitted GET may have."""
        return max(MIN_SEGMENTS, min(self._most, self._total // max(len(self._admitted), 1)))

    def enter(self, ready: Callable[[SegmentLease], object]) -> SegmentLease:
        """Queue a GET; `ready` is called when it is admitted, now or later. It must `leave` in any case."""
        lease = SegmentLease(self, ready)
        self._waiting.append(lease)
        self.admit()
        return lease

    def has_room(self, count: int) -> bool:
        """Whether `count` more segments can be reserved."""
        return self.reserved + count <= self._total

    def admit(self) -> None:
        """Admit GETs that wait, in order, as far as there is room."""
        while self._waiting and self.has_room(MIN_SEGMENTS):
            lease = self._waiting.popleft()
            self._admitted.add(lease)
            lease.ready(lease)

    def forget(self, lease: SegmentLease) -> None:
        """Remove a GET, whether it was admitted or waits."""
        if lease in self._admitted:
            self._admitted.remove(lease)
            self.admit()
        elif lease in self._waiting:
            self._waiting.remove(lease)


class SegmentLease:
    """The segments of one GET."""

    def __init__(self, budget: SegmentBudget, ready: Callable[[SegmentLease], object]) -> None:
        self._budget = budget
        self._held = 0
        self.ready = ready

    @property
    def reserved(self) -> int:
        """Segments that are in use by this GET or set aside for it."""
        return max(self._held, MIN_SEGMENTS)

    def take(self) -> bool:
        """Take one more, if that is allowed now, as it always is for the first `MIN_SEGMENTS`."""
        allowed = self._held < MIN_SEGMENTS or (self._held < self._budget.share and self._budget.has_room(1))
        self._held += allowed
        return allowed

    def give_back(self) -> None:
        """Give one segment back."""
        self._held -= 1
        self._budget.admit()

    def leave(self) -> None:
        """Give all back, and take no more; may be called again."""
        self._held = 0
        self._budget.forget(self)


class ReadAhead:
    """Fetches an object from `start` up to `end` in ranges, as many in parallel as `lease` has segments.

    It owns the lease and the ranges until it is closed.
    """

    def __init__(self, fetch: Fetch, start: int, end: int, lease: SegmentLease) -> None:
        self.start = start
        self._fetch = fetch
        self._next = start
        self._end = end
        self._lease = lease
        self._ranges: deque[Deferred[bytes]] = deque()

    def begin(self) -> Deferred[bytes]:
        """Fetch the first range. The Deferred fires with a copy of its outcome; the range stays here."""
        # Always allowed, as it is the first segment.
        self._lease.take()
        self._fetch_next()
        seen: Deferred[bytes] = Deferred()
        self._ranges[0].addBoth(_copy_to, seen)
        return seen

    async def deliver(self, consumer: IConsumer) -> None:
        """Write all ranges to `consumer` in order, with back-pressure, and close. Raises what a fetch raised."""
        gate = _ClosingGate(self)
        consumer.registerProducer(gate, True)
        try:
            while self._ranges or self._next < self._end:
                self._fill()
                consumer.write(await self._ranges[0])
                self._ranges.popleft()
                await gate.opened()
                # Not before the gate has opened: until then, the consumer may hold the segment.
                self._lease.give_back()
        except CancelledError:
            # `close` has cancelled the range that was awaited, as the consumer went away.
            raise ConsumerGone from None
        finally:
            consumer.unregisterProducer()
            self.close()

    def close(self) -> None:
        """Cancel the ranges that are being fetched, and drop those that have come; may be called again."""
        unwanted, self._ranges, self._next = self._ranges, deque(), self._end
        for fetching in unwanted:
            # Nobody waits for the range, so that its cancellation would be logged as an unhandled error.
            fetching.addErrback(lambda _: b"")
            fetching.cancel()
        self._lease.leave()

    def _fill(self) -> None:
        while self._next < self._end and self._lease.take():
            self._fetch_next()

    def _fetch_next(self) -> None:
        end = min(self._next + SEGMENT, self._end)
        self._ranges.append(Deferred.fromCoroutine(_as_coroutine(self._fetch(self._next, end))))
        self._next = end


class _ClosingGate(BackpressureGate):
    """A gate that also closes the read-ahead when the consumer goes away, to end the wait for the next range."""

    def __init__(self, ahead: ReadAhead) -> None:
        super().__init__()
        self._ahead = ahead

    def stopProducing(self) -> None:
        super().stopProducing()
        self._ahead.close()


async def _as_coroutine(fetching: Awaitable[bytes]) -> bytes:
    return await fetching


def _copy_to(result: bytes | Failure, other: Deferred[bytes]) -> bytes | Failure:
    other.callback(result)
    return result
