"""The way of a body into a bucket: it is cut into parts as it arrives, and a window of parts is in flight at once.

`part_stream` cuts; `Uploader` is the order in which things happen, and a `PartSink` is what a kind of bucket does with
parts. This is where a half-written object is kept from being seen: of one body, either `whole` or `complete` is called,
once, with every byte in; in all other cases `abort` is, after the last part has come back."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer

from twisted_storaged.buckets.part_stream import PartStream
from twisted_storaged.errors import DigestMismatch
from twisted_storaged.model import Digests, ObjectInfo, PutOptions
from twisted_storaged.runtime.budgets import FairShare
from twisted_storaged.runtime.buffers import BufferPool
from twisted_storaged.runtime.concurrency import InFlight, Run, deferred

# The way of a body into a bucket: it is cut into parts as it arrives, and a window of parts is in flight at once.
#
# `parts` cuts, `inflight` counts those in flight; `Uploader` is the order in which things happen, and a `PartSink` is
# what a kind of bucket does with parts. This is where a half-written object is kept from being seen: of one body,
# either `whole` or `complete` is called, once, with every byte in; in all other cases `abort` is, after the last part
# has come back.

#: Buffers that are kept for the next PUT while there is none.
KEEP_IDLE = 2

_log = Logger()


class PartSink(Protocol):
    """Where the parts of one body go. `part` calls may overlap; a part's memory is its own until its call has ended."""

    def whole(self, body: memoryview) -> Awaitable[ObjectInfo]:
        """Store a body that fits one part. When it fails, nothing is left of it."""

    def begin(self) -> Deferred[None]:
        """Get ready for parts."""

    def part(self, number: int, body: memoryview) -> Deferred[None]:
        """Take part `number`, counted from 1. All parts but the last have the same size."""

    def complete(self) -> Deferred[ObjectInfo]:
        """All parts are in: make the object durable and visible."""

    def abort(self) -> Deferred[None]:
        """Forget all parts. Also called when `begin` or `complete` failed."""


class BlockingSink(Protocol):
    """The same, in calls that block and raise."""

    def whole(self, body: memoryview) -> ObjectInfo: ...
    def begin(self) -> None: ...
    def part(self, number: int, body: memoryview) -> None: ...
    def complete(self) -> ObjectInfo: ...
    def abort(self) -> None: ...


class ThreadedSink:
    """A PartSink out of a blocking one, whose calls are made by `run`."""

    def __init__(self, sink: BlockingSink, run: Run) -> None:
        self._sink = sink
        self._run = run

    def whole(self, body: memoryview) -> Deferred[ObjectInfo]:
        return self._run(self._sink.whole, body)

    def begin(self) -> Deferred[None]:
        return self._run(self._sink.begin)

    def part(self, number: int, body: memoryview) -> Deferred[None]:
        return self._run(self._sink.part, number, body)

    def complete(self) -> Deferred[ObjectInfo]:
        return self._run(self._sink.complete)

    def abort(self) -> Deferred[None]:
        return self._run(self._sink.abort)


