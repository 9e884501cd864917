"""Files that only the daemon's user can access, durable writes, and temporary files for what does not fit in memory."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from struct import Struct
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from twisted_storaged.errors import BucketError, OutOfSpace, StartError
from twisted_storaged.runtime.concurrency import Run


def make_folder(path: Path) -> None:
    """Create a folder with mode 0700, whatever the umask; an existing one loses all access of group and others.

    Raises:
        StartError: it belongs to another user.
        OSError: it cannot be created, or is not a folder.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    tighten(path)


def touch(path: Path) -> None:
    """Create an empty file with mode 0600; an existing one loses all access of group and others.

    Raises:
        StartError: it belongs to another user.
        OSError: it cannot be created.
    """
    # The mode is for a new file only, so that `tighten` is needed for an existing one.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    tighten(path)


def tighten(path: Path) -> None:
    """Remove all access of group and others. Does nothing if the path does not exist.

    Raises:
        StartError: it belongs to another user, who could restore that access.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if status.st_uid != os.geteuid():
        raise StartError(
            f"{path} belongs to user {status.st_uid}, and storaged runs as {os.geteuid()}: run it as its owner"
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(stat.S_IMODE(status.st_mode) & stat.S_IRWXU)


def write_durably(path: Path, data: bytes) -> None:
    """Replace the content of a file atomically and durably: after a crash it is the old or the new."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    # Only after the fsync: otherwise the name could lead to an empty file after a crash. See rename(2).
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, which fsync of a file does not. See fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Bytes that a spool keeps in memory, and bytes of one read of its file.
IN_MEMORY = 256 << 10
PIECE = 64 << 10


def _in_thread(call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
    return deferToThread(call, *args, **kwargs)


def _new_file() -> Any:
    """Create a file without a name, which disappears with the process."""
    # Not in `/tmp`, which is often memory. See file-hierarchy(7).
    persistent = "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK)  # noqa: S108
    return tempfile.TemporaryFile(dir="/var/tmp" if persistent else None, buffering=0)  # noqa: S108


class Spool:
    """A queue of bytes that moves to a temporary file when it gets large. One call at a time; it must be closed.

    The file is written and read by `run`. Failures are raised as OutOfSpace, where the disk is full, or BucketError.
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
        """Append bytes."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._limit:
            # Joined, since a call of the system per piece would cost more than the copy.
            pieces, self._pieces, self._size = self._pieces, [], 0
            await self._run(self._write, b"".join(pieces))

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield everything that was added, in order."""
        read = 0
        while read < self._written:
            piece = await self._run(self._read, read)
            read += len(piece)
            yield piece
        for piece in self._pieces:
            yield piece

    async def close(self) -> None:
        """Discard the content and close the file."""
        self._pieces.clear()
        if self._file is not None:
            file, self._file = self._file, None
            # In a thread, as freeing the blocks of a large file takes time.
            await self._run(file.close)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._make_file()
            left = memoryview(data)
            # An unbuffered file may take fewer bytes than it is given.
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise disk_failure(error, "cannot write a temporary file") from error
        self._written += len(data)

    def _read(self, offset: int) -> bytes:
        piece = os.pread(self._file.fileno(), min(PIECE, self._written - offset), offset)
        if not piece:
            raise BucketError("a temporary file is shorter than what was written to it")
        return piece


def disk_failure(error: OSError, what: str) -> BucketError:
    """The error of storage for an error of a disk of this host: OutOfSpace if it is full. `what` could not be done."""
    kind = OutOfSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else BucketError
    return kind(f"{what}: {error}")


#: struct flock of fcntl(2), with 64-bit offsets: type, whence, start, length, pid.
FLOCK = Struct("hhqqi4x")


def lock_byte(descriptor: int, kind: int, byte: int) -> None:
    """Lock or unlock a byte of a file, which need not exist, without waiting: an open file description lock, fcntl(2).

    Raises:
        OSError: another open file description has locked it, with EAGAIN or EACCES; or it cannot be locked.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
