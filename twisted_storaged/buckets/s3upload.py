"""One upload to S3, as the PartSink of `multipart`: a PutObject, or the calls of a multipart upload.

The calls around the parts are rare, and boto3's, in threads.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from twisted.internet.defer import Deferred

from twisted_storaged.buckets.objects import ObjectInfo, PutOptions
from twisted_storaged.buckets.s3conditions import Claims, condition_arguments, condition_headers, conditional
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import ConditionUnsupported
from twisted_storaged.s3.answers import etag_of
from twisted_storaged.s3.client import RequestFailed, crc32c
from twisted_storaged.s3.metadata import arguments_of, headers_of
from twisted_storaged.s3.setup import Access

_MD5 = re.compile("[0-9a-f]{32}")
#: Statuses that refuse a conditional write: that of an earlier try of ours, maybe.
_REFUSED = (409, 412)


class S3Upload:
    """The parts of one PUT, in one multipart upload; or the whole of it, in one PutObject."""

    def __init__(self, access: Access, s3_key: str, key: str, options: PutOptions, claims: Claims) -> None:
        """Upload to `s3_key`; clients know the object as `key`. Conditions that are not in `claims` are refused.

        Raises:
            InvalidRequest: S3 cannot keep this metadata.
        """
        self._objects = access.objects
        self._client = access.client
        self._run = access.run
        self._address = {"Bucket": access.bucket, "Key": s3_key}
        self._s3_key = s3_key
        self._key = key
        self._metadata = headers_of(options)
        self._condition = options.condition
        self._claims = claims
        self._upload: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._size = 0

    @deferred
    async def whole(self, body: bytearray) -> ObjectInfo:
        self._must_claim("PutObject")
        headers = {**self._metadata, **condition_headers(self._condition)}
        try:
            etag = etag_of(await self._objects.put_object(self._s3_key, body, headers))
        except RequestFailed as error:
            # An earlier try may have been carried out, and its reply lost: then our own object is in the way.
            refused = error.again and self._condition is not None and error.answer.status in _REFUSED
            etag = await self._run(self._etag_if_there, body) if refused else ""
            if not etag:
                raise
        return ObjectInfo(self._key, len(body), etag, time.time())

    @deferred
    async def begin(self) -> None:
        self._must_claim("CompleteMultipartUpload")
        metadata = arguments_of(self._metadata)
        create = self._client.create_multipart_upload
        answer = await self._run(create, **self._address, **metadata, ChecksumAlgorithm="CRC32C")
        self._upload = {**self._address, "UploadId": answer["UploadId"]}

    @deferred
    async def part(self, number: int, body: bytearray) -> None:
        upload_id, checksum = self._upload["UploadId"], crc32c(body)
        answer = await self._objects.upload_part(self._s3_key, upload_id, number, body, checksum)
        etag = answer.headers.get("etag", "")
        self._parts[number] = {"PartNumber": number, "ETag": etag, "ChecksumCRC32C": checksum}
        self._size += len(body)

    def complete(self) -> Deferred[ObjectInfo]:
        return self._run(self._complete)

    @deferred
    async def abort(self) -> None:
        if self._upload:
            await self._run(self._client.abort_multipart_upload, **self._upload)

    def _must_claim(self, operation: str) -> None:
        if self._condition is not None and conditional(operation, self._condition) not in self._claims:
            raise ConditionUnsupported(f"not {conditional(operation, self._condition)}")

    def _complete(self) -> ObjectInfo:
        parts = [part for _, part in sorted(self._parts.items())]
        condition = condition_arguments(self._condition)
        try:
            answer = self._client.complete_multipart_upload(
                **self._upload, **condition, MultipartUpload={"Parts": parts}
            )
            # Ceph answers with an empty ETag.
            etag = answer.get("ETag") or self._head()["ETag"]
        except (ClientError, BotoCoreError) as error:
            # The reply may be what was lost, not the request; a retry of it then finds no such upload.
            etag = combined_etag(parts)
            if _is_first_refusal(error) or not self._is_there(etag):
                raise
        return ObjectInfo(self._key, self._size, etag.strip('"'), time.time())

    def _etag_if_there(self, body: bytearray) -> str:
        self._size = len(body)
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        return etag if self._is_there(etag) else ""

    def _is_there(self, etag: str) -> bool:
        try:
            head = self._head()
        except (ClientError, BotoCoreError):
            return False
        return bool(head["ETag"].strip('"') == etag and head["ContentLength"] == self._size)

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = self._client.head_object(**self._address)
        return head


def _is_first_refusal(error: ClientError | BotoCoreError) -> bool:
    """Whether it is a refusal that no earlier try of the request can have brought about."""
    told = error.response["ResponseMetadata"] if isinstance(error, ClientError) else {}
    return told.get("HTTPStatusCode") in _REFUSED and not told.get("RetryAttempts")


def combined_etag(parts: list[dict[str, Any]]) -> str:
    """The ETag that S3 gives an object of these parts, each of whose ETags is an MD5; no object's, where one is not.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    etags = [part["ETag"].strip('"') for part in parts]
    if not all(_MD5.fullmatch(etag) for etag in etags):
        return ""
    digests = bytes.fromhex("".join(etags))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
