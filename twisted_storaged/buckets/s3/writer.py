"""One upload to S3, as the PartSink of `buckets.upload`: a PutObject, or the calls of a multipart upload.

A multipart upload is in the journal for as long as S3 may have it. What became of a CompleteMultipartUpload whose
reply was lost is found out, not guessed: as long as the upload is there, nothing was completed.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress
from typing import Final, NamedTuple

from twisted_storaged.buckets.s3.client import Part, crc32c
from twisted_storaged.buckets.s3.context import S3Context
from twisted_storaged.buckets.s3.journal import JournalEntry
from twisted_storaged.buckets.s3.responses import AttemptState, RequestFailed, etag_of, is_own, new_write_id
from twisted_storaged.buckets.s3.verification import noted_checksum
from twisted_storaged.errors import ConditionUnsupported
from twisted_storaged.model import Condition, ObjectInfo, PutOptions
from twisted_storaged.protocol.http1 import AmbiguousFailure, ConnectionFailed, Response, TimedOut
from twisted_storaged.protocol.metadata import (
    CHECKSUM_NAME,
    PART_SIZE_NAME,
    WRITE_ID_NAME,
    metadata_headers_for_s3,
    with_note,
)
from twisted_storaged.runtime.concurrency import deferred

_MD5 = re.compile("[0-9a-f]{32}")


class Conditional(NamedTuple):
    """An operation of S3 and a header that makes it conditional.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    operation: str
    header: str

    def __str__(self) -> str:
        return f"{self.operation} with {self.header}"


PUT_ABSENT: Final = Conditional("PutObject", "if-none-match")
PUT_SAME: Final = Conditional("PutObject", "if-match")
COMPLETE_ABSENT: Final = Conditional("CompleteMultipartUpload", "if-none-match")
COMPLETE_SAME: Final = Conditional("CompleteMultipartUpload", "if-match")
DELETE_SAME: Final = Conditional("DeleteObject", "if-match")

#: The conditional operations that an engine checks and carries out in one step.
Capabilities = frozenset[Conditional]
NO_CAPABILITIES: Capabilities = frozenset()


def condition_headers(condition: Condition | None) -> dict[str, str]:
    """The header that states a condition, if there is one. RFC 9110, 13.1.1 and 13.1.2."""
    if condition is None:
        return {}
    return {"if-none-match": "*"} if condition.etag is None else {"if-match": f'"{condition.etag}"'}


def conditional(operation: str, condition: Condition) -> Conditional:
    """An operation with the header that states `condition`."""
    return Conditional(operation, "if-none-match" if condition.etag is None else "if-match")


