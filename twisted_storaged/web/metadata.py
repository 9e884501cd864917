"""What a client says of its object, beside its bytes, and gets back with it."""

from __future__ import annotations

from typing import Any

from twisted_storaged.buckets.objects import Metadata
from twisted_storaged.errors import InvalidRequest
from twisted_storaged.web.fields import field

#: Bytes of all names and values, as in S3, which counts the x-amz-meta-* alone.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
MAX_METADATA_BYTES = 2048

_KEPT = {"content-type", "content-encoding", "content-disposition", "cache-control"}
_USER = "x-amz-meta-"
_NO_TYPE = ("content-type", "application/octet-stream")
_DEFAULT = (b"Content-Type", b"application/octet-stream")
_SHOWN = {name: name.title().encode("ascii") for name in _KEPT}


def metadata_of(request: Any) -> Metadata:
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
