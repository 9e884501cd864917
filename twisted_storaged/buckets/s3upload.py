"""One upload to S3, as the PartSink of `multipart`: a PutObject, or the calls of a multipart upload.

The calls around the parts are rare, and boto3's, in threads.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from twisted.internet.defer import Deferred

from twisted_storaged.buckets.objects import ObjectInfo
from twisted_storaged.buckets.threads import Run
from twisted_storaged.deferreds import deferred
from twisted_storaged.s3.answers import etag_of
from twisted_storaged.s3.client import DataPlane, crc32c

if TYPE_CHECKING:
    from botocore.client import BaseClient


_MD5 = re.compile("[0-9a-f]{32}")


class S3Upload:
    """The parts of one PUT, in one multipart upload; or the whole of it, in one PutObject."""

    def __init__(self, objects: DataPlane, client: BaseClient, run: Run, address: Mapping[str, str], key: str) -> None:
        """Upload to `address`, the Bucket and Key of boto3's calls; clients know the object as `key`."""
        self._objects = objects
        self._client = client
        self._run = run
        self._address = address
        self._key = key
        self._upload: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._size = 0

    @deferred
    async def whole(self, body: bytearray) -> ObjectInfo:
        answer = await self._objects.put_object(self._address["Key"], body)
        return ObjectInfo(self._key, len(body), etag_of(answer), time.time())

    @deferred
    async def begin(self) -> None:
        create = self._client.create_multipart_upload
        answer = await self._run(create, **self._address, ChecksumAlgorithm="CRC32C")
        self._upload = {**self._address, "UploadId": answer["UploadId"]}

    @deferred
    async def part(self, number: int, body: bytearray) -> None:
        key, upload_id, checksum = self._address["Key"], self._upload["UploadId"], crc32c(body)
        answer = await self._objects.upload_part(key, upload_id, number, body, checksum)
        etag = answer.headers.get("etag", "")
        self._parts[number] = {"PartNumber": number, "ETag": etag, "ChecksumCRC32C": checksum}
        self._size += len(body)

    def complete(self) -> Deferred[ObjectInfo]:
        return self._run(self._complete)

    @deferred
    async def abort(self) -> None:
        if self._upload:
            await self._run(self._client.abort_multipart_upload, **self._upload)

    def _complete(self) -> ObjectInfo:
        parts = [part for _, part in sorted(self._parts.items())]
        try:
            answer = self._client.complete_multipart_upload(**self._upload, MultipartUpload={"Parts": parts})
            # Ceph answers with an empty ETag.
            etag = answer.get("ETag") or self._head()["ETag"]
        except (ClientError, BotoCoreError):
            # The reply may be what was lost, not the request; a retry of it then finds no such upload.
            etag = combined_etag(parts)
            if not self._is_there(etag):
                raise
        return ObjectInfo(self._key, self._size, etag.strip('"'), time.time())

    def _is_there(self, etag: str) -> bool:
        try:
            head = self._head()
        except (ClientError, BotoCoreError):
            return False
        return bool(head["ETag"].strip('"') == etag and head["ContentLength"] == self._size)

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = self._client.head_object(**self._address)
        return head


def combined_etag(parts: list[dict[str, Any]]) -> str:
    """The ETag that S3 gives an object of these parts, each of whose ETags is an MD5; no object's, where one is not.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    etags = [part["ETag"].strip('"') for part in parts]
    if not all(_MD5.fullmatch(etag) for etag in etags):
        return ""
    digests = bytes.fromhex("".join(etags))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
