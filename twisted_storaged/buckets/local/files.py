"""The files of the embedded bucket: immutable contents, written and read past the page cache. Blocking.

Each content is written once, under a name of its own, in its final place: only the index makes it visible. From before
its creation until its commit has returned, an empty file of the same name, the note, is in `pending/`. After a crash, a
note proves that no client was told of the content, so that it may be removed; see `sweep`.

Where several processes of a daemon write to a folder, each has a folder of notes that it locks while it lives, so that
another one can tell that it has ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from twisted_storaged.errors import StartError
from twisted_storaged.runtime.buffers import PIECE, SMALL_PIECE, BufferPool
from twisted_storaged.runtime.files import make_folder, sync_folder, tighten, touch

#: Free pieces of memory that are kept for the next reads.
KEEP = 32
#: The most files in `lost/` that are counted, so that this takes no more than some milliseconds.
MAX_LOST = 1000
#: How often, and at which interval in seconds, the lock of a folder is tried.
LOCK_TRIES = 5
LOCK_PAUSE = 0.02

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIRECT = os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
_FOLDERS = [f"{number:02x}" for number in range(256)]
_NAME = re.compile(r"[0-9a-f]{32}")


def is_name(name: str) -> bool:
    """Whether this may be the name of a content."""
    return _NAME.fullmatch(name) is not None


class ContentFiles:
    """The contents of an embedded bucket, for reading: in 256 folders, by the first two letters of their names."""

    def __init__(self, path: Path) -> None:
        self.index_path = path / "index.sqlite"
        self.lost_path = path / "lost"
        self.pending_path = path / "pending"
        self.commit_lock_path = path / "commit.lock"
        self.objects_path = path / "objects"
        self.memory = BufferPool(SMALL_PIECE, PIECE, keep=KEEP)

    def open(self, name: str, *, direct: bool = False) -> int:
        """Open a content for reading, through the page cache or past it (`direct`). Raises FileNotFoundError."""
        return open_to_read(self.path_of(name), direct)

    def names(self) -> Iterator[str]:
        """Yield the names of all contents in order: regular files of such a name, in its folder."""
        for folder in _FOLDERS:
            yield from sorted(entry.name for entry in self._entries(folder) if _is_content(entry, folder))

    def strays(self) -> Iterator[Path]:
        """Yield all other files and folders among the contents. They are not storaged's, and are left alone."""
        for entry in os.scandir(self.objects_path):
            if entry.name not in _FOLDERS:
                yield Path(entry.path)
        for folder in _FOLDERS:
            yield from (Path(entry.path) for entry in self._entries(folder) if not _is_content(entry, folder))

    def unnamed(self, named: Iterator[str]) -> Iterator[str]:
        """Yield every content that is not in `named`, which is in order."""
        # Two sequences in order are merged: all names of a large bucket would take much memory.
        kept = next(named, None)
        for name in self.names():
            while kept is not None and kept < name:
                kept = next(named, None)
            if name != kept:
                yield name

    def is_in_use(self) -> bool:
        """Whether a daemon has locked the folder."""
        try:
            descriptor = os.open(self.objects_path.with_name("lock"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # A shared lock, so that two callers at the same time do not take each other for a daemon.
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def pending(self) -> dict[str, Path]:
        """Return the notes of unfinished uploads, by the names of their contents."""
        return {note.name: note for note in self.pending_path.glob("*/*") if is_name(note.name)}

    def path_of(self, name: str) -> Path:
        """Return the path of a content, whether or not it exists."""
        return self.objects_path / name[:2] / name

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            return list(os.scandir(self.objects_path / folder))
        except FileNotFoundError:
            return []


class DataFolder(ContentFiles):
    """The folder of an embedded bucket, locked by one daemon, which writes it.

    Attributes:
        boot: identifies the current boot of the kernel.
        lock: the descriptor that holds the lock.
    """

    def __init__(self, path: Path, boot: str | None = None, lock: int | None = None) -> None:
        """Create the folder if there is none, lock it, and remove the access of other users to its files.

        With `lock`, a descriptor that another process has locked the folder with, it is opened as one of several
        processes, and nothing but notes is created in it. By default, `boot` is the boot id.

        Raises:
            StartError: another daemon has locked it, or some of it belongs to another user.
            OSError: it cannot be created or used.
        """
        super().__init__(path)
        self.boot = boot or boot_id()
        self._notes_lock = -1
        if lock is None:
            self._notes = self.pending_path / self.boot
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = _lock(path)
            self._make_folders()
            for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "index.state"):
                tighten(path / name)
        else:
            self.lock = _inherited(path, lock)
            self._notes, self._notes_lock = self._make_own_notes()

    def create(self) -> ContentFile:
        """Create an empty content with a new name, and its note."""
        # The note first: a content without one is never removed, but moved to `lost/`.
        return ContentFile(self, self._add_note())

    def drop_note(self, name: str) -> None:
        """Remove the note of a content that is committed or removed. Called before the response."""
        (self._notes / name).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a content, and then its note. A reader that has it open can still read it."""
        # Before the note: in case of a crash in between, the note says that the content may be removed.
        self.path_of(name).unlink(missing_ok=True)
        self.drop_note(name)

    def free_space(self) -> int:
        """Create and remove a file, as each upload does; returns how many bytes can still be written.

        Raises:
            OSError: no file can be created.
        """
        # Whoever is killed in between leaves a note without a content, which the next start removes.
        self.drop_note(self._add_note())
        found = os.statvfs(self.objects_path)
        return found.f_bavail * found.f_frsize

    def lost(self) -> int:
        """Count the files in `lost/`, up to MAX_LOST. Raises OSError."""
        try:
            with os.scandir(self.lost_path) as entries:
                return sum(1 for _ in islice(entries, MAX_LOST))
        except FileNotFoundError:
            return 0

    def is_of_this_boot(self, note: Path) -> bool:
        """Whether a note was written since the kernel booted."""
        return note.parent.name == self.boot or note.parent.name.startswith(f"{self.boot}.")

    def abandoned(self) -> Generator[Path, None, None]:
        """Yield the folders of notes of other processes that have ended. Each is locked until the next is asked for."""
        for folder in list(self.pending_path.glob(f"{self.boot}.*")):
            descriptor = _lock_folder(folder)
            if descriptor is not None:
                try:
                    yield folder
                finally:
                    os.close(descriptor)

    def close(self) -> None:
        """Unlock the folder, unless other processes have its lock as well."""
        if self._notes_lock >= 0:
            # Notes of uploads whose outcome is unknown are left for the next start.
            with suppress(OSError):
                self._notes.rmdir()
            os.close(self._notes_lock)
        os.close(self.lock)

    def _add_note(self) -> str:
        name = os.urandom(16).hex()
        # Not synced: a note only counts until the kernel is booted again, and survives a kill -9 without that.
        os.close(os.open(self._notes / name, _NEW, 0o600))
        return name

    def _make_own_notes(self) -> tuple[Path, int]:
        """Make a folder for the notes of this process; returns it, and the descriptor that it is locked with."""
        while True:
            # Earlier versions take notes in it for those of another boot, and move their contents to `lost/`.
            folder = self.pending_path / f"{self.boot}.{os.urandom(16).hex()}"
            make_folder(folder)
            descriptor = _lock_folder(folder)
            # Otherwise another process took the folder for an abandoned one before it was locked.
            if descriptor is not None:
                return folder, descriptor

    def _make_folders(self) -> None:
        for folder in (self.objects_path, *(self.objects_path / name for name in _FOLDERS)):
            make_folder(folder)
        for folder in (self.lost_path, self.pending_path, self._notes):
            make_folder(folder)
        for folder_with_new_names in (self.objects_path, self.objects_path.parent):
            sync_folder(folder_with_new_names)


class ContentFile:
    """A content that is being written."""

    def __init__(self, folder: DataFolder, name: str) -> None:
        self.name = name
        self._folder = folder
        self._path = folder.path_of(name)
        self._descriptors = [os.open(self._path, _NEW, 0o600)]
        # Not all file systems have O_DIRECT: see open(2)
        with suppress(OSError):
            self._descriptors.append(os.open(self._path, _DIRECT))

    def write(self, data: memoryview, offset: int) -> None:
        """Write `data` at `offset`. Calls for different places may overlap.

        Whole blocks bypass the page cache (O_DIRECT), so that little is left for fsync to wait for. The end of a
        file, and all of it on file systems without O_DIRECT, go through the page cache.
        """
        usual, *direct = self._descriptors
        if direct and len(data) % ALIGNMENT == offset % ALIGNMENT == 0:
            try:
                write_all(direct[0], data, offset)
                return
            except OSError as error:
                # A body that arrived with its headers is in memory that is not aligned.
                if error.errno != errno.EINVAL:
                    raise
        write_all(usual, data, offset)

    def seal(self) -> int:
        """Make the bytes and then the name durable; returns the size in bytes."""
        # This covers what was written with O_DIRECT as well: the size, and the cache of the disk. See open(2)
        os.fsync(self._descriptors[0])
        size = os.fstat(self._descriptors[0]).st_size
        self._close()
        sync_folder(self._path.parent)
        return size

    def discard(self) -> None:
        """Remove the content, and then its note."""
        self._close()
        self._folder.remove(self.name)

    def _close(self) -> None:
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


def boot_id() -> str:
    """Return an id of the kernel that changes at each boot. See random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _is_content(entry: os.DirEntry[str], folder: str) -> bool:
    is_named_so = entry.name.startswith(folder) and is_name(entry.name)
    return is_named_so and entry.is_file(follow_symlinks=False)


def _lock(path: Path) -> int:
    touch(path / "lock")
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    # `is_in_use` of another process holds the lock for microseconds.
    for _ in range(LOCK_TRIES):
        if _try_lock(descriptor, fcntl.LOCK_EX):
            return descriptor
        time.sleep(LOCK_PAUSE)
    os.close(descriptor)
    raise StartError(f"{path} is in use by another storaged; each needs a folder of its own")


def _inherited(path: Path, lock: int) -> int:
    """Check that `lock` holds the lock of the folder, and return it.

    Raises:
        StartError: it does not.
    """
    # It has no effect if the descriptor, or one that it was duplicated from, has locked the file already.
    if not os.path.samestat(os.fstat(lock), (path / "lock").stat()) or not _try_lock(lock, fcntl.LOCK_EX):
        raise StartError(f"{path} is not locked by this daemon")
    return lock


def _lock_folder(path: Path) -> int | None:
    """Open and lock a folder; None if another process has locked or removed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    # It may have been removed before it was locked. Its name is never used again.
    if _try_lock(descriptor, fcntl.LOCK_EX) and path.exists():
        return descriptor
    os.close(descriptor)
    return None


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        # The kernel releases it, however the process ends. See flock(2)
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


#: Offsets, lengths and memory addresses of O_DIRECT must be multiples of this: a page suits every disk. See open(2)
ALIGNMENT = 4096


def open_to_read(path: Path, direct: bool) -> int:
    """Open a file for reading; with O_DIRECT if `direct` is true and the file system supports it.

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
    """Read `size` bytes at `offset`; fewer at the end of the file.

    A descriptor that is O_DIRECT loses that flag when it is read at an offset where no block begins.
    """
    # O_DIRECT reads whole multiples only; at the end of the file, it returns fewer bytes.
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
        # The file is not opened again without O_DIRECT, since its name may have been removed meanwhile.
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return os.preadv(descriptor, [data], offset)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in as many calls as needed."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]


class RecentNames:
    """A set of the `keep` names that were asked for last."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._names: OrderedDict[str, None] = OrderedDict()

    def asked_again(self, name: str) -> bool:
        """Add a name; returns whether it was in the set before."""
        again = name in self._names
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > self._keep:
            self._names.popitem(last=False)
        return again
