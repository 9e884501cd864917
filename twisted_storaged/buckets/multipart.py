"""The way of a body into a bucket: it is cut into parts as it arrives, and a window of parts is in flight at once.

`PartStream` is the IConsumer that cuts; `Uploader` is the order in which things happen; a `PartSink` is what a kind of
bucket does with parts. This is where a half-written object is kept from being seen: of one body, either `whole` or
`complete` is called, once, with every byte in; in all other cases `abort` is, after the last part has come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.buffers import Buffers, PartBuffer
from twisted_storaged.buckets.interface import ObjectInfo
from twisted_storaged.buckets.threads import Run
from twisted_storaged.errors import BodyLost

_log = Logger()


class PartSink(Protocol):
    """Where the parts of one body go. `part` calls may overlap; a part's memory is its own until its call has ended."""

    def whole(self, body: bytearray) -> Deferred[ObjectInfo]:
        """Store a body that fits one part. When it fails, nothing is left of it."""

    def begin(self) -> Deferred[None]:
        """Get ready for parts."""

    def part(self, number: int, body: bytearray) -> Deferred[None]:
        """Take part `number`, counted from 1. All parts but the last have the same size."""

    def complete(self) -> Deferred[ObjectInfo]:
        """All parts are in: make the object durable and visible."""

    def abort(self) -> Deferred[None]:
        """Forget all parts. Also called when `begin` or `complete` failed."""


class BlockingSink(Protocol):
    """The same, in calls that block and raise."""

    def whole(self, body: bytearray) -> ObjectInfo: ...
    def begin(self) -> None: ...
    def part(self, number: int, body: bytearray) -> None: ...
    def complete(self) -> ObjectInfo: ...
    def abort(self) -> None: ...


class InThreads:
    """A PartSink out of a blocking one, whose calls are made by `run`."""

    def __init__(self, sink: BlockingSink, run: Run) -> None:
        self._sink = sink
        self._run = run

    def whole(self, body: bytearray) -> Deferred[ObjectInfo]:
        return self._run(self._sink.whole, body)

    def begin(self) -> Deferred[None]:
        return self._run(self._sink.begin)

    def part(self, number: int, body: bytearray) -> Deferred[None]:
        return self._run(self._sink.part, number, body)

    def complete(self) -> Deferred[ObjectInfo]:
        return self._run(self._sink.complete)

    def abort(self) -> Deferred[None]:
        return self._run(self._sink.abort)


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


class Window:
    """How many parts of one body may be in flight: from `least` to `most`, so that all bodies keep to `total`.

    One body alone has the whole of a slow network; many together do not take more memory than there is.
    """

    def __init__(self, total: int, least: int, most: int) -> None:
        self._total = total
        self._least = least
        self._most = most
        self.bodies = 0

    def __call__(self) -> int:
        """The number as of now."""
        return max(self._least, min(self._most, self._total // max(self.bodies, 1)))

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Count one more body."""
        self.bodies += 1
        try:
            yield
        finally:
            self.bodies -= 1


class InFlight:
    """The calls that are under way, at most `limit()` of them."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._count = 0
        self._waiting: Deferred[None] | None = None

    def add(self, call: Deferred[Any]) -> None:
        """Count a call until it has ended."""
        self._count += 1
        call.addBoth(self._ended)

    async def room(self) -> None:
        """Wait until there is room for one more."""
        await self._below(self._limit)

    async def landed(self) -> None:
        """Wait until there is none."""
        await self._below(lambda: 1)

    async def _below(self, limit: Callable[[], int]) -> None:
        while self._count >= limit():
            self._waiting = Deferred()
            await self._waiting

    def _ended(self, _: object) -> None:
        self._count -= 1
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)


@dataclass(frozen=True)
class Uploader:
    """How a bucket uploads: in parts of `buffers.size` bytes, as many at once as `window` says."""

    buffers: Buffers
    window: Window

    async def store(self, body: IBodyProducer, sink: PartSink) -> ObjectInfo:
        """Read `body` into `sink`.

        Raises:
            Exception: what the body or the sink failed with; the sink is as it was before, if it could be reached.
        """
        stream = PartStream(body, self.buffers)
        stream.start()
        try:
            first = await stream.next()
            if not stream.exhausted:
                return await self._store_parts(first, stream, sink)
            info = await sink.whole(first)
            self.buffers.give_back(first)
            return info
        finally:
            stream.stop()

    async def _store_parts(self, first: bytearray, stream: PartStream, sink: PartSink) -> ObjectInfo:
        try:
            await sink.begin()
            with self.window.uploading():
                await self._send(first, stream, sink)
            stream.check()
            return await sink.complete()
        except BaseException:
            await self._abort(sink)
            raise

    async def _send(self, first: bytearray, stream: PartStream, sink: PartSink) -> None:
        in_flight = InFlight(self.window)

        def send(number: int, part: bytearray) -> None:
            sent = sink.part(number, part)
            in_flight.add(sent.addCallbacks(lambda _: self.buffers.give_back(part), stream.fail))

        try:
            send(1, first)
            number = 1
            while not stream.exhausted:
                await in_flight.room()
                number += 1
                send(number, await stream.next())
        finally:
            # A part that lands after the abort would stay for ever.
            await in_flight.landed()

    async def _abort(self, sink: PartSink) -> None:
        try:
            await sink.abort()
        except Exception as error:  # noqa: BLE001 (what the upload failed with is what the client hears)
            _log.error("an upload could not be aborted: {error}", error=error)
