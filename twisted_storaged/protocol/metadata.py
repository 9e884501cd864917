"""An object's metadata as header fields: those that clients send and get, and those that S3 keeps."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import NO_DIGESTS, Digests, Metadata, PutOptions
from twisted_storaged.protocol.http_fields import field

# What a client says of its object, beside its bytes, and gets back with it.

#: Bytes of all names and values, as in S3, which counts the x-amz-meta-* alone.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
MAX_METADATA_BYTES = 2048

_KEPT = {"content-type", "content-encoding", "content-disposition", "cache-control"}
_USER = "x-amz-meta-"
_NO_TYPE = ("content-type", "application/octet-stream")
_DEFAULT = (b"Content-Type", b"application/octet-stream")
_SHOWN = {name: name.title().encode("ascii") for name in _KEPT}


def metadata_of_request(request: Any) -> Metadata:
    """The metadata that comes with a PUT, sorted by name.

    Raises:
        InvalidRequest: it is too much, or something in it is there twice or not ASCII.
    """
    kept = sorted([name for name in request.fields if name in _KEPT or name.startswith(_USER)])
    metadata = [(name, field(request, name) or "") for name in kept]
    if sum([len(name) + len(value) for name, value in metadata]) > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata too large (>{MAX_METADATA_BYTES} bytes)")
    if _NO_TYPE in metadata:
        # It is what is said of an object without one: nothing to be kept.
        metadata.remove(_NO_TYPE)
    return tuple(metadata)


def metadata_headers(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """The same as header fields of an answer; without a type, bytes are bytes."""
    if not metadata:
        return [_DEFAULT]
    headers = [(_SHOWN.get(name) or name.encode("latin-1"), value.encode("latin-1")) for name, value in metadata]
    return headers if any(name == b"Content-Type" for name, _ in headers) else [_DEFAULT, *headers]


# Metadata and digests of an object, as the headers that S3 keeps with it.
#
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html

#: Metadata of the system, and what its users' own begin with.
_SYSTEM = {"cache-control", "content-disposition", "content-encoding", "content-type"}
_USERS = "x-amz-meta-"
#: Names that are ours, and those of them that hold digests, in base64.
_OURS = f"{_USERS}storaged-"
_DIGESTS = {f"{_OURS}{name}": name for name in ("sha-256", "sha-512")}
#: What verifies a read, for engines that keep no checksum, or not the sizes of parts; see `buckets.s3verify`.
CHECKSUM_NAME = f"{_OURS}crc32c"
PART_SIZE_NAME = f"{_OURS}part-size"
#: The id of the write that made the object: what recognises it where the reply was lost; see `s3.proofs`.
WRITE_ID_NAME = f"{_OURS}write-id"
#: Those of ours that are of no use to who reads the object.
_UNSEEN = {CHECKSUM_NAME, PART_SIZE_NAME, WRITE_ID_NAME}
#: What an object is sent as of which nobody said what it is; and what engines say of one that was sent as nothing.
_UNKNOWN = "application/octet-stream"
_SAYS_NOTHING = {("content-type", _UNKNOWN), ("content-type", "binary/octet-stream")}
#: Bytes that S3 keeps of its users' metadata, names and all.
_ROOM = 2048


def metadata_headers_for_s3(options: PutOptions) -> dict[str, str]:
    """The headers that S3 is to keep. Digests are left out where there is no room for them.

    Raises:
        InvalidRequest: S3 cannot keep this metadata.
    """
    headers = {"content-type": _UNKNOWN, **dict(options.metadata)}
    for name, value in options.metadata:
        if name.startswith(_OURS):
            raise InvalidRequest(f"metadata named {_OURS}* is storaged's own")
        if not (name.isascii() and value.isascii()):
            raise InvalidRequest(f"metadata is not ASCII: {name}")
    if not options.expected:
        return headers
    kept = {name: b64encode(options.expected[of]).decode() for name, of in _DIGESTS.items() if of in options.expected}
    return {**headers, **kept} if _size(headers) + _size(kept) <= _ROOM else headers


def with_note(headers: dict[str, str], name: str, value: str) -> dict[str, str]:
    """These headers and one more that S3 is to keep, `name`; without it, where there is no room for it."""
    return {**headers, name: value} if _size(headers) + len(name) + len(value) <= _ROOM else headers


def metadata_of_response(headers: Mapping[str, str]) -> tuple[Metadata, Digests]:
    """What S3 kept, from an answer's headers."""
    kept = [pair for pair in headers.items() if pair[0] in _SYSTEM or pair[0].startswith(_USERS)]
    kept = [pair for pair in kept if pair[0] not in _UNSEEN and pair not in _SAYS_NOTHING]
    if not kept:
        return (), NO_DIGESTS
    metadata = [pair for pair in sorted(kept) if not pair[0].startswith(_OURS)]
    return tuple(metadata), _digests(dict(kept))


def _digests(headers: Mapping[str, str]) -> Digests:
    found = {}
    for header, name in _DIGESTS.items():
        if header in headers:
            try:
                found[name] = b64decode(headers[header], validate=True)
            except binascii.Error:
                return NO_DIGESTS  # somebody else's, then
    return found or NO_DIGESTS


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in headers.items() if name.startswith(_USERS))
