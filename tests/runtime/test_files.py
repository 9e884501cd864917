"""Spools: temporary storage in memory and files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.support import result, run_now
from twisted_storaged.errors import BucketError, OutOfSpace
from twisted_storaged.runtime.files import PIECE, Spool


def files_in(folder: Path) -> Callable[[], Any]:
    return lambda: TemporaryFile(dir=folder, buffering=0)


async def kept(spool: Spool) -> list[bytes]:
    return [piece async for piece in spool.pieces()]


def added(spool: Spool, *pieces: bytes) -> list[bytes]:
    """Add bytes to a spool, and return what comes out."""

    async def add() -> list[bytes]:
        for piece in pieces:
            await spool.add(piece)
        return await kept(spool)

    return result(Deferred.fromCoroutine(add()))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Short:
    """A file that takes three bytes at a time."""

    def __init__(self, folder: Path) -> None:
        self._file: Any = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (it goes with this)
        self.fileno = self._file.fileno

    def write(self, data: memoryview) -> int:
        return int(self._file.write(data[:3]))


class SpoolTests:
    """Bytes are kept in memory while they are few, and in a file otherwise."""

    @given(pieces=st.lists(st.binary(max_size=20), max_size=20), in_memory=st.integers(0, 100))
    def test_gives_what_it_got(self, pieces: list[bytes], in_memory: int) -> None:
        """A spool yields what was added, in order, and closes its file."""
        before = open_files()
        spool = Spool(run_now, in_memory)
        assert b"".join(added(spool, *pieces)) == b"".join(pieces)
        result(Deferred.fromCoroutine(spool.close()))
        assert open_files() == before

    def test_has_no_more_in_memory_than_it_may(self, tmp_path: Path) -> None:
        """A spool exceeds its limit of memory neither on adding nor on reading, and its file has no name."""
        spool = Spool(run_now, 1000, files_in(tmp_path))
        pieces = added(spool, *[b"x" * 100] * 5000)
        assert sum(map(len, pieces)) == 500_000
        assert max(map(len, pieces)) == PIECE
        assert sum(len(piece) for piece in spool._pieces) <= 1000
        assert list(tmp_path.iterdir()) == []

    def test_few_bytes_need_no_file(self, tmp_path: Path) -> None:
        """A spool creates no file while its bytes fit in memory."""
        assert added(Spool(run_now, 10, files_in(tmp_path / "none")), b"12345", b"67890") == [b"12345", b"67890"]

    def test_no_file(self, tmp_path: Path) -> None:
        """BucketError is raised if the temporary file cannot be created."""
        with pytest.raises(BucketError, match="none"):
            added(Spool(run_now, 1, files_in(tmp_path / "none")), b"12")

    def test_a_full_disk(self) -> None:
        """OutOfSpace is raised if the disk is full."""
        with Path("/dev/full").open("r+b", buffering=0) as full, pytest.raises(OutOfSpace, match="No space left"):
            added(Spool(run_now, 1, lambda: full), b"12")

    def test_writes_that_are_short(self, tmp_path: Path) -> None:
        """A write that takes fewer bytes is continued."""
        assert added(Spool(run_now, 1, lambda: Short(tmp_path)), b"0123456789", b"x") == [b"0123456789", b"x"]
