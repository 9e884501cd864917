"""SQLite's write-ahead log as a file: whether it holds commits that SQLite would pass over.

SQLite reads its log up to the first frame whose checksum is wrong, and says nothing of what comes after: that is right
where the machine lost its power while it wrote, and hides lost commits where a bit was flipped. This module reads and
changes nothing. https://sqlite.org/walformat.html

The wal-index beside it (`-shm`) counts the frames that were committed. It is memory that is shared, so that it outlives
a kill -9, and it is written after the fsync of a commit and before anybody is told of it. Until the machine loses its
power it is exact: a commit that it does not count was answered to nobody, and may be torn.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
#: The wal-index begins with two copies of this: changes since it was made, whether it is, committed frames, salts.
_WAL_INDEX = struct.Struct("=8xIBxxxI12x8s8x")
#: The first word of a log; its lowest bit tells the byte order that checksums are computed in.
_MAGIC = 0x377F0682


class WalState(NamedTuple):
    """What a log holds: commits that SQLite will find, and commits behind a damaged place, which it will not."""

    readable: int
    unreadable: int
    #: The number of frames up to the last commit that SQLite will find.
    frames: int
    #: What tells this round of the log from others.
    salts: bytes


class Committed(NamedTuple):
    """What the wal-index says: how many frames of the log were committed, in the round with these salts.

    `is_counted` tells that whoever wrote the index has committed since it was made; else the number is what was found
    in the log then.
    """

    frames: int
    salts: bytes
    is_counted: bool


def read_wal_index(path: Path) -> Committed | None:
    """What the wal-index at `path` says; None if there is none, or it cannot be relied on.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            first, second = file.read(_WAL_INDEX.size), file.read(_WAL_INDEX.size)
    except FileNotFoundError:
        return None
    if len(first) < _WAL_INDEX.size or first != second:
        return None
    changes, is_made, frames, salts = _WAL_INDEX.unpack(first)
    return Committed(frames, salts, changes > 0) if is_made else None


def read_wal(path: Path) -> WalState | None:
    """What the log at `path` holds; None if there is none, it is empty, or its header is damaged.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            magic, _, page_size, _, *salts_and_sums = _HEADER.unpack(header)
            checksum = _Checksum(bigendian=bool(magic & 1))
            checksum.add(header[:24])
            if magic & ~1 != _MAGIC or checksum.sums != tuple(salts_and_sums[2:]):
                return None
            frames = iter(lambda: file.read(_FRAME.size + page_size), b"")
            return _count(frames, tuple(salts_and_sums[:2]), checksum)
    except FileNotFoundError:
        return None


def _count(frames: Iterator[bytes], salts: tuple[int, ...], checksum: _Checksum) -> WalState:
    """Count the commits up to the first frame that is not valid, and those after it that were written by the same log:
    what an earlier round of it left behind has other salts.
    """
    readable = unreadable = last = 0
    intact = True
    for number, frame in enumerate(frames, 1):
        if len(frame) < _FRAME.size:
            break
        _, pages, *frame_salts, sum1, sum2 = _FRAME.unpack_from(frame)
        ours = tuple(frame_salts) == salts
        if intact:
            checksum.add(frame[:8])
            checksum.add(frame[_FRAME.size :])
            intact = ours and checksum.sums == (sum1, sum2)
        # A frame that ends a transaction tells how many pages the database then has.
        if ours and pages:
            if intact:
                readable, last = readable + 1, number
            else:
                unreadable += 1
    return WalState(readable, unreadable, last, struct.pack(">2I", *salts))


class _Checksum:
    """The running checksum of a log, over pairs of 32-bit words."""

    def __init__(self, bigendian: bool) -> None:
        self._swap = bigendian != (sys.byteorder == "big")
        self.sums = (0, 0)

    def add(self, data: bytes) -> None:
        """Take in bytes, whose number is a multiple of 8 (of a frame that is cut short, those that fit)."""
        words = array("I", data[: len(data) // 8 * 8])
        if self._swap:
            words.byteswap()
        sum1, sum2 = self.sums
        pairs = iter(words)
        for first, second in zip(pairs, pairs, strict=True):
            sum1 = (sum1 + first + sum2) & 0xFFFFFFFF
            sum2 = (sum2 + second + sum1) & 0xFFFFFFFF
        self.sums = sum1, sum2
