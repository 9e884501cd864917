"""Reading much of an object from a slow S3: several ranges at a time, delivered in order.

Real S3 gives one connection 80 to 100 MB/s, and any number of them. So the first connection is timed, and where it is
S3 that is slow and not the client, ranges further on are fetched beside it. Once the first of them has come, the first
connection is cut off where they begin; until then nothing depends on them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from twisted_storaged.deferreds import ConsumerGone, Gate
from twisted_storaged.s3.segments import Allowance

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

    def __init__(self, fetch: Fetch, start: int, end: int, allowance: Allowance) -> None:
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


class _ClosingGate(Gate):
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
