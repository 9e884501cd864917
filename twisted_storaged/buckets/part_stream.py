"""Cutting a body into parts, as it arrives."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.errors import BodyLost
from twisted_storaged.runtime.buffers import BufferPool, PartBuffer


@implementer(IConsumer)
class PartStream:
    """Cuts what it consumes into parts, for a coroutine to take; reads no further while a whole part waits.

    A full part is cut off only when more bytes follow, so that the last part is known to be the last.
    """

    def __init__(self, body: IBodyProducer, buffers: BufferPool) -> None:
        self._body = body
        self._buffers = buffers
        self._declared: int | None = None if body.length is UNKNOWN_LENGTH else body.length
        self._length = 0
        self._cut_off = 0
        self._buffer: PartBuffer | None = self._take_buffer()
        self._parts: deque[memoryview] = deque()
        self._waiting: Deferred[None] | None = None
        self._failure: Failure | None = None
        self._ended = False
        self._paused = False
        self._stopped = False

    def start(self) -> None:
        """Begin to read the body."""
        self._body.startProducing(self).addCallbacks(self._end, self._break)

    async def next(self) -> memoryview:
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
        if self._failure is not None:
            # It failed while it was resumed: without what should have followed, this part must not look like the last.
            self._buffers.give_back(part)
            self.check()
        return part

    @property
    def exhausted(self) -> bool:
        """Whether the last part has been taken.

        Raises:
            Exception: what the body failed with, or what `fail` was told: what was taken is not all of it.
        """
        self.check()
        return self._ended and not self._parts

    def check(self) -> None:
        """Raise what the body failed with, or what `fail` was told, if anything."""
        if self._failure is not None:
            self._failure.raiseException()

    def stop(self) -> None:
        """Nobody takes another part: let go of the body if it has not ended, and of all memory and failures.

        A failure has a traceback, whose frames have the parts that they dealt with.
        """
        if not self._ended:
            self._ended = True
            self._body.stopProducing()
        self._stopped = True
        self._give_back_parts()
        if self._buffer is not None:
            self._buffers.give_back(self._buffer.finish())
            self._buffer = None
        self._failure = None

    def fail(self, failure: Failure) -> None:
        """Wake the coroutine with this failure; the first one counts."""
        if self._stopped:
            return
        self._failure = self._failure or failure
        self._give_back_parts()
        self._wake()

    def room(self) -> memoryview:
        """Where the next bytes of the body go, if they can be put there without a copy; then call `filled`."""
        return self._buffer_with_room().room

    def filled(self, count: int) -> None:
        """`count` bytes have been put into `room`."""
        assert self._buffer is not None
        self._length += count
        self._buffer.advance(count)

    def write(self, data: bytes) -> None:
        """Take bytes of the body. A producer may write once more after it was paused."""
        if self._failure is not None or self._stopped:
            return
        self._length += len(data)
        if self._declared is not None and self._length > self._declared:
            self.fail(Failure(BodyLost(f"more than the {self._declared} declared bytes came")))
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._buffer_with_room().fill(rest) :]

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Not needed: the body itself is told to pause."""

    def unregisterProducer(self) -> None:
        """Not needed either."""

    def _end(self, _: None) -> None:
        if self._stopped:
            return
        self._ended = True
        if self._declared is not None and self._length < self._declared:
            self.fail(Failure(BodyLost(f"{self._length} bytes came, {self._declared} were declared")))
        else:
            self._cut()

    def _break(self, failure: Failure) -> None:
        self._ended = True
        self.fail(failure)

    def _buffer_with_room(self) -> PartBuffer:
        assert self._buffer is not None
        if self._buffer.full:
            self._cut()
            self._buffer = self._take_buffer()
        return self._buffer

    def _cut(self) -> None:
        assert self._buffer is not None
        buffer, self._buffer = self._buffer, None
        part = buffer.finish()
        self._cut_off += len(part)
        self._parts.append(part)
        if not self._ended and not self._paused:
            self._paused = True
            self._body.pauseProducing()
        self._wake()

    def _give_back_parts(self) -> None:
        while self._parts:
            self._buffers.give_back(self._parts.popleft())

    def _take_buffer(self) -> PartBuffer:
        size = self._buffers.size
        if self._declared is not None:
            size = min(size, self._declared - self._cut_off)
        return PartBuffer(self._buffers.take(size)[:size])

    def _resume(self) -> None:
        if self._paused and not self._ended and not self._parts:
            self._paused = False
            self._body.resumeProducing()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
