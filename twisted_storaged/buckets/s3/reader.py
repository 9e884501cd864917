"""S3Reader: an open object of S3, whose bytes go from S3's socket to the consumer without a thread in between.

If a response breaks off, the rest of the same object is requested. If S3 is slow and there is much to read, several
ranges are fetched in parallel: see `read_ahead`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.buckets.s3.client import DataPlane
from twisted_storaged.buckets.s3.meters import S3Meters
from twisted_storaged.buckets.s3.read_ahead import FROM_SIZE, LEAD, SEGMENT, ReadAhead, SegmentBudget, SegmentLease
from twisted_storaged.buckets.s3.response_body import BufferedBody, ResponseSequence, StreamedBody, VerifyingConsumer
from twisted_storaged.buckets.s3.responses import RequestFailed, opened
from twisted_storaged.errors import BucketFailed, BucketUnreachable, StorageError
from twisted_storaged.interfaces import IObjectReader
from twisted_storaged.model import ORIGIN, ByteRange, ObjectInfo, Span
from twisted_storaged.protocol.checksums import Verification
from twisted_storaged.protocol.http1 import ConnectionFailed
from twisted_storaged.runtime.buffers import MIN_READ, DeliveryBudget, ReadReservation
from twisted_storaged.runtime.concurrency import ConsumerGone, deferred

#: Bytes of one read if verifying them is slow, as it blocks the reactor.
SLOW_PIECE = 1 << 18

#: Reads that one GET holds in memory: one is sent while the next one comes in.
READS = 2

Body = StreamedBody | BufferedBody
#: Called with a description of how an object differs from its checksum; raises unless it may be delivered anyway.
MismatchHandler = Callable[[str], Awaitable[None]]

_log = Logger()


@dataclass(frozen=True)
class ReadSettings:
    """What the readers of one bucket share.

    Attributes:
        delivering: the memory for bytes on their way to clients.
        resumes: how often a GET is resumed after its response broke off.
        ahead: the memory for ranges that are read ahead.
        meters: count resumes.
    """

    objects: DataPlane
    delivering: DeliveryBudget
    resumes: int
    ahead: SegmentBudget
    meters: S3Meters = field(default_factory=S3Meters)


@implementer(IObjectReader)
class S3Reader:
    """Reads `span` of the object `s3_key`, beginning with `body`, that of a GetObject response."""

    def __init__(self, s3_key: str, info: ObjectInfo, span: Span, body: Body, settings: ReadSettings) -> None:
        self.info = info
        self.span = span
        self._s3_key = s3_key
        self._origin = ORIGIN.get()
        self._body: Body | None = body
        self._objects = settings.objects
        self._delivering = settings.delivering
        self._portion: ReadReservation | None = None
        self._resumes = settings.resumes
        self._meters = settings.meters
        self._budget = settings.ahead
        self._lease: SegmentLease | None = None
        self._ahead: ReadAhead | None = None
        self._verification: Verification | None = None
        self._on_mismatch: MismatchHandler | None = None

    async def verify_by(self, verification: Verification, on_mismatch: MismatchHandler) -> None:
        """Verify the body, which must be the whole object; `on_mismatch` is called before the last bytes are sent.

        Raises:
            BucketFailed: the body has been read already, and `on_mismatch` raised this.
        """
        self._verification, self._on_mismatch = verification, on_mismatch
        # Verified before the response to the client begins, so that a mismatch becomes an error response.
        if isinstance(self._body, BufferedBody):
            verification.update(self._body.data)
            mismatch = verification.mismatch()
            if mismatch is not None:
                await on_mismatch(mismatch)

    def deliver(self, consumer: IConsumer) -> Deferred[None]:
        if isinstance(self._body, BufferedBody):
            return self._body.deliver(consumer, self._piece)
        return self._deliver_from_connection(consumer)

    def close(self) -> None:
        if self._body is not None:
            self._body.close()

    @deferred
    async def _deliver_from_connection(self, consumer: IConsumer) -> None:
        verifying = None if self._verification is None else VerifyingConsumer(consumer, self._verification)
        long = self.span.end - self.span.start >= FROM_SIZE
        sequence = ResponseSequence(
            verifying or consumer,
            self._objects.retries.clock,
            (lambda: self._begin_read_ahead(sequence)) if long else None,
        )
        sequence.portion = self._portion = self._delivering.join(READS)
        sequence.open()
        try:
            await self._deliver_resuming(sequence)
        except ConnectionFailed as error:
            raise BucketUnreachable(f"{self.info.key!r} broke off: {error}") from error
        except (RequestFailed, StorageError) as error:
            raise BucketFailed(f"{self.info.key!r} broke off: {error}") from error
        finally:
            sequence.close()
            self._portion.leave()
            self._end_read_ahead()
        # After the sequence was unregistered: a consumer has one producer at a time, and `release` registers another.
        if verifying is not None and verifying.mismatch is not None and self._on_mismatch is not None:
            await self._on_mismatch(verifying.mismatch)
            await verifying.release()

    async def _deliver_resuming(self, sequence: ResponseSequence) -> None:
        left, size = self._resumes, self.span.end - self.span.start
        while sequence.delivered < size:
            try:
                await self._deliver_once(sequence)
                if sequence.delivered < size:
                    raise ConnectionFailed(f"the answer ended {size - sequence.delivered} bytes too early")
            except ConnectionFailed as error:
                if sequence.gone:
                    raise ConsumerGone from error
                if not left:
                    raise
                left -= 1
                self._meters.resumed()
                _log.warn(
                    "{key!r} broke off at byte {at}: {error}; resumed from there, at most {left} more times",
                    key=self.info.key,
                    at=self.span.start + sequence.delivered,
                    error=str(error),
                    left=left,
                )

    async def _deliver_once(self, sequence: ResponseSequence) -> None:
        """Deliver the rest, or as much of it as comes, from the open body or a new one."""
        body, self._body = self._body or await self._reopened(sequence), None
        try:
            await body.deliver(sequence, self._piece)
        except ConsumerGone:
            # Raised also if the sequence stopped the body where the ranges begin.
            if self._ahead is None or sequence.gone or sequence.delivered != sequence.end:
                raise
            sequence.end = None
            await self._ahead.deliver(sequence)

    def _piece(self) -> int:
        """Bytes of the next read."""
        size = self._portion.next_size() if self._portion is not None else 0
        slow = self._verification is not None and self._verification.slow
        return max(min(size, SLOW_PIECE) if slow else size, MIN_READ)

    async def _reopened(self, sequence: ResponseSequence) -> Body:
        """Request the rest of the same object."""
        start, end = self.span.start + sequence.delivered, self.span.end
        response, body = await self._objects.get_object(self._s3_key, self._range(start, end))
        try:
            info, _ = opened(response, self.info.key, ByteRange(start, end - 1))
            if (info.etag, info.size) != (self.info.etag, self.info.size):
                raise BucketFailed("it was replaced meanwhile")
        except BaseException:
            body.close()
            raise
        return body

    def _begin_read_ahead(self, sequence: ResponseSequence) -> None:
        self._lease = self._budget.enter(partial(self._fetch_ahead, sequence))

    def _fetch_ahead(self, sequence: ResponseSequence, lease: SegmentLease) -> None:
        """Fetch the first range, from some way ahead; when it has come, cut off the first connection there.

        Called when there is memory for ranges.
        """
        start = self.span.start + sequence.delivered + LEAD
        # Too little is left for a range to come before the first connection has sent it.
        if start + SEGMENT > self.span.end:
            lease.leave()
            return
        ahead = self._ahead = ReadAhead(self._fetch, start, self.span.end, lease)

        def take_over(_: bytes) -> None:
            # Otherwise the first connection was faster, and has passed this place already.
            if self.span.start + sequence.delivered < start:
                sequence.end = start - self.span.start
            else:
                ahead.close()

        def go_on_without(_: Failure) -> None:
            # The first connection goes on alone. If that fails, too, its failure is the one that is raised.
            ahead.close()

        ahead.begin().addCallbacks(take_over, go_on_without)

    def _end_read_ahead(self) -> None:
        if self._lease is not None:
            self._lease.leave()
        if self._ahead is not None:
            self._ahead.close()

    async def _fetch(self, start: int, end: int) -> bytes:
        # It begins when there is memory for ranges, so maybe while another request is worked for.
        ORIGIN.set(self._origin)
        response = await self._objects.read_object(self._s3_key, self._range(start, end))
        if len(response.body) != end - start:
            raise ConnectionFailed(f"{len(response.body)} bytes came for a range of {end - start}")
        return response.body

    def _range(self, start: int, end: int) -> dict[str, str]:
        return {"if-match": f'"{self.info.etag}"', "range": str(ByteRange(start, end - 1))}
