"""Checksums of objects: parsing those that S3 returns, and verifying a stream of bytes against them. No I/O.

S3 has two kinds. A full-object checksum covers all bytes. A composite checksum belongs to an object that was uploaded
in parts: it is the checksum of the concatenated checksums of the parts, followed by a hyphen and the number of parts.
An ETag that is an MD5 has the same two forms.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

from awscrt import checksums

#: The header with which S3 returns the checksums that it keeps, in response to a GET of a whole object.
CHECKSUM_MODE = {"x-amz-checksum-mode": "ENABLED"}

_VALUE = re.compile(r"([A-Za-z0-9+/]+=*)(?:-([1-9][0-9]{0,4}))?")
_MD5_ETAG = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?")
_COMPOSITE, _FULL = "COMPOSITE", "FULL_OBJECT"


class IncrementalHash(Protocol):
    """A checksum that is computed piece by piece, with the interface of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add the next bytes."""

    def digest(self) -> bytes:
        """Return the checksum of all bytes so far."""


class Algorithm(NamedTuple):
    """A checksum algorithm.

    Attributes:
        name: as in S3's header names.
        size: of a checksum, in bytes.
        slow: whether it takes 0.5 ms or more for each MiB; a CRC takes at most 0.1 ms.
        start: begins the computation of a checksum.
    """

    name: str
    size: int
    slow: bool
    start: Callable[[], IncrementalHash]


class _Crc:
    """A CRC of awscrt with the interface of hashlib. Its digest is big-endian, as S3 writes it."""

    def __init__(self, function: Callable[[bytes, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


CRC32C = Algorithm("crc32c", 4, False, partial(_Crc, checksums.crc32c, 4))
# `usedforsecurity`, as hosts that allow only approved algorithms (FIPS) refuse MD5 otherwise.
MD5 = Algorithm("md5", 16, True, partial(hashlib.md5, usedforsecurity=False))
SHA256 = Algorithm("sha256", 32, True, hashlib.sha256)

#: The algorithms that S3 has headers for, the cheapest first.
_S3_ALGORITHMS = (
    CRC32C,
    Algorithm("crc64nvme", 8, False, partial(_Crc, checksums.crc64nvme, 8)),
    Algorithm("crc32", 4, False, partial(_Crc, checksums.crc32, 4)),
    SHA256,
    Algorithm("sha1", 20, True, partial(hashlib.sha1, usedforsecurity=False)),
)


class ExpectedChecksum(NamedTuple):
    """The checksum that an object should have.

    Attributes:
        source: where it was found, for error messages.
        parts: how many parts a composite checksum covers; None for a full-object checksum.
    """

    algorithm: Algorithm
    digest: bytes
    source: str
    parts: int | None = None


def checksum_from_headers(headers: Mapping[str, str]) -> ExpectedChecksum | None:
    """Return the checksum in the response to a GET of a whole object, preferably a full-object one.

    None if there is no valid one, or if its form contradicts `x-amz-checksum-type`.
    """
    kind = headers.get("x-amz-checksum-type", "").upper()
    composite = None
    for algorithm in _S3_ALGORITHMS:
        header = f"x-amz-checksum-{algorithm.name}"
        if header not in headers:
            continue
        match = _VALUE.fullmatch(headers[header])
        digest = decode_digest(match[1], algorithm.size) if match else None
        if match is None or digest is None or kind == (_FULL if match[2] else _COMPOSITE):
            continue  # malformed, or of the kind that its type denies: neither can be trusted
        # Preferred, since a composite checksum can only be verified if the sizes of the parts are known.
        if not match[2]:
            return ExpectedChecksum(algorithm, digest, header)
        composite = composite or ExpectedChecksum(algorithm, digest, header, int(match[2]))
    return composite


def checksum_from_etag(headers: Mapping[str, str]) -> ExpectedChecksum | None:
    """Return the ETag as an MD5, if it looks like one and the object's encryption does not rule that out.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    match = _MD5_ETAG.fullmatch(headers.get("etag", "").strip('"'))
    encryption = headers.get("x-amz-server-side-encryption", "")
    # With keys of KMS, or keys that the client provides, an ETag of the same form is not an MD5.
    if match is None or encryption.startswith("aws:") or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    return ExpectedChecksum(MD5, bytes.fromhex(match[1]), "etag", int(match[2]) if match[2] else None)


def decode_digest(text: str, size: int) -> bytes | None:
    """Decode a digest of `size` bytes from base64; None if `text` is not one."""
    try:
        digest = b64decode(text, validate=True)
    except ValueError:
        return None
    return digest if len(digest) == size else None


class Verification:
    """Compares the bytes of one object, given in order, with the checksum that it should have."""

    def __init__(self, expected: ExpectedChecksum, size: int, part_size: int | None = None) -> None:
        """Verify an object of `size` bytes. If it has parts, all but the last have `part_size` bytes."""
        self._expected = expected
        self._left = size
        self._part_size = part_size or size
        self._part_left = self._part_size
        self._running = expected.algorithm.start()
        self._composite = None if expected.parts is None else expected.algorithm.start()

    @property
    def slow(self) -> bool:
        """Whether the algorithm is so slow that bytes should be given in small pieces."""
        return self._expected.algorithm.slow

    @property
    def part_size(self) -> int | None:
        """The part size that the result depends on; None for a full-object checksum or a single part."""
        return None if self._expected.parts in (None, 1) else self._part_size

    @property
    def left(self) -> int:
        """How many bytes are still missing."""
        return self._left

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        self._left -= len(data)
        if self._composite is None:
            self._running.update(data)  # type: ignore[arg-type]
            return
        # Pieces need not end where parts do.
        # A view, so that nothing is copied where a part ends.
        rest = memoryview(data)
        while rest:
            part, rest = rest[: self._part_left], rest[self._part_left :]
            self._running.update(part)  # type: ignore[arg-type]
            self._part_left -= len(part)
            if not self._part_left:
                self._end_part(self._composite)

    def mismatch(self) -> str | None:
        """Describe the mismatch, once all bytes have been added; None if the checksum is right."""
        if self._composite is None:
            digest = self._running.digest()
        else:
            if self._part_left < self._part_size:
                # The last part, which may be shorter than the others.
                self._end_part(self._composite)
            digest = self._composite.digest()
        expected = self._expected
        if digest == expected.digest:
            return None
        return (
            f"its {expected.algorithm.name} is {digest.hex()}, but should be {expected.digest.hex()} according to its "
            f"{expected.source}"
        )

    def _end_part(self, composite: IncrementalHash) -> None:
        composite.update(self._running.digest())
        self._running, self._part_left = self._expected.algorithm.start(), self._part_size