class S3Upload:
    """The parts of one PUT, in one multipart upload; or the whole of it, in one PutObject.

    Attributes:
        part_size: bytes of every part but the last, to be noted with the object; None if that is not known.
    """

    part_size: int | None = None

    def __init__(
        self, context: S3Context, s3_key: str, key: str, options: PutOptions, capabilities: Capabilities
    ) -> None:
        """Upload to `s3_key`; clients know the object as `key`. Conditions that are not in `capabilities` are refused.

        Raises:
            InvalidRequest: S3 cannot keep this metadata.
        """
        self._context = context
        self._s3_key = s3_key
        self._key = key
        self._metadata = with_note(metadata_headers_for_s3(options), WRITE_ID_NAME, new_write_id())
        self._condition = options.condition
        self._capabilities = capabilities
        self._entry: JournalEntry | None = None
        self._upload_id = ""
        self._parts: dict[int, Part] = {}
        self._size = 0
        self._hangs = False

    async def whole(self, body: memoryview) -> ObjectInfo:
        self._must_claim("PutObject")
        noted = with_note(self._metadata, CHECKSUM_NAME, noted_checksum(crc32c(body), len(body)))
        headers = {**noted, **condition_headers(self._condition)}
        etag = etag_of(await self._context.objects.put_object(self._s3_key, body, headers))
        return ObjectInfo(self._key, len(body), etag, time.time())

    @deferred
    async def begin(self) -> None:
        self._must_claim("CompleteMultipartUpload")
        entry = self._entry = await self._note()
        try:
            self._upload_id, again = await self._context.uploads.create(self._s3_key, self._metadata_of_parts())
        except TimedOut:
            self._hangs = True
            raise
        lost = entry if again else None
        if lost is not None:
            entry = self._entry = await self._note()
        await self._context.run(entry.created, self._upload_id)
        if lost is not None:
            # The reply to an earlier try was lost, and with it, maybe, the id of another upload. The reaper looks for
            # that only now, as it might take this one for it.
            self._context.journal.defer_to_reaper(lost)

    @deferred
    async def part(self, number: int, body: memoryview) -> None:
        checksum = crc32c(body)
        try:
            response = await self._context.objects.upload_part(self._s3_key, self._upload_id, number, body, checksum)
        except TimedOut:
            self._hangs = True
            raise
        self._parts[number] = Part(number, response.headers.get("etag", ""), checksum)
        self._size += len(body)

    @deferred
    async def complete(self) -> ObjectInfo:
        parts = [part for _, part in sorted(self._parts.items())]
        try:
            etag = await self._context.uploads.complete(
                self._s3_key, self._upload_id, parts, condition_headers(self._condition), self._confirm_applied
            )
        except TimedOut:
            self._hangs = True
            raise
        except (RequestFailed, ConnectionFailed) as error:
            etag = await self._etag_if_completed(error)
        if not etag:
            # Ceph's word for it. A look would be wrong where somebody has replaced the object by now.
            etag = combined_etag(parts) or etag_of(await self._context.objects.head_object(self._s3_key))
        await self._ended()
        return ObjectInfo(self._key, self._size, etag.strip('"'), time.time())

    @deferred
    async def abort(self) -> None:
        if self._entry is None:
            return
        if self._hangs or not self._upload_id:
            # S3 does not answer, or did not say which upload it began: the client does not wait until it does.
            self._context.journal.defer_to_reaper(self._entry)
            return
        try:
            await self._abort()
        except BaseException:
            self._context.journal.defer_to_reaper(self._entry)
            raise
        await self._ended()

    def _metadata_of_parts(self) -> dict[str, str]:
        if self.part_size is None:
            return self._metadata
        return with_note(self._metadata, PART_SIZE_NAME, str(self.part_size))

    def _must_claim(self, operation: str) -> None:
        if self._condition is not None and conditional(operation, self._condition) not in self._capabilities:
            raise ConditionUnsupported(f"not {conditional(operation, self._condition)}")

    async def _note(self) -> JournalEntry:
        return await self._context.run(self._context.journal.begin, self._context.where, self._s3_key)

    async def _ended(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            with suppress(OSError):  # the reaper will find that there is no such upload
                await self._context.run(entry.ended)

    async def _abort(self) -> bool:
        """Forget all parts; whether there was an upload to forget."""
        try:
            return await self._context.uploads.abort(self._s3_key, self._upload_id)
        except RequestFailed as error:
            if error.response.status != 404:
                raise
            return False

    async def _etag_if_completed(self, error: RequestFailed | ConnectionFailed) -> str:
        """The ETag of the object, if it was completed in spite of an error.

        Where it was not known what became of the upload, it is aborted, and looked at only then: what is under way in
        S3 has ended when it is gone. Raises the error, or what was behind it, if that proves that nothing was
        completed.
        """
        if not isinstance(error, AmbiguousFailure):
            raise error
        not_completed = False
        with suppress(RequestFailed, ConnectionFailed):
            not_completed = await self._abort()
        found = await self._confirm_applied(self._context.objects.ends())
        if isinstance(found, Response):
            return etag_of(found)
        if not_completed:
            await self._ended()
            raise error.failure from error
        raise error

    async def _confirm_applied(self, ends: float) -> Response | AttemptState:
        found = await self._context.objects.look(self._s3_key, ends)
        return found if found is not None and is_own(found, self._metadata) else AttemptState.UNKNOWN


def combined_etag(parts: list[Part]) -> str:
    """The ETag that S3 gives an object of these parts, each of whose ETags is an MD5; no object's, where one is not.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    etags = [part.etag.strip('"') for part in parts]
    if not all(_MD5.fullmatch(etag) for etag in etags):
        return ""
    digests = bytes.fromhex("".join(etags))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
