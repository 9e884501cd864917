"""Checksums of what an embedded bucket keeps: of each block of a content, of a whole content, and of index rows.

All are CRC-32C. A whole content's is combined from those of its blocks. A row of the table of objects has two, as a
list reads only its first columns: one over those, and one over everything, with the metadata and digests that the row
points at.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from struct import Struct, error
from sys import byteorder
from typing import NamedTuple

from awscrt.checksums import combine_crc32c, crc32c

#: Bytes of a block; the last one of a content may be shorter.
BLOCK = 256 << 10

_SIZE_AND_TIME = Struct("<qd").pack
_NUMBERS = Struct("<qqqq").pack
#: What reading a row as it was never written may raise: other types where text or numbers were.
_OTHER_TYPES = (TypeError, AttributeError, UnicodeError, error)


class Listed(NamedTuple):
    """The columns of an object's row that lists read, before their checksum."""

    key: str
    size: int
    etag: str
    last_modified: float


class Row(NamedTuple):
    """The columns of an object's row that only GET and HEAD read, and the text of the details that it points at."""

    row: int | None
    details: int | None
    checksum: int | None
    blocks: int | None
    metadata: str | None
    digests: str | None


def listed_checksum(key: str, size: int, etag: str, last_modified: float) -> int:
    """The checksum over the columns that lists read.

    Returns -1, which no row has, for values that have never been written.
    """
    try:
        columns = f"{key}\0{etag}".encode() + _SIZE_AND_TIME(size, last_modified)
    except _OTHER_TYPES:
        return -1
    checksum: int = crc32c(columns)
    return checksum if type(key) is str else -1


def row_checksum(listed: int, row: Row) -> int:
    """The checksum over a whole row, whose listed columns have the checksum `listed`.

    Returns -1, which no row has, for values that have never been written.
    """
    try:
        known = -1 if row.checksum is None else row.checksum
        numbers = _NUMBERS(row.row or 0, row.details or 0, row.blocks or 0, known)
        checksum: int = crc32c(numbers + f"{row.metadata or ''}\0{row.digests or ''}".encode(), listed)
    except (*_OTHER_TYPES, OverflowError):
        return -1
    return checksum


def block_checksums(data: bytes | bytearray | memoryview) -> list[int]:
    """The checksum of each block of `data`, which begins where a block does."""
    with memoryview(data) as whole:
        return [crc32c(whole[start : start + BLOCK]) for start in range(0, len(whole), BLOCK)]


def combined(checksums: Iterable[int], size: int) -> int:
    """The checksum of `size` bytes, from those of their blocks."""
    whole = 0
    for number, checksum in enumerate(checksums):
        whole = combine_crc32c(whole, checksum, min(BLOCK, size - number * BLOCK))
    return whole


def pack(checksums: Iterable[int]) -> bytes:
    """Checksums as the index keeps them: four bytes each, the lowest first."""
    return _little(array("I", checksums)).tobytes()


def unpack(packed: bytes) -> array[int]:
    """What `pack` has packed."""
    return _little(array("I", packed))


def packed_checksum(etag: str, packed: bytes) -> int:
    """The checksum over the packed checksums of the blocks of the object of this ETag."""
    checksum: int = crc32c(packed, crc32c(etag.encode()))
    return checksum


def _little(numbers: array[int]) -> array[int]:
    if byteorder == "big":
        numbers.byteswap()
    return numbers
