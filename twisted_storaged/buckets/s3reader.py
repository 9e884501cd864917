"""An object of S3, open for reading: its bytes go from S3's socket to the consumer, with no thread in between.

Where S3 is slow and the object large, several ranges of it are fetched at a time: see `s3.readahead`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.buckets.interface import IObjectReader
from twisted_storaged.buckets.objects import ObjectInfo
from twisted_storaged.buckets.share import Share
from twisted_storaged.deferreds import ConsumerGone, deferred
from twisted_storaged.errors import DamagedObject
from twisted_storaged.s3.client import DataPlane, RequestFailed
from twisted_storaged.s3.connection import BodyStream
from twisted_storaged.s3.readahead import FROM_SIZE, LEAD, SEGMENT, Front, ReadAhead
from twisted_storaged.s3.wire import ConnectionFailed

#: Bytes that the ranges of all GETs may take.
READ_AHEAD_BUDGET = 48 << 20
#: Ranges of one GET that are fetched at a time, where the budget allows it.
READ_AHEAD_WIDTH = 10


@implementer(IObjectReader)
class S3Reader:
    """The body of a GetObject of `s3_key`, and what else it takes to read it."""

    def __init__(self, info: ObjectInfo, body: BodyStream, objects: DataPlane, s3_key: str, chunks: Share) -> None:
        self.info = info
        self._body = body
        self._objects = objects
        self._s3_key = s3_key
        self._chunks = chunks
        self._ahead: ReadAhead | None = None

    @deferred
    async def deliver(self, consumer: IConsumer) -> None:
        try:
            with self._chunks.taken():
                if self.info.size < FROM_SIZE:
                    await self._body.deliver(consumer, self._chunks)
                else:
                    await self._deliver_large(consumer)
        except (ConnectionFailed, RequestFailed) as error:
            raise DamagedObject(f"{self.info.key!r} broke off: {error}") from error

    def close(self) -> None:
        self._body.close()

    async def _deliver_large(self, consumer: IConsumer) -> None:
        front = Front(consumer, self._objects.clock, lambda: self._begin_ahead(front))
        try:
            await self._body.deliver(front, self._chunks)
        except ConsumerGone:
            if self._ahead is None or front.delivered != self._ahead.start:
                raise
            await self._ahead.deliver(consumer)

    def _begin_ahead(self, front: Front) -> None:
        start = front.delivered + LEAD
        if start + SEGMENT > self.info.size:
            return
        width = min(READ_AHEAD_WIDTH, READ_AHEAD_BUDGET // (SEGMENT * self._chunks.count))
        ahead = ReadAhead(self._fetch, start, self.info.size, width)

        def take_over(_: bytes) -> None:
            if front.delivered < start:
                self._ahead, front.end = ahead, start

        ahead.begin().addCallbacks(take_over, _go_on_without)

    async def _fetch(self, start: int, end: int) -> bytes:
        answer = await self._objects.get_range(self._s3_key, start, end, self.info.etag)
        if len(answer.body) != end - start:
            raise ConnectionFailed(f"{len(answer.body)} bytes came for a range of {end - start}")
        return answer.body


def _go_on_without(_: Failure) -> Any:
    """The first connection delivers the rest, slowly; if that fails too, it is its failure that counts."""
