"""An object of S3, open for reading: its bytes go from S3's socket to the consumer, with no thread in between."""

from __future__ import annotations

from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from twisted_storaged.buckets.delivery import ChunkBudget
from twisted_storaged.buckets.interface import IObjectReader, ObjectInfo
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import DamagedObject
from twisted_storaged.s3.connection import BodyStream
from twisted_storaged.s3.wire import ConnectionFailed


@implementer(IObjectReader)
class S3Reader:
    """The body of a GetObject."""

    def __init__(self, info: ObjectInfo, body: BodyStream, chunks: ChunkBudget) -> None:
        self.info = info
        self._body = body
        self._chunks = chunks

    @deferred
    async def deliver(self, consumer: IConsumer) -> None:
        try:
            with self._chunks.reading():
                await self._body.deliver(consumer, self._chunks.chunk)
        except ConnectionFailed as error:
            raise DamagedObject(f"{self.info.key!r} broke off: {error}") from error

    def close(self) -> None:
        self._body.close()
