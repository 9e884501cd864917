"""An object's metadata as header fields: those of requests from clients and of responses to them, and those that S3
stores with an object. No I/O.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import NO_DIGESTS, Digests, Metadata, PutOptions
from twisted_storaged.protocol.http_fields import field

#: The most bytes of all names and values of an object's metadata. S3 has the same limit for x-amz-meta-* alone.
MAX_METADATA_BYTES = 2048

#: S3's names: metadata that HTTP defines, and the prefix of metadata that users define.
_SYSTEM = {"content-type", "content-encoding", "content-disposition", "cache-control"}
_USER = "x-amz-meta-"
_DEFAULT_TYPE = "application/octet-stream"
_DEFAULT_HEADER = (b"Content-Type", _DEFAULT_TYPE.encode("ascii"))
_SHOWN = {name: name.title().encode("ascii") for name in _SYSTEM}
#: The prefix of the names that storaged adds, and those of them that hold digests, in base64.
_OWN = f"{_USER}storaged-"
_DIGESTS = {f"{_OWN}{name}": name for name in ("sha-256", "sha-512")}
#: What a read is verified by, for engines that keep no checksums or no part sizes: see `buckets.s3.verification`.
CHECKSUM_NAME = f"{_OWN}crc32c"
PART_SIZE_NAME = f"{_OWN}part-size"
#: The id of the write that made the object, which identifies it after a lost reply: see `buckets.s3.responses`.
WRITE_ID_NAME = f"{_OWN}write-id"
#: Names that storaged adds, and clients do not get.
_HIDDEN = {CHECKSUM_NAME, PART_SIZE_NAME, WRITE_ID_NAME}
#: The types that engines return for an object that was sent with the default type, or with none.
_DEFAULT_TYPES = {("content-type", _DEFAULT_TYPE), ("content-type", "binary/octet-stream")}


def metadata_of_request(request: Any) -> Metadata:
    """Return the metadata in the headers of a PUT, sorted by name.

    Raises:
        InvalidRequest: it is too large, or a field is given twice or is not ASCII.
    """
    kept = sorted([name for name in request.fields if name in _SYSTEM or name.startswith(_USER)])
    metadata = [(name, field(request, name) or "") for name in kept]
    if sum([len(name) + len(value) for name, value in metadata]) > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata too large (>{MAX_METADATA_BYTES} bytes)")
    default = ("content-type", _DEFAULT_TYPE)
    if default in metadata:
        # Every object without a type is sent with this one, so it need not be stored.
        metadata.remove(default)
    return tuple(metadata)


def metadata_headers(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Return metadata as header fields of a response, with the default type if there is none."""
    if not metadata:
        return [_DEFAULT_HEADER]
    headers = [(_SHOWN.get(name) or name.encode("latin-1"), value.encode("latin-1")) for name, value in metadata]
    return headers if any(name == b"Content-Type" for name, _ in headers) else [_DEFAULT_HEADER, *headers]


def metadata_headers_for_s3(options: PutOptions) -> dict[str, str]:
    """Return the headers that S3 is to store. Digests are left out if they do not fit.

    Raises:
        InvalidRequest: S3 cannot keep this metadata.
    """
    headers = {"content-type": _DEFAULT_TYPE, **dict(options.metadata)}
    for name, value in options.metadata:
        if name.startswith(_OWN):
            raise InvalidRequest(f"metadata named {_OWN}* is storaged's own")
        if not (name.isascii() and value.isascii()):
            raise InvalidRequest(f"metadata is not ASCII: {name}")
    if not options.expected:
        return headers
    kept = {name: b64encode(options.expected[of]).decode() for name, of in _DIGESTS.items() if of in options.expected}
    return {**headers, **kept} if _size(headers) + _size(kept) <= MAX_METADATA_BYTES else headers


def with_note(headers: dict[str, str], name: str, value: str) -> dict[str, str]:
    """Add a header that S3 is to store; returns `headers` unchanged if it does not fit."""
    return {**headers, name: value} if _size(headers) + len(name) + len(value) <= MAX_METADATA_BYTES else headers


def metadata_of_response(headers: Mapping[str, str]) -> tuple[Metadata, Digests]:
    """Return the metadata and digests in the headers of S3's response."""
    kept = [pair for pair in headers.items() if pair[0] in _SYSTEM or pair[0].startswith(_USER)]
    kept = [pair for pair in kept if pair[0] not in _HIDDEN and pair not in _DEFAULT_TYPES]
    if not kept:
        return (), NO_DIGESTS
    metadata = [pair for pair in sorted(kept) if not pair[0].startswith(_OWN)]
    return tuple(metadata), _digests(dict(kept))


def _digests(headers: Mapping[str, str]) -> Digests:
    found = {}
    for header, name in _DIGESTS.items():
        if header in headers:
            try:
                found[name] = b64decode(headers[header], validate=True)
            except binascii.Error:
                return NO_DIGESTS  # not written by storaged
    return found or NO_DIGESTS


def _size(headers: Mapping[str, str]) -> int:
    """The bytes that S3's limit applies to: names and values of the metadata that users define."""
    return sum(len(name) + len(value) for name, value in headers.items() if name.startswith(_USER))
