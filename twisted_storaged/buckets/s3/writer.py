"""S3Upload, the `PartSink` of one PUT to S3: a PutObject, or the calls of a multipart upload. Conditions of writes.

A multipart upload is in the journal for as long as S3 may have it. If the reply to a CompleteMultipartUpload is lost,
S3 is asked whether it was carried out: as long as the upload exists, it was not.

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
from twisted_storaged.buckets.s3.meters import UploadEnd
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
    """Sends the parts of one PUT in one multipart upload; or the whole body in one PutObject.

    Attributes:
        part_size: bytes of all parts but the last, for the metadata of the object; None if unknown.
    """

    part_size: int | None = None

    def __init__(
        self, context: S3Context, s3_key: str, key: str, options: PutOptions, capabilities: Capabilities
    ) -> None:
        """Upload to `s3_key`, which clients know as `key`. Conditions that `capabilities` lacks are refused.

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
        self._require_capability("PutObject")
        noted = with_note(self._metadata, CHECKSUM_NAME, noted_checksum(crc32c(body), len(body)))
        headers = {**noted, **condition_headers(self._condition)}
        etag = etag_of(await self._context.objects.put_object(self._s3_key, body, headers))
        return ObjectInfo(self._key, len(body), etag, time.time())

    @deferred
    async def begin(self) -> None:
        self._require_capability("CompleteMultipartUpload")
        metadata = self._metadata
        if self.part_size is not None:
            metadata = with_note(metadata, PART_SIZE_NAME, str(self.part_size))
        # Before S3 is asked: if this process is killed meanwhile, only the journal knows of the upload.
        entry = self._entry = await self._note()
        try:
            self._upload_id, again = await self._context.uploads.create(self._s3_key, metadata)
        except TimedOut:
            self._hangs = True
            raise
        lost = entry if again else None
        if lost is not None:
            # S3 may have two uploads, and an entry has one id.
            entry = self._entry = await self._note()
        await self._context.run(entry.created, self._upload_id)
        if lost is not None:
            # The reply to an earlier attempt was lost, and with it maybe the id of another upload. The reaper searches
            # for that one only now, as it might have aborted this one instead before its id was in the journal.
            self._context.journal.defer_to_reaper(lost)

    @deferred
    async def part(self, number: int, body: memoryview) -> None:
        checksum = crc32c(body)
        self._context.meters.parts_in_flight += 1
        try:
            response = await self._context.objects.upload_part(self._s3_key, self._upload_id, number, body, checksum)
        except TimedOut:
            self._hangs = True
            raise
        finally:
            self._context.meters.parts_in_flight -= 1
        self._parts[number] = Part(number, response.headers.get("etag", ""), checksum)
        self._size += len(body)

    @deferred
    async def complete(self) -> ObjectInfo:
        # Parts return in any order, and S3 refuses a list that is not in order of their numbers.
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
            # Ceph returns none. It is computed if possible, as the object may have been replaced by now.
            etag = combined_etag(parts) or etag_of(await self._context.objects.head_object(self._s3_key))
        await self._ended("completed")
        return ObjectInfo(self._key, self._size, etag.strip('"'), time.time())

    @deferred
    async def abort(self) -> None:
        # Either S3 was not asked for anything, or the upload has ended.
        if self._entry is None:
            return
        if self._hangs or not self._upload_id:
            # S3 does not answer, or did not return the id of the upload, and the client should not wait for it.
            self._leave(self._entry)
            return
        try:
            await self._abort()
        except BaseException:
            self._leave(self._entry)
            raise
        await self._ended("aborted")

    def _require_capability(self, operation: str) -> None:
        if self._condition is not None and conditional(operation, self._condition) not in self._capabilities:
            raise ConditionUnsupported(f"not {conditional(operation, self._condition)}")

    async def _note(self) -> JournalEntry:
        return await self._context.run(self._context.journal.begin, self._context.where, self._s3_key)

    def _leave(self, entry: JournalEntry) -> None:
        self._context.meters.upload_ended("left")
        self._context.journal.defer_to_reaper(entry)

    async def _ended(self, how: UploadEnd) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            self._context.meters.upload_ended(how)
            with suppress(OSError):  # the reaper will delete the entry, as there is no such upload
                await self._context.run(entry.ended)

    async def _abort(self) -> bool:
        """Abort the upload; returns whether there was one."""
        try:
            return await self._context.uploads.abort(self._s3_key, self._upload_id)
        except RequestFailed as error:
            if error.response.status != 404:
                raise
            return False

    async def _etag_if_completed(self, error: RequestFailed | ConnectionFailed) -> str:
        """The ETag of the object, if it was completed despite an error.

        Raises the error, or its cause if nothing was completed.
        """
        if not isinstance(error, AmbiguousFailure):
            raise error
        not_completed = False
        # Aborted before the object is looked up, because S3 may still be at work on the upload until it is gone.
        with suppress(RequestFailed, ConnectionFailed):
            not_completed = await self._abort()
        found = await self._confirm_applied(self._context.objects.retries.ends())
        if isinstance(found, Response):
            return etag_of(found)
        if not_completed:
            await self._ended("aborted")
            raise error.failure from error
        raise error

    async def _confirm_applied(self, ends: float) -> Response | AttemptState:
        found = await self._context.objects.look(self._s3_key, ends)
        return found if found is not None and is_own(found, self._metadata) else AttemptState.UNKNOWN


def combined_etag(parts: list[Part]) -> str:
    """The ETag that S3 gives an object of these parts, if their ETags are MD5s; otherwise "".

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    etags = [part.etag.strip('"') for part in parts]
    if not all(_MD5.fullmatch(etag) for etag in etags):
        return ""
    digests = bytes.fromhex("".join(etags))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
