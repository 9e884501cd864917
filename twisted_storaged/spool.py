"""Bytes that are kept for later: in memory while they are few, then in a file that has no name and goes with the
process, however that ends."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from twisted_storaged.buckets.threads import Run
from twisted_storaged.errors import BucketError, OutOfSpace

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Bytes of one spool in memory, and of one read of its file.
IN_MEMORY = 256 << 10
PIECE = 64 << 10


def _in_thread(call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
    return deferToThread(call, *args, **kwargs)


def _new_file() -> Any:
    """A file without a name, where files go that may become large: `/tmp` is often memory. See file-hierarchy(7)."""
    persistent = "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK)  # noqa: S108
    return tempfile.TemporaryFile(dir="/var/tmp" if persistent else None, buffering=0)  # noqa: S108


class Spool:
    """What is added to it comes out again, in order. One call at a time; `close` it, or the file stays open.

    The file is written and read by `run`. What cannot be, for want of space, is OutOfSpace, else BucketError.
    """

    def __init__(
        self, run: Run = _in_thread, in_memory: int = IN_MEMORY, make_file: Callable[[], Any] = _new_file
    ) -> None:
        self._run = run
        self._limit = in_memory
        self._make_file = make_file
        self._pieces: list[bytes] = []
        self._size = 0
        self._file: Any = None
        self._written = 0

    async def add(self, data: bytes) -> None:
        """Keep bytes."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._limit:
            pieces, self._pieces, self._size = self._pieces, [], 0
            await self._run(self._write, b"".join(pieces))

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """All that is kept, some at a time."""
        read = 0
        while read < self._written:
            piece = await self._run(self._read, read)
            read += len(piece)
            yield piece
        for piece in self._pieces:
            yield piece

    async def close(self) -> None:
        """Let go of all of it."""
        self._pieces.clear()
        if self._file is not None:
            file, self._file = self._file, None
            # The blocks of a large file are given back now, which takes time.
            await self._run(file.close)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._make_file()
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            kind = OutOfSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else BucketError
            raise kind(f"a temporary file for what is kept cannot be written: {error}") from error
        self._written += len(data)

    def _read(self, offset: int) -> bytes:
        piece = os.pread(self._file.fileno(), min(PIECE, self._written - offset), offset)
        if not piece:
            raise BucketError("a temporary file is shorter than it was written")
        return piece