@dataclass(frozen=True)
class Uploader:
    """How a bucket uploads: in parts of `buffers.size` bytes, as many at once as `window` says.

    Attributes:
        running: the streams of the bodies that are being stored.
    """

    buffers: BufferPool
    window: FairShare
    running: set[PartStream] = field(default_factory=set)

    async def store(self, body: IBodyProducer, sink: PartSink, digesting: BodyDigests) -> ObjectInfo:
        """Read `body` into `sink`, and what goes by into `digesting`, whose digests the result has.

        Raises:
            DigestMismatch: the body is not what it should be.
            Exception: what the body or the sink failed with; the sink is as it was before, if it could be reached.
        """
        here: memoryview | None = getattr(body, "buffered", None)
        if here is not None and len(here) <= self.buffers.size:
            # Small and complete, as most are: nothing is to be waited for, nor cut.
            return await self._store_whole(here, sink, digesting)
        stream = PartStream(body, self.buffers)
        self.running.add(stream)
        stream.start()
        try:
            return await self._store(stream, sink, digesting)
        except BaseException as error:
            _clear_frames(error)
            raise
        finally:
            stream.stop()
            self.running.discard(stream)
            if not self.running:
                self.buffers.trim(KEEP_IDLE)

    async def _store(self, stream: PartStream, sink: PartSink, digesting: BodyDigests) -> ObjectInfo:
        first = await stream.next()
        if stream.exhausted:
            return await self._store_whole(first, sink, digesting)
        return await self._store_parts(first, stream, sink, digesting)

    async def _store_whole(self, body: memoryview, sink: PartSink, digesting: BodyDigests) -> ObjectInfo:
        try:
            if digesting:
                await digesting.take(body)
            digests = digesting.check()
            info = await sink.whole(body)
        finally:
            self.buffers.give_back(body)
        return info._replace(digests=digests) if digests else info

    async def _store_parts(
        self, first: memoryview, stream: PartStream, sink: PartSink, digesting: BodyDigests
    ) -> ObjectInfo:
        try:
            try:
                await sink.begin()
            except BaseException:
                self.buffers.give_back(first)
                raise
            with self.window.taken():
                await self._send(first, stream, sink, digesting)
            stream.check()
            digests = digesting.check()
            info = await sink.complete()
            return info._replace(digests=digests)
        except BaseException:
            await self._abort(sink)
            raise

    async def _send(self, first: memoryview, stream: PartStream, sink: PartSink, digesting: BodyDigests) -> None:
        in_flight = InFlight(self.window)

        def send(number: int, part: memoryview) -> None:
            sent: Deferred[Any] = sink.part(number, part)
            if digesting:
                # Both are waited for, whichever fails: each has the part's memory.
                sent = _both(sent, digesting.take(part))
            # The call has ended, whichever way: nobody else has the part's memory any more.
            sent.addBoth(self._given_back, part)
            in_flight.add(sent.addErrback(stream.fail))

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

    def _given_back(self, result: object, part: memoryview) -> object:
        self.buffers.give_back(part)
        return result

    async def _abort(self, sink: PartSink) -> None:
        try:
            await sink.abort()
        except Exception as error:  # noqa: BLE001 (what the upload failed with is what the client hears)
            _log.error("an upload could not be aborted: {error}", error=error)


def _clear_frames(error: BaseException) -> None:
    """Forget the local variables of the frames that an error has passed, and of those that led to it.

    Whoever keeps the error, and be it a cycle that waits for the garbage collector, would keep the parts in them.
    """
    found: BaseException | None = error
    seen: set[int] = set()  # causes may lead in a circle
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


@deferred
async def _both(one: Deferred[None], other: Deferred[None]) -> None:
    """Wait for both; fails as the first of them that fails."""
    for _, result in await DeferredList([one, other], consumeErrors=True):
        if isinstance(result, Failure):
            result.raiseException()


# The digests of a body, computed as its parts go by: in threads, as hashing a part takes longer than reading it.

_HASHES = {"md5": "md5", "sha-256": "sha256", "sha-512": "sha512"}


class BodyDigests:
    """Computes what `options` say of one body."""

    def __init__(self, options: PutOptions, run: Run) -> None:
        self._expected = options.expected
        self._hashes = {
            name: hashlib.new(_HASHES[name], usedforsecurity=False)
            for name in sorted({*options.expected, *options.wanted})
        }
        self._run = run
        # Hashes take the parts in their order, one at a time.
        self._turns = DeferredLock()

    def __bool__(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._hashes)

    def take(self, part: memoryview) -> Deferred[None]:
        """Go on with the next part, whose memory is in use until this has fired."""
        return self._turns.run(self._run, self._update, part)

    def check(self) -> Digests:
        """The digests of all parts, once the last has been taken.

        Raises:
            DigestMismatch: one is not as expected.
        """
        digests = {name: running.digest() for name, running in self._hashes.items()}
        for name, expected in self._expected.items():
            if digests[name] != expected:
                raise DigestMismatch(f"the body has another {name} digest than the one given")
        return digests

    def _update(self, part: memoryview) -> None:
        for running in self._hashes.values():
            running.update(part)
