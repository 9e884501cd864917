"""The embedded bucket's files: immutable contents, each written once under a name of its own. Blocking.

A file is visible only once the index names it, so a new one is written in its final place. What the index does not
name is what a crash left behind.

Whole blocks go past the page cache, while more of the body arrives. The end of a file, and file systems that know no
O_DIRECT, take the usual way.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from twisted_storaged.buckets.directio import BLOCK, open_to_read, write_all, write_direct
from twisted_storaged.buckets.memory import Memory
from twisted_storaged.errors import StartError

#: Pieces of memory that are kept for the next reads and writes.
KEEP = 32

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIRECT = os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
_FOLDERS = [f"{number:02x}" for number in range(256)]


class Contents:
    """The files of an embedded bucket, for reading: in 256 folders, by the first two letters of their names."""

    def __init__(self, path: Path) -> None:
        self.index_path = path / "index.sqlite"
        self.memory = Memory(KEEP)
        self._objects = path / "objects"

    def open(self, name: str, *, direct: bool = False) -> int:
        """A descriptor for reading a content, through the page cache or past it. Raises FileNotFoundError."""
        return open_to_read(self._folder(name) / name, direct)

    def names(self) -> Iterator[str]:
        """The names of all contents, in order."""
        for folder in _FOLDERS:
            yield from sorted(os.listdir(self._objects / folder))

    def unnamed(self, named: Iterator[str]) -> Iterator[str]:
        """Every content that is not in `named`, which comes in order."""
        kept = next(named, None)
        for name in self.names():
            while kept is not None and kept < name:
                kept = next(named, None)
            if name != kept:
                yield name

    def _folder(self, name: str) -> Path:
        return self._objects / name[:2]


class Directory(Contents):
    """A folder that one daemon has for itself, with contents in 256 folders below it."""

    def __init__(self, path: Path) -> None:
        """Make it if need be, and lock it.

        Raises:
            StartError: another daemon has it.
            OSError: it cannot be made or used.
        """
        super().__init__(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(path)
        self._make_folders()

    def create(self) -> ContentFile:
        """A new, empty content with a name that no other ever had."""
        name = new_name()
        return ContentFile(name, self._folder(name), self.memory)

    def remove(self, name: str) -> None:
        """Remove a content; who has it open reads on."""
        (self._folder(name) / name).unlink(missing_ok=True)

    def sweep(self, named: Iterator[str]) -> int:
        """Remove every content that is not in `named`, which comes in order; returns how many those were."""
        removed = 0
        for name in self.unnamed(named):
            self.remove(name)
            removed += 1
        return removed

    def close(self) -> None:
        """Let another daemon have it."""
        os.close(self._lock)

    def _make_folders(self) -> None:
        for folder in _FOLDERS:
            (self._objects / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder_with_new_names in (self._objects, self._objects.parent):
            sync_folder(folder_with_new_names)


class ContentFile:
    """A content while it is written."""

    def __init__(self, name: str, folder: Path, memory: Memory) -> None:
        self.name = name
        self._folder = folder
        self._memory = memory
        self._descriptors = [os.open(folder / name, _NEW, 0o600)]
        with suppress(OSError):
            self._descriptors.append(os.open(folder / name, _DIRECT))

    def write(self, data: bytearray, offset: int) -> None:
        """Write all of `data` at `offset`; safe beside other calls, at other offsets."""
        usual, *direct = self._descriptors
        if direct and len(data) % BLOCK == offset % BLOCK == 0:
            write_direct(direct[0], data, offset, self._memory)
        else:
            write_all(usual, memoryview(data), offset)

    def seal(self) -> int:
        """Bring the bytes, and then the name, to the disk; returns the size in bytes."""
        os.fsync(self._descriptors[0])
        size = os.fstat(self._descriptors[0]).st_size
        self._close()
        sync_folder(self._folder)
        return size

    def discard(self) -> None:
        """Remove it again."""
        self._close()
        (self._folder / self.name).unlink(missing_ok=True)

    def _close(self) -> None:
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


def new_name() -> str:
    """A name for a content that no other ever had."""
    return os.urandom(16).hex()


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: fsync of a file does not. See fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StartError(f"{path} is in use by another storaged; give this one a --data of its own") from None
    return descriptor
