"""Cutting a body into parts, as it arrives."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.buffers import Buffers, PartBuffer
from twisted_storaged.errors import BodyLost


@implementer(IConsumer)
class PartStream:
    """Cuts what it consumes into parts, for a coroutine to take; reads no further while a whole part waits.

    A full part is cut off only when more bytes follow, so that the last part is known to be the last.
    """

    def __init__(self, body: IBodyProducer, buffers: Buffers) -> None:
        self._body = body
        self._buffers = buffers
        self._declared: int | None = None if body.length is UNKNOWN_LENGTH else body.length
        self._length = 0
        self._cut_off = 0
        self._buffer = self._take_buffer()
        self._parts: deque[bytearray] = deque()
        self._waiting: Deferred[None] | None = None
        self._failure: Failure | None = None
        self._ended = False
        self._paused = False

    def start(self) -> None:
        """Begin to read the body."""
        self._body.startProducing(self).addCallbacks(self._end, self._break)

    async def next(self) -> bytearray:
        """The next part; there is always a first one, if an empty one.

        Raises:
            Exception: what the body failed with, or what `fail` was told.
        """
        while not self._parts and self._failure is None:
            self._waiting = Deferred()
            await self._waiting
        self.check()
        part = self._parts.popleft()
        self._resume()
        return part

    @property
    def exhausted(self) -> bool:
        """Whether the last part has been taken."""
        return self._ended and not self._parts

    def check(self) -> None:
        """Raise what the body failed with, or what `fail` was told, if anything."""
        if self._failure is not None:
            self._failure.raiseException()

    def stop(self) -> None:
        """Nobody takes another part: let go of the body if it has not ended."""
        if not self._ended:
            self._ended = True
            self._body.stopProducing()

    def fail(self, failure: Failure) -> None:
        """Wake the coroutine with this failure; the first one counts."""
        self._failure = self._failure or failure
        self._parts.clear()
        self._wake()

    def room(self) -> memoryview:
        """Where the next bytes of the body go, if they can be put there without a copy; then call `filled`."""
        self._cut_if_full()
        return self._buffer.room

    def filled(self, count: int) -> None:
        """`count` bytes have been put into `room`."""
        self._length += count
        self._buffer.advance(count)

    def write(self, data: bytes) -> None:
        """Take bytes of the body. A producer may write once more after it was paused."""
        if self._failure is not None:
            return
        self._length += len(data)
        if self._declared is not None and self._length > self._declared:
            self.fail(Failure(BodyLost(f"more than the {self._declared} declared bytes came")))
            return
        rest = memoryview(data)
        while rest:
            self._cut_if_full()
            rest = rest[self._buffer.fill(rest) :]

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Not needed: the body itself is told to pause."""

    def unregisterProducer(self) -> None:
        """Not needed either."""

    def _end(self, _: None) -> None:
        self._ended = True
        if self._declared is not None and self._length < self._declared:
            self.fail(Failure(BodyLost(f"{self._length} bytes came, {self._declared} were declared")))
        else:
            self._cut()

    def _break(self, failure: Failure) -> None:
        self._ended = True
        self.fail(failure)

    def _cut_if_full(self) -> None:
        if self._buffer.full:
            self._cut()
            self._buffer = self._take_buffer()

    def _cut(self) -> None:
        part = self._buffer.finish()
        self._cut_off += len(part)
        self._parts.append(part)
        if not self._ended and not self._paused:
            self._paused = True
            self._body.pauseProducing()
        self._wake()

    def _take_buffer(self) -> PartBuffer:
        return self._buffers.take(None if self._declared is None else self._declared - self._cut_off)

    def _resume(self) -> None:
        if self._paused and not self._ended and not self._parts:
            self._paused = False
            self._body.resumeProducing()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
