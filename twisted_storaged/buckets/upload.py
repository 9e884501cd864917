"""Uploading a body to a bucket in parts, with several parts in flight at once, and computing its digests on the way.

`part_stream` cuts the body, `Uploader` orders the steps, and a `PartSink` is what a kind of bucket does with the parts.
An incomplete object never becomes visible: of one body, either `whole` or `complete` is called, once, after every byte
has arrived; in all other cases `abort` is, after the last part has been processed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged.buckets.part_stream import PartStream
from twisted_storaged.errors import DigestMismatch
from twisted_storaged.interfaces import IRequestBody
from twisted_storaged.model import Digests, ObjectInfo, PutOptions
from twisted_storaged.runtime.buffers import BufferPool, FairShare
from twisted_storaged.runtime.concurrency import InFlight, Run, deferred

#: Buffers that are kept for the next PUT while there is none.
KEEP_IDLE = 2

_log = Logger()


class PartSink(Protocol):
    """The destination of one body. Calls of `part` may overlap; each may use the memory of its part until it ends."""

    def whole(self, body: memoryview) -> Awaitable[ObjectInfo]:
        """Store a body that fits into one part. On failure, nothing of it is left."""

    def begin(self) -> Deferred[None]:
        """Prepare for parts."""

    def part(self, number: int, body: memoryview) -> Deferred[None]:
        """Store part `number`, counted from 1. All parts but the last have the same size."""

    def complete(self) -> Deferred[ObjectInfo]:
        """Make the object of all parts durable and visible."""

    def abort(self) -> Deferred[None]:
        """Discard all parts. Also called after `begin` or `complete` failed."""


class BlockingSink(Protocol):
    """A PartSink whose calls block and raise."""

    def whole(self, body: memoryview) -> ObjectInfo: ...
    def begin(self) -> None: ...
    def part(self, number: int, body: memoryview) -> None: ...
    def complete(self) -> ObjectInfo: ...
    def abort(self) -> None: ...


class ThreadedSink:
    """Adapts a BlockingSink to a PartSink: its calls are made by `run`."""

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
    """Uploads bodies to a bucket in parts of `buffers.size` bytes.

    Attributes:
        buffers: the memory of parts.
        window: the maximum number of parts of one body that are in flight at once.
        running: the streams of the bodies that are being stored.
    """

    buffers: BufferPool
    window: FairShare
    running: set[PartStream] = field(default_factory=set)

    async def store(self, body: IRequestBody, sink: PartSink, digesting: BodyDigests) -> ObjectInfo:
        """Store `body` in `sink`, and compute its digests with `digesting`; the result has them.

        Raises:
            DigestMismatch: the body does not have an expected digest.
            Exception: the failure of the body or the sink. Nothing is left in the sink, unless it could not be reached.
        """
        buffered = body.buffered
        if buffered is not None and len(buffered) <= self.buffers.size:
            # Most bodies are small and arrived with the headers: there is nothing to wait for or to cut.
            return await self._store_whole(buffered, sink, digesting)
        stream = PartStream(body, self.buffers)
        self.running.add(stream)
        stream.start()
        try:
            return await self._store(stream, sink, digesting)
        except BaseException as error:
            _clear_frames(error)
            raise
        finally:
            # Also where `stream` has failed: parts that were not taken are given back.
            stream.stop()
            self.running.discard(stream)
            # What many uploads needed is not kept for a load that may never come again.
            if not self.running:
                self.buffers.trim(KEEP_IDLE)

    async def _store(self, stream: PartStream, sink: PartSink, digesting: BodyDigests) -> ObjectInfo:
        first = await stream.next()
        if stream.exhausted:
            # It fits into one part, which could not be known before if its length was not declared.
            try:
                return await self._store_whole(first, sink, digesting)
            finally:
                self.buffers.give_back(first)
        return await self._store_parts(first, stream, sink, digesting)

    async def _store_whole(self, body: memoryview, sink: PartSink, digesting: BodyDigests) -> ObjectInfo:
        if digesting:
            await digesting.take(body)
        digests = digesting.check()
        info = await sink.whole(body)
        return info._replace(digests=digests) if digests else info

    async def _store_parts(
        self, first: memoryview, stream: PartStream, sink: PartSink, digesting: BodyDigests
    ) -> ObjectInfo:
        try:
            try:
                await sink.begin()
            except BaseException:
                # Parts are given back when they have been sent, which this one will not be.
                self.buffers.give_back(first)
                raise
            # Only while parts are sent: the bodies that send some at the same time share the total.
            with self.window.taken():
                await self._send(first, stream, sink, digesting)
            # A part may have failed after the last one was sent.
            stream.check()
            # Before the object becomes visible, as it must not replace the old one with a wrong digest.
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
                # Wait for both even if one fails, as each uses the memory of the part.
                sent = _both(sent, digesting.take(part))
            # After a failure as well: the calls that used the memory have ended.
            sent.addBoth(self._given_back, part)
            # A part that fails ends the wait for the next one, which a slow client may not send for a long time.
            in_flight.add(sent.addErrback(stream.fail))

        try:
            send(1, first)
            number = 1
            while not stream.exhausted:
                await in_flight.room()
                number += 1
                send(number, await stream.next())
        finally:
            # A part that is stored after the abort would never be removed.
            await in_flight.landed()

    def _given_back(self, result: object, part: memoryview) -> object:
        self.buffers.give_back(part)
        return result

    async def _abort(self, sink: PartSink) -> None:
        try:
            await sink.abort()
        except Exception as error:  # noqa: BLE001 (the client is told why the upload failed)
            _log.error("cannot abort an upload, whose parts may remain: {error}", error=error)


def _clear_frames(error: BaseException) -> None:
    """Clear the local variables of the frames in the traceback of an error, and of its causes.

    They refer to parts, whose memory would be kept as long as the error, which may be in a reference cycle.
    """
    found: BaseException | None = error
    seen: set[int] = set()  # causes may form a cycle
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


@deferred
async def _both(one: Deferred[None], other: Deferred[None]) -> None:
    """Wait for both; fail with the failure of `one`, else with that of `other`."""
    for _, result in await DeferredList([one, other], consumeErrors=True):
        if isinstance(result, Failure):
            result.raiseException()


_HASHES = {"md5": "md5", "sha-256": "sha256", "sha-512": "sha512"}


class BodyDigests:
    """Computes the digests of one body that `options` expect or want.

    In threads, since hashing a part takes longer than receiving it.
    """

    def __init__(self, options: PutOptions, run: Run) -> None:
        self._expected = options.expected
        self._hashes = {
            # Otherwise Python refuses MD5 on a system in FIPS mode.
            name: hashlib.new(_HASHES[name], usedforsecurity=False)
            for name in sorted({*options.expected, *options.wanted})
        }
        self._run = run
        # Parts are hashed in order, one at a time.
        self._lock = DeferredLock()

    def __bool__(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._hashes)

    def take(self, part: memoryview) -> Deferred[None]:
        """Hash the next part, whose memory is in use until the Deferred has fired."""
        return self._lock.run(self._run, self._update, part)

    def check(self) -> Digests:
        """Return the digests of all parts, after the last one was hashed.

        Raises:
            DigestMismatch: one is not the expected one.
        """
        digests = {name: running.digest() for name, running in self._hashes.items()}
        for name, expected in self._expected.items():
            if digests[name] != expected:
                raise DigestMismatch(f"the body has another {name} digest than the one given")
        return digests

    def _update(self, part: memoryview) -> None:
        for running in self._hashes.values():
            running.update(part)
