"""Verification of whole reads from S3, by checksums that the engine keeps or that storaged added itself.

Not all engines keep the checksum that a PUT carries: Ceph 16 and Swift do not. So storaged adds metadata that clients
do not see: the CRC-32C of an object that is sent in one piece; the part size of one that is sent in parts, because its
checksum is not known yet when S3 takes the metadata. The part size is needed to verify a composite checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from twisted.logger import Logger

from twisted_storaged.buckets.s3.client import DataPlane, S3Request
from twisted_storaged.buckets.s3.reader import S3Reader
from twisted_storaged.buckets.s3.responses import RequestFailed
from twisted_storaged.errors import DamagedAnswer, UnverifiableObject
from twisted_storaged.model import ObjectInfo
from twisted_storaged.protocol.checksums import (
    CRC32C,
    SHA256,
    ExpectedChecksum,
    Verification,
    checksum_from_etag,
    checksum_from_headers,
    decode_digest,
)
from twisted_storaged.protocol.http1 import ConnectionFailed, Response, parse_length
from twisted_storaged.protocol.metadata import CHECKSUM_NAME, PART_SIZE_NAME

_log = Logger()


class Verifier:
    """Finds out by what a whole read can be verified.

    Objects are verified by a checksum of S3's or a CRC-32C of storaged's. If verification is `required`, other digests
    count, too, and objects that have none are refused.
    """

    def __init__(self, required: bool, objects: DataPlane) -> None:
        self._required = required
        self._objects = objects

    async def verify(self, reader: S3Reader, response: Response, s3_key: str) -> None:
        """Make a reader verify the body of `response`, which answers a GET with `CHECKSUM_MODE` of a whole object.

        Raises:
            UnverifiableObject: there is nothing to verify it by, and verification is required.
            DamagedAnswer: the body came with the head, and is wrong.
        """
        info = reader.info
        # There are no bytes that could be wrong.
        if not info.size:
            return
        verification = await self._verification_of(response, info, s3_key)
        if verification is not None:
            await reader.verify_by(verification, partial(self._on_mismatch, verification, info, s3_key))
        elif self._required:
            raise UnverifiableObject(f"{info.key!r} ({info.etag}) has no checksum that it could be verified by")

    async def _on_mismatch(self, verification: Verification, info: ObjectInfo, s3_key: str, mismatch: str) -> None:
        """Raise an error for a mismatch, unless it may be due to a wrong part size, and the object may be served."""
        if verification.part_size is not None:
            # Tools that copy an object may copy the part size in its metadata, but use another. If both give the same
            # number of parts, that is only noticed here.
            told = await self._told_part_size(info, s3_key)
            if told not in (None, info.size, verification.part_size):
                why = f"its parts have {told} bytes, not {verification.part_size}"
                if self._required:
                    raise UnverifiableObject(f"{info.key!r} ({info.etag}) cannot be verified: {why}")
                _log.warn("{key!r} ({etag}) was not verified: {why}", key=info.key, etag=info.etag, why=why)
                return
        raise DamagedAnswer(f"{info.key!r} ({info.etag}) is damaged: {mismatch}")

    async def _verification_of(self, response: Response, info: ObjectInfo, s3_key: str) -> Verification | None:
        for known in self._candidates(response, info):
            if known is None:
                continue
            if known.parts is None:
                return Verification(known, info.size)
            part_size = _size(response.headers.get(PART_SIZE_NAME, "")) or await self._told_part_size(info, s3_key)
            # Otherwise the size is that of another upload, and an intact object would seem damaged.
            if part_size and -(-info.size // part_size) == known.parts:
                return Verification(known, info.size, part_size)
        return None

    def _candidates(self, response: Response, info: ObjectInfo) -> Iterator[ExpectedChecksum | None]:
        """The digests that are known, the best first; evaluated lazily, since the first suffices for most reads."""
        yield checksum_from_headers(response.headers)
        yield _noted_checksum(response, info)
        if self._required:
            sha256 = info.digests.get("sha-256")
            yield None if sha256 is None else ExpectedChecksum(SHA256, sha256, "sha-256 digest in its metadata")
            yield checksum_from_etag(response.headers)

    async def _told_part_size(self, info: ObjectInfo, s3_key: str) -> int | None:
        """The size of an object's first part, if the engine knows it.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html, partNumber
        """
        # On the condition that it is still the object that is being read.
        call = S3Request("HeadObject", s3_key, {"partNumber": "1"}, {"if-match": f'"{info.etag}"'})
        try:
            length = (await self._objects.ask(call)).headers.get("content-length", "")
        except (RequestFailed, ConnectionFailed):
            return None
        return _size(length)


def noted_checksum(checksum: str, size: int) -> str:
    """The value of `CHECKSUM_NAME` for a body of `size` bytes whose CRC-32C in base64 is `checksum`."""
    return f"{checksum};size={size}"


def _noted_checksum(response: Response, info: ObjectInfo) -> ExpectedChecksum | None:
    """The CRC-32C in the metadata, unless it is of another size: tools copy metadata to objects with other bytes."""
    checksum, _, size = response.headers.get(CHECKSUM_NAME, "").partition(";size=")
    digest = decode_digest(checksum, CRC32C.size)
    return ExpectedChecksum(CRC32C, digest, CHECKSUM_NAME) if digest is not None and size == str(info.size) else None


def _size(text: str) -> int | None:
    try:
        return parse_length(text)
    except ValueError:
        return None
