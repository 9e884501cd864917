"""The calls around the parts of a multipart upload, and what they say in XML.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from xml.etree import ElementTree

from twisted_storaged.s3.client import Call, DataPlane
from twisted_storaged.s3.proofs import text
from twisted_storaged.s3.retries import Landed
from twisted_storaged.s3.wire import Answer, ConnectionFailed

_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


class Part(NamedTuple):
    """A part that was uploaded: its number, its ETag as S3 gave it, and its CRC-32C in base64."""

    number: int
    etag: str
    checksum: str


class Open(NamedTuple):
    """An upload that has not ended; `began` is in seconds since the epoch, by S3's clock."""

    key: str
    upload_id: str
    began: float


class Uploads:
    """The multipart uploads of a bucket. Every call raises RequestFailed or ConnectionFailed."""

    def __init__(self, objects: DataPlane) -> None:
        self._objects = objects

    async def create(self, key: str, headers: Mapping[str, str]) -> tuple[str, bool]:
        """Begin one, whose object will have these metadata: its id, and whether there may be another, of a lost reply.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
        """
        extra = {**headers, "x-amz-checksum-algorithm": "CRC32C"}
        answer = await self._objects.ask(Call("CreateMultipartUpload", key, {"uploads": ""}, extra))
        return text(_parsed(answer), "UploadId"), answer.again

    async def complete(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        headers: Mapping[str, str],
        landed: Landed | None = None,
    ) -> str:
        """Make the object of its parts, under the condition in `headers`; gives its ETag, if the engine does.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        extra = {"content-type": "application/xml", **headers}
        call = Call("CompleteMultipartUpload", key, {"uploadId": upload_id}, extra, _completion(parts))
        answer = await self._objects.ask(call, landed=landed)
        return answer.headers.get("etag") or (text(_parsed(answer), "ETag") if answer.body else "")

    async def abort(self, key: str, upload_id: str) -> bool:
        """Forget one; whether S3 says, as it should, that there was one.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
        """
        answer = await self._objects.ask(Call("AbortMultipartUpload", key, {"uploadId": upload_id}))
        return answer.status == 204

    async def has_parts(self, key: str, upload_id: str) -> bool:
        """Whether one has a part. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html ."""
        answer = await self._objects.ask(Call("ListParts", key, {"max-parts": "1", "uploadId": upload_id}))
        return any(True for _ in _children(_parsed(answer), "Part"))

    async def of(self, key: str) -> list[Open]:
        """Those of a key that are open, up to a thousand.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
        """
        answer = await self._objects.ask(Call("ListMultipartUploads", "", {"prefix": key, "uploads": ""}))
        found = [
            Open(text(item, "Key"), text(item, "UploadId"), _time(text(item, "Initiated")))
            for item in _children(_parsed(answer), "Upload")
        ]
        return [upload for upload in found if upload.key == key]


def _completion(parts: Sequence[Part]) -> bytes:
    root = ElementTree.Element("CompleteMultipartUpload", xmlns=_XMLNS)
    for part in parts:
        element = ElementTree.SubElement(root, "Part")
        fields = {"PartNumber": str(part.number), "ETag": part.etag, "ChecksumCRC32C": part.checksum}
        for name, value in fields.items():
            ElementTree.SubElement(element, name).text = value
    return bytes(ElementTree.tostring(root, "utf-8"))


def _parsed(answer: Answer) -> ElementTree.Element:
    try:
        # Blanks may come before it, while S3 is at work.
        return ElementTree.fromstring(answer.body.strip())  # noqa: S314 (from our S3, and expat refuses entity bombs)
    except ElementTree.ParseError as error:
        raise ConnectionFailed(f"not XML: {error}") from error


def _children(root: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """The children of this name, in whatever namespace."""
    return (child for child in root if child.tag.rpartition("}")[2] == name)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
