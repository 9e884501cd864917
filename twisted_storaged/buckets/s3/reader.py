"""An object of S3, open for reading: its bytes go from S3's socket to the consumer, with no thread in between.

Where S3 breaks off, what is left is asked for again, of the same object. Where S3 is slow and there is much to read,
several ranges are fetched at a time: see `s3.readahead`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.buckets.s3.client import DataPlane
from twisted_storaged.buckets.s3.read_ahead import FROM_SIZE, LEAD, SEGMENT, ReadAhead, SegmentBudget, SegmentLease
from twisted_storaged.buckets.s3.response_body import BufferedBody, ResponseSequence, StreamedBody, VerifyingConsumer
from twisted_storaged.buckets.s3.responses import RequestFailed, opened
from twisted_storaged.errors import BucketError, BucketUnreachable, StorageError
from twisted_storaged.interfaces import IObjectReader
from twisted_storaged.model import ByteRange, ObjectInfo, Span
from twisted_storaged.protocol.checksums import Verification
from twisted_storaged.protocol.http1 import ConnectionFailed
from twisted_storaged.runtime.buffers import MIN_READ, DeliveryBudget, ReadReservation
from twisted_storaged.runtime.concurrency import ConsumerGone, deferred

#: Bytes that are read at once where verifying them takes long: nothing else happens meanwhile.
SLOW_PIECE = 1 << 18

#: What a GET holds: one read that is sent, and one that may come while it is.
READS = 2

Body = StreamedBody | BufferedBody
#: Is told how the bytes of an object differ from what they should be; raises unless they may be delivered.
Judge = Callable[[str], Awaitable[None]]

_log = Logger()


@dataclass(frozen=True)
class ReadSettings:
    """What the readers of one bucket share.

    Attributes:
        delivering: the memory for bytes on their way to clients.
        resumes: how often a GET that broke off goes on.
        ahead: the memory for ranges that are fetched ahead.
    """

    objects: DataPlane
    delivering: DeliveryBudget
    resumes: int
    ahead: SegmentBudget


@implementer(IObjectReader)
class S3Reader:
    """The body of a GetObject of `s3_key`, which is `span` of the object, and what else it takes to read it."""

    def __init__(self, s3_key: str, info: ObjectInfo, span: Span, body: Body, settings: ReadSettings) -> None:
        self.info = info
        self.span = span
        self._s3_key = s3_key
        self._body: Body | None = body
        self._objects = settings.objects
        self._delivering = settings.delivering
        self._portion: ReadReservation | None = None
        self._resumes = settings.resumes
        self._budget = settings.ahead
        self._allowance: SegmentLease | None = None
        self._ahead: ReadAhead | None = None
        self._verification: Verification | None = None
        self._judge: Judge | None = None

    async def verify_by(self, verification: Verification, judge: Judge) -> None:
        """Verify the body, which is the whole object; what `judge` raises at a mismatch comes before its last bytes.

        Raises:
            BucketError: the body is here already, and `judge` raised this.
        """
        self._verification, self._judge = verification, judge
        if isinstance(self._body, BufferedBody):
            verification.update(self._body.data)
            mismatch = verification.mismatch()
            if mismatch is not None:
                await judge(mismatch)

    def deliver(self, consumer: IConsumer) -> Deferred[None]:
        if isinstance(self._body, BufferedBody):
            return self._body.deliver(consumer, self._piece)
        return self._deliver_in_front(consumer)

    def close(self) -> None:
        if self._body is not None:
            self._body.close()

    @deferred
    async def _deliver_in_front(self, consumer: IConsumer) -> None:
        verifying = None if self._verification is None else VerifyingConsumer(consumer, self._verification)
        worth_it = self.span.end - self.span.start >= FROM_SIZE
        front = ResponseSequence(
            verifying or consumer, self._objects.clock, (lambda: self._begin_ahead(front)) if worth_it else None
        )
        front.portion = self._portion = self._delivering.join(READS)
        front.open()
        try:
            await self._deliver_resuming(front)
        except ConnectionFailed as error:
            raise BucketUnreachable(f"{self.info.key!r} broke off: {error}") from error
        except (RequestFailed, StorageError) as error:
            raise BucketError(f"{self.info.key!r} broke off: {error}") from error
        finally:
            front.close()
            self._portion.leave()
            self._end_ahead()
        if verifying is not None and verifying.mismatch is not None and self._judge is not None:
            await self._judge(verifying.mismatch)
            await verifying.release()

    async def _deliver_resuming(self, front: ResponseSequence) -> None:
        left, size = self._resumes, self.span.end - self.span.start
        while front.delivered < size:
            try:
                await self._deliver_once(front)
                if front.delivered < size:
                    raise ConnectionFailed(f"the answer ended {size - front.delivered} bytes too early")
            except ConnectionFailed as error:
                if front.gone:
                    raise ConsumerGone from error
                if not left:
                    raise
                left -= 1
                _log.warn(
                    "{key!r} broke off at byte {at}: {error}; it goes on from there, {left} more times at most",
                    key=self.info.key,
                    at=self.span.start + front.delivered,
                    error=str(error),
                    left=left,
                )

    async def _deliver_once(self, front: ResponseSequence) -> None:
        """Deliver what is left, with the body that is open, or a new one."""
        body, self._body = self._body or await self._reopened(front), None
        try:
            await body.deliver(front, self._piece)
        except ConsumerGone:
            if self._ahead is None or front.gone or front.delivered != front.end:
                raise
            front.end = None
            await self._ahead.deliver(front)

    def _piece(self) -> int:
        """How many bytes to read at once."""
        size = self._portion.next_size() if self._portion is not None else 0
        slow = self._verification is not None and self._verification.slow
        return max(min(size, SLOW_PIECE) if slow else size, MIN_READ)

    async def _reopened(self, front: ResponseSequence) -> Body:
        """What is left of the same object."""
        start, end = self.span.start + front.delivered, self.span.end
        response, body = await self._objects.get_object(self._s3_key, self._range(start, end))
        try:
            info, _ = opened(response, self.info.key, ByteRange(start, end - 1))
            if (info.etag, info.size) != (self.info.etag, self.info.size):
                raise BucketError("it was replaced meanwhile")
        except BaseException:
            body.close()
            raise
        return body

    def _begin_ahead(self, front: ResponseSequence) -> None:
        self._allowance = self._budget.enter(partial(self._fetch_ahead, front))

    def _fetch_ahead(self, front: ResponseSequence, allowance: SegmentLease) -> None:
        """There is room for ranges: fetch the first, and when it has come, let it and others follow on what this
        connection delivers until then."""
        start = self.span.start + front.delivered + LEAD
        if start + SEGMENT > self.span.end:
            allowance.leave()
            return
        ahead = self._ahead = ReadAhead(self._fetch, start, self.span.end, allowance)

        def take_over(_: bytes) -> None:
            if self.span.start + front.delivered < start:
                front.end = start - self.span.start
            else:
                ahead.close()

        def go_on_without(_: Failure) -> None:
            """The first connection delivers the rest, slowly; if that fails too, it is its failure that counts."""
            ahead.close()

        ahead.begin().addCallbacks(take_over, go_on_without)

    def _end_ahead(self) -> None:
        if self._allowance is not None:
            self._allowance.leave()
        if self._ahead is not None:
            self._ahead.close()

    async def _fetch(self, start: int, end: int) -> bytes:
        response = await self._objects.read_object(self._s3_key, self._range(start, end))
        if len(response.body) != end - start:
            raise ConnectionFailed(f"{len(response.body)} bytes came for a range of {end - start}")
        return response.body

    def _range(self, start: int, end: int) -> dict[str, str]:
        return {"if-match": f'"{self.info.etag}"', "range": str(ByteRange(start, end - 1))}
