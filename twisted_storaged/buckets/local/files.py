"""The embedded bucket's files: immutable contents, each written once, past the page cache. Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from twisted_storaged.errors import StartError
from twisted_storaged.runtime.buffers import PIECE, SMALL_PIECE, BufferPool
from twisted_storaged.runtime.files import make_folder, sync_folder, tighten, touch

# The embedded bucket's files: immutable contents, each written once under a name of its own. Blocking.
#
# A file is visible only once the index names it, so a new one is written in its final place. While it is written and
# until its commit has returned, an empty file of the same name in `pending/` says so. After a crash such a note
# proves that nobody was told of the file, and that it may be removed; files that the index does not name and that
# have no note are never removed, but moved to `lost/`: see `leftovers`.
#
# Whole blocks go past the page cache, while more of the body arrives. The end of a file, and file systems that know
# no O_DIRECT, take the usual way.

#: Pieces of memory that are kept for the next reads and writes.
KEEP = 32
#: How often, and in which distance in seconds, the lock of a folder is tried for.
LOCK_TRIES = 5
LOCK_PAUSE = 0.02

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIRECT = os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
_FOLDERS = [f"{number:02x}" for number in range(256)]
_NAME = re.compile(r"[0-9a-f]{32}")


class ContentFiles:
    """The files of an embedded bucket, for reading: in 256 folders, by the first two letters of their names."""

    def __init__(self, path: Path) -> None:
        self.index_path = path / "index.sqlite"
        self.lost_path = path / "lost"
        self.pending_path = path / "pending"
        self.objects_path = path / "objects"
        self.memory = BufferPool(SMALL_PIECE, PIECE, keep=KEEP)

    def open(self, name: str, *, direct: bool = False) -> int:
        """A descriptor for reading a content, through the page cache or past it. Raises FileNotFoundError."""
        return open_to_read(self._folder(name) / name, direct)

    def names(self) -> Iterator[str]:
        """The names of all contents, in order: regular files with a name of ours, in the folder of that name."""
        for folder in _FOLDERS:
            yield from sorted(entry.name for entry in self._entries(folder) if _is_content(entry, folder))

    def strays(self) -> Iterator[Path]:
        """Everything else that is where contents are. It is not ours, and nobody touches it."""
        for entry in os.scandir(self.objects_path):
            if entry.name not in _FOLDERS:
                yield Path(entry.path)
        for folder in _FOLDERS:
            yield from (Path(entry.path) for entry in self._entries(folder) if not _is_content(entry, folder))

    def unnamed(self, named: Iterator[str]) -> Iterator[str]:
        """Every content that is not in `named`, which comes in order."""
        kept = next(named, None)
        for name in self.names():
            while kept is not None and kept < name:
                kept = next(named, None)
            if name != kept:
                yield name

    def is_in_use(self) -> bool:
        """Whether a daemon has the folder."""
        try:
            descriptor = os.open(self.objects_path.with_name("lock"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two that ask at once do not take each other for a daemon.
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def pending(self) -> dict[str, Path]:
        """The notes of uploads that have begun and not ended, by the names of their contents."""
        return {note.name: note for note in self.pending_path.glob("*/*") if _NAME.fullmatch(note.name)}

    def path_of(self, name: str) -> Path:
        """Where a content is, or would be."""
        return self._folder(name) / name

    def _folder(self, name: str) -> Path:
        return self.objects_path / name[:2]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            return list(os.scandir(self.objects_path / folder))
        except FileNotFoundError:
            return []


class DataFolder(ContentFiles):
    """A folder that one daemon has for itself, with contents in 256 folders below it."""

    def __init__(self, path: Path, boot: str | None = None) -> None:
        """Make it if need be, lock it, and close to others what storaged made in it.

        `boot` is a name of the kernel's present run; without it, the boot id.

        Raises:
            StartError: another daemon has it, or some of it belongs to another user.
            OSError: it cannot be made or used.
        """
        super().__init__(path)
        self.boot = boot or boot_id()
        self._notes = self.pending_path / self.boot
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(path)
        self._make_folders()
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "index.state"):
            tighten(path / name)

    def create(self) -> ContentFile:
        """A new, empty content with a name that no other ever had, and its note."""
        name = new_name()
        os.close(os.open(self._notes / name, _NEW, 0o600))
        return ContentFile(self, name)

    def drop_note(self, name: str) -> None:
        """Remove the note of a content: either the index names it, or it is gone. Before anybody is told of it."""
        (self._notes / name).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a content, and then its note. A reader that has it open can still read it."""
        self.path_of(name).unlink(missing_ok=True)
        self.drop_note(name)

    def close(self) -> None:
        """Let another daemon have it."""
        os.close(self._lock)

    def _make_folders(self) -> None:
        for folder in (self.objects_path, *(self.objects_path / name for name in _FOLDERS)):
            make_folder(folder)
        for folder in (self.lost_path, self.pending_path, self._notes):
            make_folder(folder)
        for folder_with_new_names in (self.objects_path, self.objects_path.parent):
            sync_folder(folder_with_new_names)


