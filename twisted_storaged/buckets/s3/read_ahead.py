"""Reading much of an object from a slow S3: several ranges at a time, delivered in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from twisted_storaged.runtime.concurrency import BackpressureGate, ConsumerGone

# The memory for ranges of objects that are fetched ahead, as a number of segments that all GETs share.
#
# The bound holds at every moment, however GETs come and go: a segment is taken before it is fetched, and given back
# when its last byte has been sent. A GET that was let in always has at least `LEAST` segments, so none waits for
# another's client; one that finds no room is not let in until there is, and reads on one connection meanwhile.

#: Segments of each GET that reads ahead: one is sent while another is fetched.
MIN_SEGMENTS = 2


class SegmentBudget:
    """At most `total` segments, at most `most` of which one GET may have."""

    def __init__(self, total: int, most: int) -> None:
        """`total` is at least LEAST."""
        self._total = total
        self._most = most
        self._inside: set[SegmentLease] = set()
        self._waiting: deque[SegmentLease] = deque()

    @property
    def reserved(self) -> int:
        """Segments that are in use, or set aside."""
        return sum(allowance.reserved for allowance in self._inside)

    @property
    def share(self) -> int:
        """Segments that one of those inside may have."""
        return max(MIN_SEGMENTS, min(self._most, self._total // max(len(self._inside), 1)))

    def enter(self, ready: Callable[[SegmentLease], object]) -> SegmentLease:
        """Let in one more; `ready` is called when there is room, at once or later. It must `leave` in any case."""
        allowance = SegmentLease(self, ready)
        self._waiting.append(allowance)
        self.let_in()
        return allowance

    def has_room(self, count: int) -> bool:
        """Whether so many segments more can be reserved."""
        return self.reserved + count <= self._total

    def let_in(self) -> None:
        """Let in who waits, as far as there is room."""
        while self._waiting and self.has_room(MIN_SEGMENTS):
            allowance = self._waiting.popleft()
            self._inside.add(allowance)
            allowance.ready(allowance)

    def forget(self, allowance: SegmentLease) -> None:
        """One has left."""
        if allowance in self._inside:
            self._inside.remove(allowance)
            self.let_in()
        elif allowance in self._waiting:
            self._waiting.remove(allowance)


class SegmentLease:
    """The segments of one GET."""

    def __init__(self, budget: SegmentBudget, ready: Callable[[SegmentLease], object]) -> None:
        self._budget = budget
        self._held = 0
        self.ready = ready

    @property
    def reserved(self) -> int:
        """Segments that nobody else may have."""
        return max(self._held, MIN_SEGMENTS)

    def take(self) -> bool:
        """Take one more, if that is allowed now. The first LEAST always are."""
        allowed = self._held < MIN_SEGMENTS or (self._held < self._budget.share and self._budget.has_room(1))
        self._held += allowed
        return allowed

    def give_back(self) -> None:
        """Give one back."""
        self._held -= 1
        self._budget.let_in()

    def leave(self) -> None:
        """Give all back, and take no more; may be called again."""
        self._held = 0
        self._budget.forget(self)


# Reading much of an object from a slow S3: several ranges at a time, delivered in order.
#
# Real S3 gives one connection 80 to 100 MB/s, and any number of them. So the first connection is timed, and where it
# is S3 that is slow and not the client, ranges further on are fetched beside it. Once the first of them has come, the
# first connection is cut off where they begin; until then nothing depends on them.

#: Spans from this size on, in bytes, are worth it.
FROM_SIZE = 64 << 20
#: Bytes of one range, and how far on the first of them begins: by then it should have come.
SEGMENT = 4 << 20
LEAD = 16 << 20

#: Fetches the bytes from one offset to before another.
Fetch = Callable[[int, int], Awaitable[bytes]]


class ReadAhead:
    """The ranges of an object from `start` to before `end`, of which as many are fetched at a time as `allowance` has
    segments for. It owns the allowance, and whatever is fetched, until it is closed."""

    def __init__(self, fetch: Fetch, start: int, end: int, allowance: SegmentLease) -> None:
        self.start = start
        self._fetch = fetch
        self._next = start
        self._end = end
        self._allowance = allowance
        self._ranges: deque[Deferred[bytes]] = deque()

    def begin(self) -> Deferred[bytes]:
        """Fetch the first range; the Deferred says how that went, and is for looking only."""
        self._allowance.take()
        self._fetch_next()
        seen: Deferred[bytes] = Deferred()
        self._ranges[0].addBoth(_also, seen)
        return seen

    async def deliver(self, consumer: IConsumer) -> None:
        """Write all ranges to `consumer`, in order, as fast as it takes them, and close. Raises what a fetch raised."""
        gate = _ClosingGate(self)
        consumer.registerProducer(gate, True)
        try:
            while self._ranges or self._next < self._end:
                self._fill()
                consumer.write(await self._ranges[0])
                self._ranges.popleft()
                await gate.opened()
                self._allowance.give_back()
        except CancelledError:
            raise ConsumerGone from None
        finally:
            consumer.unregisterProducer()
            self.close()

    def close(self) -> None:
        """Cancel what is being fetched, and let go of what has come; may be called again."""
        unwanted, self._ranges, self._next = self._ranges, deque(), self._end
        for fetching in unwanted:
            fetching.addErrback(lambda _: b"")
            fetching.cancel()
        self._allowance.leave()

    def _fill(self) -> None:
        while self._next < self._end and self._allowance.take():
            self._fetch_next()

    def _fetch_next(self) -> None:
        end = min(self._next + SEGMENT, self._end)
        self._ranges.append(Deferred.fromCoroutine(_as_coroutine(self._fetch(self._next, end))))
        self._next = end


class _ClosingGate(BackpressureGate):
    """A gate that also ends the fetch which is waited for when the consumer goes away."""

    def __init__(self, ahead: ReadAhead) -> None:
        super().__init__()
        self._ahead = ahead

    def stopProducing(self) -> None:
        super().stopProducing()
        self._ahead.close()


async def _as_coroutine(fetching: Awaitable[bytes]) -> bytes:
    return await fetching


def _also(result: bytes | Failure, other: Deferred[bytes]) -> bytes | Failure:
    other.callback(result)
    return result
