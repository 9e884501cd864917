"""A file in memory by which one process shows others its latest report, also when it has died.

Neither waits for the other: the writer writes into one half while the other half has the report that is valid. The
supervisor makes the file, gives it to a worker, and passes it to whoever wants to read.
"""

from __future__ import annotations

import os
import struct
from zlib import crc32

#: Bytes of the longest report.
LONGEST = 4 << 20
#: Where the halves begin; which of them is valid stands in the byte at 0.
_FIRST = 4096
_HEAD = struct.Struct("<QI")
_SIZE = _HEAD.size + LONGEST
_ATTEMPTS = 5


def make_report_file() -> int:
    """Make such a file; returns its descriptor. It has memory for what has been written only. Raises OSError."""
    return os.memfd_create("report", os.MFD_CLOEXEC)


class ReportWriter:
    """Writes reports to a file."""

    def __init__(self, descriptor: int) -> None:
        """Write to a file of `make_report_file`, which has no other writer."""
        self._descriptor = descriptor
        self._half = 1

    def write(self, report: bytes) -> bool:
        """Replace the report; returns whether that was done: not if it is longer than LONGEST. Raises OSError."""
        if len(report) > LONGEST:
            return False
        half = 1 - self._half
        os.pwrite(self._descriptor, _HEAD.pack(len(report), crc32(report)) + report, _FIRST + half * _SIZE)
        os.pwrite(self._descriptor, bytes([half + 1]), 0)
        self._half = half
        return True


def read_report(descriptor: int) -> bytes:
    """The latest report; empty if there is none. Raises OSError."""
    for _ in range(_ATTEMPTS):
        valid = os.pread(descriptor, 1, 0)
        if not valid or not valid[0]:
            return b""
        start = _FIRST + (valid[0] - 1) * _SIZE
        head = os.pread(descriptor, _HEAD.size, start)
        if len(head) < _HEAD.size:
            return b""
        size, checksum = _HEAD.unpack(head)
        report = os.pread(descriptor, min(size, LONGEST), start + _HEAD.size)
        # The writer may have written two reports meanwhile.
        if crc32(report) == checksum:
            return report
    return b""
