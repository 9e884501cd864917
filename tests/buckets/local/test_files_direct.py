"""Reading files with O_DIRECT and through the page cache."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.buckets.local.files import ALIGNMENT, RecentNames, open_to_read, read_at
from twisted_storaged.runtime.buffers import PIECE, SMALL_PIECE, BufferPool

SIZE = 3 * ALIGNMENT + 100
DATA = random.Random(0).randbytes(SIZE)
MEMORY = BufferPool(SMALL_PIECE, PIECE, keep=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("directio") / "file"
    file.write_bytes(DATA)
    return file


@contextmanager
def opened(file: Path, direct: bool) -> Generator[int, None, None]:
    descriptor = open_to_read(file, direct)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def read(descriptor: int, size: int, offset: int) -> bytes:
    return bytes(read_at(descriptor, size, offset, MEMORY))


class ReadTests:
    """Both ways read the same bytes."""

    @given(direct=st.booleans(), offset=st.integers(0, SIZE + ALIGNMENT), size=st.integers(1, SIZE + ALIGNMENT))
    def test_any_place(self, file: Path, direct: bool, offset: int, size: int) -> None:
        """Any offset and size can be read, aligned or not, up to the end of the file and past it."""
        with opened(file, direct) as descriptor:
            assert read(descriptor, size, offset) == DATA[offset : offset + size]

    def test_goes_past_the_page_cache_where_blocks_begin(self, file: Path) -> None:
        """O_DIRECT is used until a read at an unaligned offset, and not after it."""
        with opened(file, True) as descriptor:
            for offset in range(0, SIZE, ALIGNMENT):
                size = min(ALIGNMENT, SIZE - offset)
                assert read(descriptor, size, offset) == DATA[offset : offset + size]
            assert is_direct(descriptor)
            assert read(descriptor, 10, 1) == DATA[1:11]
            assert not is_direct(descriptor)

    @pytest.mark.parametrize("direct", [True, False])
    def test_what_comes_in_pieces_is_put_together(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
    ) -> None:
        """A short read is continued."""
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:ALIGNMENT]], offset))
        with opened(file, direct) as descriptor:
            assert read(descriptor, SIZE, 0) == DATA

    def test_other_errors_are_passed_on(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An I/O error is raised, and the read is not repeated."""
        asked = []

        def fail(*args: object) -> int:
            asked.append(args)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "preadv", fail)
        with opened(file, True) as descriptor, pytest.raises(OSError, match="Input/output"):
            read(descriptor, 1, 0)
        assert len(asked) == 1


class OpenTests:
    """Opening files for reading."""

    @pytest.mark.parametrize("direct", [True, False])
    def test_a_file_that_is_not_there(self, tmp_path: Path, direct: bool) -> None:
        """FileNotFoundError is raised for a missing file."""
        with pytest.raises(FileNotFoundError):
            open_to_read(tmp_path / "none", direct)

    def test_a_file_system_that_knows_no_other_way(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file on a file system without O_DIRECT is opened without it."""
        open_file = os.open

        def refuse(path: Path, flags: int) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return open_file(path, flags)

        monkeypatch.setattr(os, "open", refuse)
        with opened(file, True) as descriptor:
            assert not is_direct(descriptor)
            assert read(descriptor, SIZE, 0) == DATA


class RecentTests:
    """The names that were asked for last."""

    def test_the_second_time(self) -> None:
        """A name is known from the second time on."""
        recent = RecentNames(2)
        assert [recent.asked_again(name) for name in "abab"] == [False, False, True, True]

    def test_those_asked_for_longest_ago_are_forgotten(self) -> None:
        """The name that was asked for longest ago is forgotten first."""
        recent = RecentNames(2)
        for name in "abac":
            recent.asked_again(name)
        assert recent.asked_again("a")
        assert not recent.asked_again("b")
