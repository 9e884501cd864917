"""Checksums of objects: computing them as bytes go by, and reading the ones that S3 gives. No I/O.

S3 has two kinds. A full-object checksum is of all bytes. A composite one is of an object that was uploaded in parts:
the checksum of the parts' checksums, one after the other, with the number of parts after a hyphen. ETags that are MD5s
follow the same rule.

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

#: Has S3 add the checksums that it keeps to a GET of a whole object.
CHECKSUM_MODE = {"x-amz-checksum-mode": "ENABLED"}

_VALUE = re.compile(r"([A-Za-z0-9+/]+=*)(?:-([1-9][0-9]{0,4}))?")
_MD5_ETAG = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?")
_COMPOSITE, _FULL = "COMPOSITE", "FULL_OBJECT"


class Running(Protocol):
    """A checksum of the bytes until now, as hashlib has it."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""

    def digest(self) -> bytes:
        """The checksum of all of them."""


class Algorithm(NamedTuple):
    """How to compute a checksum of `size` bytes. A `slow` one takes 0.5 ms and more for each MiB, a CRC 0.1 at most."""

    name: str
    size: int
    slow: bool
    start: Callable[[], Running]


class _Crc:
    """A CRC of awscrt, as hashlib has its hashes: big-endian, as S3 writes it."""

    def __init__(self, function: Callable[[bytes, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


CRC32C = Algorithm("crc32c", 4, False, partial(_Crc, checksums.crc32c, 4))
MD5 = Algorithm("md5", 16, True, partial(hashlib.md5, usedforsecurity=False))
SHA256 = Algorithm("sha256", 32, True, hashlib.sha256)

#: What S3 has headers for, the cheapest first.
_OF_S3 = (
    CRC32C,
    Algorithm("crc64nvme", 8, False, partial(_Crc, checksums.crc64nvme, 8)),
    Algorithm("crc32", 4, False, partial(_Crc, checksums.crc32, 4)),
    SHA256,
    Algorithm("sha1", 20, True, partial(hashlib.sha1, usedforsecurity=False)),
)


class Known(NamedTuple):
    """A checksum that an object is known to have, where it is told, and of how many parts' it is composed, if it is."""

    algorithm: Algorithm
    digest: bytes
    source: str
    parts: int | None = None


def checksum_told(headers: Mapping[str, str]) -> Known | None:
    """The checksum in the answer to a GET of a whole object; a full-object one before a composite one.

    None where there is none, or where the engine contradicts itself about which kind it is.
    """
    kind = headers.get("x-amz-checksum-type", "").upper()
    composite = None
    for algorithm in _OF_S3:
        header = f"x-amz-checksum-{algorithm.name}"
        if header not in headers:
            continue
        match = _VALUE.fullmatch(headers[header])
        digest = decoded(match[1], algorithm.size) if match else None
        if match is None or digest is None or kind == (_FULL if match[2] else _COMPOSITE):
            continue
        if not match[2]:
            return Known(algorithm, digest, header)
        composite = composite or Known(algorithm, digest, header, int(match[2]))
    return composite


def checksum_of_etag(headers: Mapping[str, str]) -> Known | None:
    """The MD5 that the ETag is, if it looks like one and the object is not encrypted in a way that makes it none.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    match = _MD5_ETAG.fullmatch(headers.get("etag", "").strip('"'))
    encryption = headers.get("x-amz-server-side-encryption", "")
    if match is None or encryption.startswith("aws:") or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    return Known(MD5, bytes.fromhex(match[1]), "etag", int(match[2]) if match[2] else None)


def decoded(text: str, size: int) -> bytes | None:
    """A digest of `size` bytes in base64; None where it is none."""
    try:
        digest = b64decode(text, validate=True)
    except ValueError:
        return None
    return digest if len(digest) == size else None


class Verification:
    """Compares one object, as its bytes go by in order, with the checksum that it is known to have."""

    def __init__(self, known: Known, size: int, part_size: int | None = None) -> None:
        """Of an object of `size` bytes; all its parts but the last have `part_size` bytes, if it has parts."""
        self._known = known
        self._left = size
        self._part_size = part_size or size
        self._part_left = self._part_size
        self._running = known.algorithm.start()
        self._composite = None if known.parts is None else known.algorithm.start()

    @property
    def slow(self) -> bool:
        """Whether it takes so long that bytes should come in small pieces."""
        return self._known.algorithm.slow

    @property
    def part_size(self) -> int | None:
        """The part size that the result depends on; None if it depends on none."""
        return None if self._known.parts in (None, 1) else self._part_size

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self._left

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._left -= len(data)
        if self._composite is None:
            self._running.update(data)  # type: ignore[arg-type]
            return
        rest = memoryview(data)
        while rest:
            part, rest = rest[: self._part_left], rest[self._part_left :]
            self._running.update(part)  # type: ignore[arg-type]
            self._part_left -= len(part)
            if not self._part_left:
                self._end_part(self._composite)

    def mismatch(self) -> str | None:
        """What is wrong, once all bytes have come; None if nothing is."""
        if self._composite is None:
            digest = self._running.digest()
        else:
            if self._part_left < self._part_size:
                self._end_part(self._composite)
            digest = self._composite.digest()
        name, expected = self._known.algorithm.name, self._known.digest
        if digest == expected:
            return None
        return f"its {name} is {digest.hex()}, and should be {expected.hex()} by its {self._known.source}"

    def _end_part(self, composite: Running) -> None:
        composite.update(self._running.digest())
        self._running, self._part_left = self._known.algorithm.start(), self._part_size
