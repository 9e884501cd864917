"""Cutting a body into parts, as it arrives. What happens to the parts is in `upload`."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.errors import BodyLost
from twisted_storaged.interfaces import IBufferConsumer, IRequestBody
from twisted_storaged.runtime.buffers import BufferPool


@implementer(IBufferConsumer)
class PartStream:
    """A consumer that cuts a body into parts of `buffers.size` bytes, and pauses it while a part waits to be taken.

    A full part is handed over only when more bytes are known to follow, so that the last part is known to be the last.
    """

    def __init__(self, body: IRequestBody, buffers: BufferPool) -> None:
        self._body = body
        self._buffers = buffers
        self._declared = body.declared
        self._length = 0
        #: The part that is being filled. It is full only when all declared bytes have come.
        self._filling: memoryview | None = None
        self._filled = 0
        #: A full part of a body of unknown length: the next byte, or the end, tells whether it is the last.
        self._held: memoryview | None = None
        self._parts: deque[memoryview] = deque()
        self._waiting: Deferred[None] | None = None
        self._failure: Failure | None = None
        self._ended = False
        self._paused = False
        self._stopped = False
        self._begin_part()

    def start(self) -> None:
        """Begin to read the body."""
        self._body.startProducing(self).addCallbacks(self._end, self._break)

    async def next(self) -> memoryview:
        """Wait for the next part and return it, to be given back to `buffers`. An empty body has one empty part.

        Raises:
            Exception: the failure of the body, or the one given to `fail`.
        """
        while not self._parts and self._failure is None:
            self._waiting = Deferred()
            await self._waiting
        self.check()
        part = self._parts.popleft()
        if self._paused and not self._ended and not self._parts:
            self._paused = False
            self._body.resumeProducing()
        if self._failure is not None:
            # The body failed while it was resumed. This part must not look like the last one.
            self._buffers.give_back(part)
            self.check()
        return part

    @property
    def exhausted(self) -> bool:
        """Whether the last part has been taken.

        Raises:
            Exception: the failure of the body, or the one given to `fail`: the parts are not all of it.
        """
        self.check()
        return self._ended and not self._parts

    def check(self) -> None:
        """Raise the failure of the body, or the one given to `fail`, if there is one."""
        if self._failure is not None:
            self._failure.raiseException()

    def stop(self) -> None:
        """Release the body, if it has not ended, all memory, and the failure. No other part may be taken after this."""
        if not self._ended:
            self._ended = True
            self._body.stopProducing()
        self._stopped = True
        self._give_back_parts()
        for memory in (self._held, self._filling):
            if memory is not None:
                self._buffers.give_back(memory)
        self._held = self._filling = None
        # Its traceback has frames that refer to parts.
        self._failure = None

    def fail(self, failure: Failure) -> None:
        """Wake the coroutine that waits in `next` with this failure. Only the first failure counts."""
        if self._stopped:
            return
        self._failure = self._failure or failure
        # `next` raises from now on, so that nobody would take them.
        self._give_back_parts()
        self._wake()

    def room(self) -> memoryview:
        """The memory for the next bytes of the body, for a producer that can read into it and then calls `filled`."""
        assert self._filling is not None
        return self._filling[self._filled :]

    def filled(self, count: int) -> None:
        """Take `count` bytes of the body that were read into `room`, of which the declared length is not exceeded."""
        # A body that was told to stop may still bring what it had read.
        if self._failure is not None or self._stopped:
            return
        self._length += count
        self._filled += count
        # These bytes follow the full part, so that it is not the last one.
        if self._held is not None:
            held, self._held = self._held, None
            self._hand_over(held)
        if self._filling is not None and self._filled == len(self._filling):
            self._cut()

    def write(self, data: bytes) -> None:
        """Take bytes of the body. A producer may write once more after it was paused."""
        if self._declared is not None and self._length + len(data) > self._declared:
            self.fail(Failure(BodyLost(f"more than the {self._declared} declared bytes came")))
        rest = memoryview(data)
        # Handing over a part may end in a failure, or stop the stream, before the next is filled.
        while rest and self._failure is None and not self._stopped:
            room = self.room()
            count = min(len(rest), len(room))
            room[:count] = rest[:count]
            self.filled(count)
            rest = rest[count:]

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
        elif self._failure is None and self._filling is not None:
            last, self._filling = self._filling[: self._filled], None
            # No byte came after the full part, so that it is the last one, and the one begun after it is empty.
            if self._held is not None:
                self._buffers.give_back(last)
                last, self._held = self._held, None
            self._hand_over(last)

    def _break(self, failure: Failure) -> None:
        # So that `stop` does not call `stopProducing` of a body that has ended.
        self._ended = True
        self.fail(failure)

    def _cut(self) -> None:
        """Begin the next part after a full one, unless all declared bytes have come: then `_end` hands it over."""
        part = self._filling
        if self._declared is None:
            self._begin_part()
            self._held = part
        elif self._length < self._declared and part is not None:
            self._begin_part()
            self._hand_over(part)

    def _begin_part(self) -> None:
        size = self._buffers.size
        # A small body must not hold the memory of a whole part.
        if self._declared is not None:
            size = min(size, self._declared - self._length)
        self._filling, self._filled = self._buffers.take(size)[:size], 0

    def _hand_over(self, part: memoryview) -> None:
        self._parts.append(part)
        # Before `_wake`, since the coroutine resumes the body when it takes the part.
        if not self._ended and not self._paused:
            self._paused = True
            self._body.pauseProducing()
        self._wake()

    def _give_back_parts(self) -> None:
        while self._parts:
            self._buffers.give_back(self._parts.popleft())

    def _wake(self) -> None:
        # Replaced first: the coroutine may wait for another part before `callback` returns.
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
