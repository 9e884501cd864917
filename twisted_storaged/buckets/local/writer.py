"""Writing to an embedded bucket: the content of a PUT, and the commit that makes it visible."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

from awscrt.checksums import crc32c
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from twisted_storaged.buckets.local.files import ContentFile, DataFolder
from twisted_storaged.buckets.local.generation import read_wal_index
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_schema import BLOCK_SIZE, block_checksums, combined, pack
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter, Outcome
from twisted_storaged.buckets.upload import ThreadedSink
from twisted_storaged.errors import BucketBusy, WritesSuspended
from twisted_storaged.model import ObjectInfo
from twisted_storaged.runtime.concurrency import Run
from twisted_storaged.runtime.files import lock_byte

#: Bytes of a part: whole blocks, since each has a checksum.
PART_SIZE = 8 * BLOCK_SIZE
#: Bytes of the largest content that is stored in the index.
SMALL = 64 << 10


class LocalUpload(ThreadedSink):
    """A PartSink that stores a body in a new file, or, if it is small, in the entry that is to be committed.

    After `whole` or `complete`, `entry` is what to commit, and a file is durable. The ETag is the name of the content,
    which is unique, so that it is a strong validator. RFC 9110, 8.8.1
    """

    def __init__(self, key: str, directory: DataFolder, run: Run) -> None:
        self._key = key
        self._file = _NewFile(key, directory)
        self._content: bytes | None = None
        super().__init__(self._file, run)

    def whole(self, body: memoryview) -> Deferred[ObjectInfo]:
        if len(body) > SMALL:
            return super().whole(body)
        # Not in a thread, as this takes microseconds. A copy, since the memory is reused before the commit.
        self._content = bytes(body)
        return succeed(ObjectInfo(self._key, len(body), os.urandom(16).hex(), time.time()))

    def entry(self, info: ObjectInfo) -> Entry:
        """Return the entry of the stored content, with its checksums."""
        if self._content is not None:
            return Entry(info, self._content, crc32c(self._content))
        checksums = self._file.checksums
        return Entry(info, None, combined(checksums, info.size), pack(checksums))


class _NewFile:
    """A BlockingSink that writes the parts to a new file, whose name becomes the ETag."""

    def __init__(self, key: str, directory: DataFolder) -> None:
        self._file: ContentFile | None = None
        self._key = key
        self._directory = directory
        # By part, since several threads write parts at once, in any order.
        self._checksums: dict[int, list[int]] = {}

    @property
    def checksums(self) -> list[int]:
        """The CRC-32C of each block, in order."""
        return [checksum for _, checksums in sorted(self._checksums.items()) for checksum in checksums]

    def whole(self, body: memoryview) -> ObjectInfo:
        self.begin()
        try:
            self.part(1, body)
            return self.complete()
        except BaseException:
            self.abort()
            raise

    def begin(self) -> None:
        self._file = self._directory.create()

    def part(self, number: int, body: memoryview) -> None:
        assert self._file is not None
        # Computed before writing, so that an error of memory or disk on the way is detected by reads.
        self._checksums[number] = block_checksums(body)
        self._file.write(body, (number - 1) * PART_SIZE)

    def complete(self) -> ObjectInfo:
        assert self._file is not None
        return ObjectInfo(self._key, self._file.seal(), self._file.name, time.time())

    def abort(self) -> None:
        if self._file is not None:
            self._file.discard()


#: How often a turn is tried in which the index is closed, and the seconds between two tries.
CLOSE_TRIES, CLOSE_PAUSE = 50, 0.02

_log = Logger()


class OnlyProcess:
    """The turns of the threads of a process that alone commits to an index.

    Attributes:
        is_unsettled: whether a commit has begun whose outcome is not certain yet.
    """

    def __init__(self) -> None:
        self.is_unsettled = False
        self._threads = Lock()

    def __enter__(self) -> None:
        """Begin a turn, once that of another thread has ended."""
        self._threads.acquire()

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._threads.release()

    def join(self) -> None:
        """Do nothing: there is no other process."""

    def close_as_last(self, close: Callable[[bool], None]) -> None:
        """Call `close` with True."""
        close(True)

    def close(self) -> None:
        """Does nothing."""


class CommitLock:
    """The turns of one of several processes that commit to an index, by a lock on a file. Blocking.

    SQLite has a lock of its own, but those who wait for it ask again in intervals: throughput is a quarter less. And it
    is free between a commit that failed and the truncation of its log.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it."""
        # A lock belongs to the open file, so that each process needs its own. See flock(2)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Threads of this process share that lock.
        self._threads = Lock()
        self._has_joined = False

    def __enter__(self) -> None:
        """Begin a turn, once those of other processes have ended. The kernel ends that of a killed process."""
        self._threads.acquire()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        """End a turn."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._threads.release()

    @property
    def is_unsettled(self) -> bool:
        """Whether a process has begun a commit whose outcome is not certain yet. It is in the file: others ask, too."""
        return os.pread(self._descriptor, 1, 0) == b"1"

    @is_unsettled.setter
    def is_unsettled(self, is_unsettled: bool) -> None:
        os.pwrite(self._descriptor, b"1" if is_unsettled else b"0", 0)

    def join(self) -> None:
        """Become one of the processes that have the index open, in a turn. The kernel ends this with the process."""
        self._lock_membership(fcntl.F_RDLCK)
        self._has_joined = True

    def close_as_last(self, close: Callable[[bool], None]) -> None:
        """Call `close` in a turn, with whether no other process has the index open.

        If others hold their turns for too long, they are there.
        """
        for _ in range(CLOSE_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(CLOSE_PAUSE)
        else:
            close(False)
            return
        try:
            close(self._has_joined and self._is_last())
            self._lock_membership(fcntl.F_UNLCK)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _is_last(self) -> bool:
        try:
            self._lock_membership(fcntl.F_WRLCK)
        except OSError:
            return False
        return True

    def _lock_membership(self, kind: int) -> None:
        # On a byte of its own: shared by all, or exclusive.
        lock_byte(self._descriptor, kind, 1)

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Commits:
    """Commits changes to the index, and makes sure of the outcome of each. Blocking.

    A transaction is in SQLite's write-ahead log before it is synced. If fsync fails, SQLite rolls back, but the frames
    stay in the file, intact, until others overwrite them: after a kill -9, SQLite would recover a transaction that was
    reported as failed. Calling fsync again proves nothing, since Linux marks pages clean that it could not write. See
    fsync(2) and https://wiki.postgresql.org/wiki/Fsync_Errors

    So after a failure the log is truncated to the frames that the wal-index counts as committed, which earlier fsyncs
    made durable, and the truncation is synced. Until that has succeeded, no write is accepted.

    Where several processes commit, the same is done by the next of them if one was killed in a commit.
    """

    def __init__(self, index: IndexWriter, directory: DataFolder, turns: OnlyProcess | CommitLock) -> None:
        """Remember which files the index has. It must have been written to, so that all of them exist.

        `turns` is closed by `close`, or if this fails.

        Raises:
            OSError: some of them do not exist.
        """
        self._index = index
        self._turns = turns
        path, objects_path = directory.index_path, directory.objects_path
        self._wal_path = path.with_name(f"{path.name}-wal")
        self._written = (path, objects_path)
        # An inode number may be reused once a file is closed: SQLite has its files open, the folder is kept open here.
        # The database and the wal-index must not be closed while SQLite uses them: that drops its locks. See fcntl(2)
        self._objects = os.open(objects_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._wal_index = -1
        watched = [path, self._wal_path, objects_path]
        if isinstance(turns, CommitLock):
            # A process that makes another of these does not see the commits and the turns of those that have this one.
            watched += [path.with_name(f"{path.name}-shm"), directory.commit_lock_path]
        try:
            self._wal_index = os.open(path.with_name(f"{path.name}-shm"), os.O_RDONLY | os.O_CLOEXEC)
            self._files = {path: _identity(path) for path in watched}
        except OSError:
            self.close()
            raise
        self._failed: Exception | None = None

    def close(self) -> None:
        """Close the files. To be called after the index was closed."""
        for descriptor in (self._objects, self._wal_index):
            if descriptor >= 0:
                os.close(descriptor)
        self._turns.close()

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Commit changes as `IndexWriter.commit` does.

        Raises:
            BucketBusy: another program has locked the index; nothing was changed.
            WritesSuspended: as for `check`.
            sqlite3.Error: the commit failed; nothing was changed.
        """
        with self._turns:
            self._check()
            # Noted first: whoever commits next truncates the log if this process is killed, or cannot do it.
            self._turns.is_unsettled = True
            try:
                outcomes = self._index.commit(changes)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                    self._turns.is_unsettled = False
                    raise BucketBusy(f"another program has locked the index: {error}") from error
                self._failed = error
                _log.critical(
                    "a commit failed, no writes are accepted until its log is truncated: {error}", error=error
                )
                self._settle(begun=True)
                raise
            self._turns.is_unsettled = False
            # Again: a commit that went to a folder which was replaced meanwhile must not be acknowledged.
            self._check_files(begun=True)
            return outcomes

    def check(self) -> None:
        """Check, in a turn, that the next commit can be made, and that none can come back which has failed.

        Raises:
            WritesSuspended: files were removed, replaced or made read-only; or the log cannot be truncated after a
                commit that has failed, or whose process was killed.
        """
        with self._turns:
            self._check()

    def _check(self) -> None:
        self._check_files(begun=False)
        for path in self._written:
            # SQLite has its files open, and could write to them although their folder was mounted read-only since.
            if not os.access(path, os.W_OK):
                raise WritesSuspended(f"{path} was made read-only", begun=False)
        if self._turns.is_unsettled:
            self._settle(begun=False)

    def _settle(self, begun: bool) -> None:
        failed = f"a commit failed ({self._failed})" if self._failed else "a process ended during a commit"
        try:
            # No other program may commit to the log while it is truncated.
            with self._index.locked():
                self._truncate_log()
            self._turns.is_unsettled = False
        except (OSError, sqlite3.Error) as error:
            raise WritesSuspended(f"{failed}, and its log cannot be truncated: {error}", begun) from error
        self._failed = None
        _log.info("{failed}: it was rolled back for good; writes are accepted again", failed=failed)

    def _truncate_log(self) -> None:
        committed = read_wal_index(self._wal_index)
        if committed is None:
            raise OSError("the wal-index of SQLite is damaged")
        descriptor = os.open(self._wal_path, os.O_RDWR | os.O_CLOEXEC)  # SQLite has no locks on this file
        try:
            if os.fstat(descriptor).st_size > committed.size:
                os.ftruncate(descriptor, committed.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _check_files(self, begun: bool) -> None:
        for path, identity in self._files.items():
            try:
                found = _identity(path)
            except OSError as error:
                raise WritesSuspended(f"{path} was removed: {error}; stop storaged and restore it", begun) from error
            if found != identity:
                raise WritesSuspended(f"{path} was replaced by another; restart storaged if that was intended", begun)


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