class ContentFile:
    """A content while it is written."""

    def __init__(self, folder: DataFolder, name: str) -> None:
        self.name = name
        self._folder = folder
        self._path = folder.path_of(name)
        self._descriptors = [os.open(self._path, _NEW, 0o600)]
        with suppress(OSError):
            self._descriptors.append(os.open(self._path, _DIRECT))

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` at `offset`; safe beside other calls, at other offsets."""
        usual, *direct = self._descriptors
        if direct and len(data) % ALIGNMENT == offset % ALIGNMENT == 0:
            try:
                write_all(direct[0], data, offset)
                return
            except OSError as error:
                # Small bodies are in memory of the channel's, which is not aligned.
                if error.errno != errno.EINVAL:
                    raise
        write_all(usual, data, offset)

    def seal(self) -> int:
        """Bring the bytes, and then the name, to the disk; returns the size in bytes."""
        os.fsync(self._descriptors[0])
        size = os.fstat(self._descriptors[0]).st_size
        self._close()
        sync_folder(self._path.parent)
        return size

    def discard(self) -> None:
        """Remove it again, and then its note."""
        self._close()
        self._folder.remove(self.name)

    def _close(self) -> None:
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


def boot_id() -> str:
    """A name that the kernel has until it boots again. See random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def new_name() -> str:
    """A name for a content that no other ever had."""
    return os.urandom(16).hex()


def _is_content(entry: os.DirEntry[str], folder: str) -> bool:
    is_ours = entry.name.startswith(folder) and _NAME.fullmatch(entry.name) is not None
    return is_ours and entry.is_file(follow_symlinks=False)


def _lock(path: Path) -> int:
    touch(path / "lock")
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    # Whoever asks `is_in_use` has the lock for microseconds.
    for _ in range(LOCK_TRIES):
        if _try_lock(descriptor, fcntl.LOCK_EX):
            return descriptor
        time.sleep(LOCK_PAUSE)
    os.close(descriptor)
    raise StartError(f"{path} is in use by another storaged; give this one a --data of its own")


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# Writing and reading past the page cache (O_DIRECT, see open(2)).
#
# The disk moves whole blocks from memory and to it by itself: the kernel neither copies them nor finds pages for
# them, little is left for an fsync to wait for, and what others on this host read often stays in the page cache. As
# what is written is not in it, a first read is cheaper past it, too; what is read again is worth a place there.

#: What O_DIRECT wants places, lengths and memory to be multiples of, in bytes: a page does for every disk.
ALIGNMENT = 4096


def open_to_read(path: Path, direct: bool) -> int:
    """A descriptor for reading; O_DIRECT if that is asked for, and this file system knows it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)


def read_at(descriptor: int, size: int, offset: int, memory: BufferPool) -> memoryview:
    """`size` bytes at `offset`, at most a piece of memory; fewer where the file ends.

    A descriptor that is O_DIRECT no longer is, once it was to be read where no block begins.
    """
    whole = -(-size // ALIGNMENT) * ALIGNMENT
    piece, count = memory.take(whole), 0
    blocks = piece[:whole]
    while count < size and (more := _read_some(blocks[count:], descriptor, offset + count)):
        count += more
    return piece[: min(count, size)]


def _read_some(data: memoryview, descriptor: int, offset: int) -> int:
    try:
        return os.preadv(descriptor, [data], offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return os.preadv(descriptor, [data], offset)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in as many calls as it takes."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]


class RecentNames:
    """The last names that were asked for, `keep` of them."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._names: OrderedDict[str, None] = OrderedDict()

    def asked_again(self, name: str) -> bool:
        """Whether this name is among them; it is from now on."""
        again = name in self._names
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > self._keep:
            self._names.popitem(last=False)
        return again
