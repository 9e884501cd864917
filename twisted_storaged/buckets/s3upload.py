"""One upload to S3, as the PartSink of `multipart`: a PutObject, or the calls of a multipart upload. Blocking.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import hashlib
import re
import time
import zlib
from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from twisted_storaged.buckets.interface import ObjectInfo
from twisted_storaged.errors import BucketError

if TYPE_CHECKING:
    from botocore.client import BaseClient


_MD5 = re.compile("[0-9a-f]{32}")


class S3Upload:
    """The parts of one PUT, in one multipart upload; or the whole of it, in one PutObject."""

    def __init__(self, client: BaseClient, address: Mapping[str, str], key: str) -> None:
        """Upload to `address`, the Bucket and Key of every call; clients know the object as `key`."""
        self._client = client
        self._address = address
        self._key = key
        self._upload: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._sizes: dict[int, int] = {}

    def whole(self, body: bytearray) -> ObjectInfo:
        answer = self._client.put_object(**self._address, Body=body, **_checksum(body))
        return self._info(len(body), answer["ETag"])

    def begin(self) -> None:
        answer = self._client.create_multipart_upload(**self._address, ChecksumAlgorithm="CRC32")
        self._upload = {**self._address, "UploadId": answer["UploadId"]}

    def part(self, number: int, body: bytearray) -> None:
        checksum = _checksum(body)
        answer = self._client.upload_part(**self._upload, PartNumber=number, Body=body, **checksum)
        self._parts[number] = {"PartNumber": number, "ETag": answer["ETag"], **checksum}
        self._sizes[number] = len(body)

    def complete(self) -> ObjectInfo:
        parts = [part for _, part in sorted(self._parts.items())]
        size = sum(self._sizes.values())
        try:
            answer = self._client.complete_multipart_upload(**self._upload, MultipartUpload={"Parts": parts})
            # Ceph answers with an empty ETag.
            etag = answer.get("ETag") or self._head()["ETag"]
        except (ClientError, BotoCoreError):
            # The reply may be what was lost, not the request; a retry of it then finds no such upload.
            etag = combined_etag(parts)
            if not self._is_there(etag, size):
                raise
        return self._info(size, etag)

    def abort(self) -> None:
        if self._upload:
            self._client.abort_multipart_upload(**self._upload)

    def _is_there(self, etag: str, size: int) -> bool:
        try:
            head = self._head()
        except (ClientError, BotoCoreError):
            return False
        return bool(head["ETag"].strip('"') == etag and head["ContentLength"] == size)

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = self._client.head_object(**self._address)
        return head

    def _info(self, size: int, etag: str) -> ObjectInfo:
        if not etag:
            raise BucketError(f"the engine gave {self._key!r} no ETag")
        return ObjectInfo(self._key, size, etag.strip('"'), time.time())


def combined_etag(parts: list[dict[str, Any]]) -> str:
    """The ETag that S3 gives an object of these parts, each of whose ETags is an MD5; no object's, where one is not.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    etags = [part["ETag"].strip('"') for part in parts]
    if not all(_MD5.fullmatch(etag) for etag in etags):
        return ""
    digests = bytes.fromhex("".join(etags))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _checksum(body: bytearray) -> dict[str, str]:
    return {"ChecksumCRC32": b64encode(zlib.crc32(body).to_bytes(4, "big")).decode("ascii")}
