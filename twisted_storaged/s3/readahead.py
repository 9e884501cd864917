"""Reading a large object from a slow S3: several ranges at a time, delivered in order.

Real S3 gives one connection 80 to 100 MB/s, and any number of them. So the first connection is timed, and where it is
S3 that is slow and not the client, ranges further on are fetched beside it. Once the first of them has come, the first
connection is cut off where they begin; until then nothing depends on them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.deferreds import Gate

#: Objects from this size on, in bytes, are worth it.
FROM_SIZE = 64 << 20
#: So many bytes are timed, and so many per second are not slow.
PROBE = 4 << 20
FAST = 150e6
#: Bytes of one range, and how far on the first of them begins: by then it should have come.
SEGMENT = 4 << 20
LEAD = 16 << 20

#: Fetches the bytes from one offset to before another.
Fetch = Callable[[int, int], Awaitable[bytes]]

_log = Logger()


@implementer(IConsumer, IPushProducer)
class Front:
    """The first connection's bytes on their way to the consumer: counted, timed, and cut off at `end`, if that is set.

    Attributes:
        delivered: how many bytes have gone to the consumer.
        end: the offset at which to stop; None: never.
    """

    def __init__(self, consumer: IConsumer, clock: Any, slow: Callable[[], None]) -> None:
        self._consumer = consumer
        self._clock = clock
        self._slow: Callable[[], None] | None = slow
        self._producer: Any = None
        self._started = self._paused_at = float(clock.seconds())
        self._paused = 0.0
        self.delivered = 0
        self.end: int | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        self._consumer.registerProducer(self, streaming)

    def unregisterProducer(self) -> None:
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        if self.end is not None and self.delivered + len(data) >= self.end:
            data = data[: self.end - self.delivered]
        self.delivered += len(data)
        self._consumer.write(data)
        if self.delivered == self.end:
            self._producer.stopProducing()
        elif self._slow is not None and self.delivered >= PROBE:
            self._judge()

    def pauseProducing(self) -> None:
        self._paused_at = self._clock.seconds()
        self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused += self._clock.seconds() - self._paused_at
        self._producer.resumeProducing()

    def stopProducing(self) -> None:
        self._producer.stopProducing()

    def _judge(self) -> None:
        slow, self._slow = self._slow, None
        waited = self._clock.seconds() - self._started - self._paused
        if slow is not None and self.delivered < FAST * waited:
            slow()


class ReadAhead:
    """The ranges of an object from `start` to before `size`, `width` of them fetched at a time."""

    def __init__(self, fetch: Fetch, start: int, size: int, width: int) -> None:
        self.start = start
        self._fetch = fetch
        self._next = start
        self._size = size
        self._width = width
        self._ranges: deque[Deferred[bytes]] = deque()

    def begin(self) -> Deferred[bytes]:
        """Fetch the first range; the Deferred says how that went, and is for looking only."""
        self._fetch_next()
        seen: Deferred[bytes] = Deferred()
        self._ranges[0].addBoth(_also, seen)
        return seen

    async def deliver(self, consumer: IConsumer) -> None:
        """Write all ranges to `consumer`, in order, as fast as it takes them. Raises what a fetch raised."""
        gate = Gate()
        consumer.registerProducer(gate, True)
        try:
            self._fill()
            while self._ranges:
                data = await self._ranges.popleft()
                self._fill()
                consumer.write(data)
                await gate.opened()
        finally:
            consumer.unregisterProducer()
            for unwanted in self._ranges:
                unwanted.addErrback(lambda _: b"")

    def _fill(self) -> None:
        while len(self._ranges) < self._width and self._next < self._size:
            self._fetch_next()

    def _fetch_next(self) -> None:
        end = min(self._next + SEGMENT, self._size)
        self._ranges.append(Deferred.fromCoroutine(_as_coroutine(self._fetch(self._next, end))))
        self._next = end


async def _as_coroutine(fetching: Awaitable[bytes]) -> bytes:
    return await fetching


def _also(result: bytes | Failure, other: Deferred[bytes]) -> bytes | Failure:
    other.callback(result)
    return result
