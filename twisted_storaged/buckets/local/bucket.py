"""LocalBucket: the default bucket, embedded in the daemon. An index names the keys, immutable files hold the contents.

A PUT writes a new file, makes it and its name durable, and then points the key at it in one transaction, which also
checks the condition of the write: before the commit the new object is invisible, after it the object is durable. The
file of the old object is removed last; a reader that has it open can still read it.

A small content is stored in the index by that same transaction. Small PUTs are limited by how often the disk is synced:
so one sync, for all objects that arrive together, takes the place of three for each (file, folder, index).
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.buckets.local.files import RecentNames
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change, Outcome
from twisted_storaged.buckets.local.meters import LocalMeters
from twisted_storaged.buckets.local.reader import (
    FileReader,
    FileSource,
    InlineReader,
    damaged,
    verify_content,
    verify_size,
)
from twisted_storaged.buckets.local.start import OpenFolder
from twisted_storaged.buckets.local.sweep import sweep_abandoned
from twisted_storaged.buckets.local.writer import PART_SIZE, LocalUpload
from twisted_storaged.buckets.upload import BodyDigests, Uploader
from twisted_storaged.errors import (
    BucketBusy,
    BucketError,
    BucketTimedOut,
    ObjectNotFound,
    OutOfSpace,
    PreconditionFailed,
    StorageError,
    WritesSuspended,
)
from twisted_storaged.interfaces import IBucket, IObjectReader, IRequestBody
from twisted_storaged.model import NO_OPTIONS, ByteRange, Condition, ListPage, ListQuery, ObjectInfo, PutOptions, Span
from twisted_storaged.runtime.batching import Batcher
from twisted_storaged.runtime.buffers import KEEP_FOR_READS, DeliveryBudget, FairShare, part_buffers
from twisted_storaged.runtime.concurrency import Threads, deferred
from twisted_storaged.runtime.metering import Meters

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: The key of a GET and the range that it wants, None for all.
_Wanted = tuple[str, ByteRange | None]

#: Parts of one body that are written at once.
WINDOW = 2
#: Threads in addition to those that write parts: for GETs, lists and removing files, and for commits.
READERS = 4
COMMITTERS = 1
#: Seconds that a check may take.
CHECK_SECONDS = 5.0
#: Bytes of free space that a check requires. With less, large PUTs fail already; the rest is needed by the log of the
#: index, which grows to some MiB, also by DELETEs.
MIN_SPACE = 64 << 20
#: Names of recently read files to remember. The second read of a file goes through the page cache.
RECENT = 4096


@dataclass(frozen=True)
class LocalSettings:
    """The settings of an embedded bucket."""

    path: Path


@implementer(IBucket)
class LocalBucket:
    """A bucket in a folder of the local file system."""

    _log = Logger()

    def __init__(  # noqa: PLR0913 (what it shares with others)
        self,
        name: str,
        settings: LocalSettings,
        reactor: IReactorFromThreads,
        put_slots: int,
        delivering: DeliveryBudget | None = None,
        lock: int | None = None,
        meters: Meters | None = None,
    ) -> None:
        """Create the bucket, unopened. `delivering` is shared by all buckets; by default the bucket has its own.

        With `lock`, a descriptor that `prepare` has returned in a process that started this one, the bucket is opened
        as one of several processes. The bucket closes it.

        What it does is counted in `meters`; by default, in its own.
        """
        self.name = name
        self._counted_in = meters = meters or Meters()
        self._meters = LocalMeters(meters, name)
        self._path = settings.path
        self._lock = lock
        self._threads = Threads(reactor, put_slots * WINDOW + READERS + COMMITTERS, f"bucket {name}", meters)
        # Of its own, so that a check waits for the disk only, and not for requests.
        self._checker = Threads(reactor, 1, f"check of bucket {name}", meters)
        self._is_checking = False
        self._delivering = DeliveryBudget() if delivering is None else delivering
        buffers = part_buffers(PART_SIZE, keep=put_slots)
        buffers.watch(meters, "put")
        self._uploader = Uploader(buffers, FairShare(put_slots, WINDOW, WINDOW))
        self._recent = RecentNames(RECENT)
        self._clock = clock = IReactorTime(reactor)
        # Calls that arrive together share a commit, or a call in a thread.
        self._commits: Batcher[Change, str | None] = Batcher(
            clock, lambda changes: self._run(self._commit_and_note, changes).addCallback(self._count)
        )
        self._heads: Batcher[str, ObjectInfo | None] = Batcher(
            clock, lambda keys: self._run(_each, self._index.head, [(key,) for key in keys])
        )
        # A reader has a file open, which nobody would close if its GET was cancelled meanwhile.
        self._opens: Batcher[_Wanted, IObjectReader] = Batcher(
            clock, lambda wanted: self._run(_each, self._open, wanted), unclaimed=lambda reader: reader.close()
        )

    def start(self) -> None:
        self._folder = OpenFolder(self.name, self._path, self._lock)
        self._directory, self._index, self._writes = self._folder.directory, self._folder.index, self._folder.writes
        memory = self._directory.memory
        memory.watch(self._counted_in, "get")
        # Otherwise more than 32 MiB of free pieces would stay after many GETs.
        self._delivering.when_idle.append(lambda: memory.trim(KEEP_FOR_READS))
        self._threads.start()
        self._checker.start()
        if self._lock is not None:
            self._run(self._sweep_abandoned).addErrback(self._not_swept)

    @deferred
    async def stop(self) -> None:
        # First the threads, whose calls use everything else.
        await self._checker.stop()
        await self._threads.stop()
        self.close()

    def ping(self) -> Deferred[None]:
        return self._threads.ping()

    @deferred
    async def check(self) -> None:
        if self._is_checking:
            # One more would wait for the same disk.
            raise BucketTimedOut("the last check has not ended yet")
        self._is_checking = True
        try:
            await self._checker.run(self._check).addTimeout(CHECK_SECONDS, self._clock)
        except DeferredTimeout:
            raise BucketTimedOut(f"{self._path} was not checked within {CHECK_SECONDS:g} s") from None
        except (OSError, sqlite3.Error) as error:
            raise _failure(error) from error

    def close(self) -> None:
        self._folder.close()

    async def put(self, key: str, body: IRequestBody, max_length: int, options: PutOptions = NO_OPTIONS) -> ObjectInfo:
        upload = LocalUpload(key, self._directory, self._run)
        try:
            stored = await self._uploader.store(body, upload, BodyDigests(options, self._run))
        except BaseException as error:
            self._meters.aborted.add(1, self.name)
            if type(error) is BucketError:
                # A folder that was removed has no place for files either: no write is accepted, large or small.
                await self._run(self._writes.check)
            raise
        entry = upload.entry(stored._replace(metadata=options.metadata) if options.metadata else stored)
        try:
            await self._commit(Change(key, entry, options.condition))
        except (PreconditionFailed, OutOfSpace, BucketBusy, WritesSuspended) as error:
            if isinstance(error, WritesSuspended) and error.begun:
                raise
            # The entry was not committed. After other errors that is unknown: the file is left for the next start.
            await self._forget(entry)
            raise
        return entry.info

    async def head(self, key: str) -> ObjectInfo:
        info = await self._heads.do(key)
        if info is None:
            raise ObjectNotFound(key)
        return info

    def get(self, key: str, wanted: ByteRange | None = None) -> Deferred[IObjectReader]:
        return self._opens.do((key, wanted))

    def list(self, query: ListQuery, token: str | None = None) -> Deferred[ListPage]:
        return self._run(self._index.page, query, token)

    async def delete(self, key: str, condition: Condition | None = None) -> None:
        await self._commit(Change(key, None, condition))

    def _check(self) -> None:
        try:
            self._meters.found = found = self._folder.check()
        finally:
            self._is_checking = False
        if found.space < MIN_SPACE:
            raise OutOfSpace(f"{self._path} has {found.space} bytes of free space, less than {MIN_SPACE}")

    def _sweep_abandoned(self) -> None:
        removed = sweep_abandoned(self._directory, self._index, self._writes.check)
        if removed:
            self._log.info("bucket {name}: {n} leftovers of ended processes removed", name=self.name, n=removed)

    def _not_swept(self, failure: Failure) -> None:
        self._log.warn(
            "bucket {name}: leftovers of ended processes are kept for the next start: {failure.value}",
            name=self.name,
            failure=failure,
        )

    async def _commit(self, change: Change) -> None:
        replaced = await self._commits.do(change)
        if replaced is not None:
            self._remove_later(replaced)

    def _commit_and_note(self, changes: Sequence[Change]) -> tuple[float, Sequence[Outcome]]:
        """Commit changes; returns the seconds that it took, and the outcomes."""
        began = time.monotonic()
        outcomes = self._writes.commit(changes)
        seconds = time.monotonic() - began
        for change, outcome in zip(changes, outcomes, strict=True):
            if change.entry is not None and change.entry.content is None and not isinstance(outcome, StorageError):
                # In the same call, so that it is gone before the client is told: a sweep removes contents with a note.
                self._directory.drop_note(change.entry.info.etag)
        return seconds, outcomes

    def _count(self, timed: tuple[float, Sequence[Outcome]]) -> Sequence[Outcome]:
        """Count a commit, by the seconds that it took and its outcomes; returns these."""
        seconds, outcomes = timed
        self._meters.seconds.observe(seconds, self.name)
        self._meters.writes.add(sum(not isinstance(outcome, StorageError) for outcome in outcomes), self.name)
        return outcomes

    @deferred
    async def _run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await self._threads.run(call, *args, **kwargs)
        except (OSError, sqlite3.Error) as error:
            raise _failure(error) from error

    def _open(self, key: str, wanted: ByteRange | None) -> IObjectReader:
        """Open a key for reading."""
        entry, descriptor = self._look_up(key)
        try:
            size = entry.info.size
            span = Span(0, size) if wanted is None else wanted.within(size)
            if entry.content is not None:
                verify_content(entry, entry.content)
                return InlineReader(entry.info, entry.content, span)
            # Before the first read, while the client can still get an error response.
            verify_size(entry, descriptor)
            source = FileSource(descriptor, entry, span, self._directory.memory)
            return FileReader(entry.info, span, source, self._delivering, self._run)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise

    def _look_up(self, key: str) -> tuple[Entry, int]:
        """Look up the entry of a key, and open its file; the descriptor is -1 if the content is in the index."""
        entry = self._index.get(key)
        while entry is not None:
            if entry.content is not None:
                return entry, -1
            try:
                # A file that is read again is worth a place in the page cache.
                again = self._recent.asked_again(entry.info.etag)
                return entry, self._directory.open(entry.info.etag, direct=not again)
            except FileNotFoundError:
                # If it was replaced between the two steps, the index has another entry by now.
                missing, entry = entry, self._index.get(key)
                if entry == missing:
                    raise damaged(missing, "there is no file") from None
        raise ObjectNotFound(key)

    async def _forget(self, entry: Entry) -> None:
        """Remove the file of an entry that was not committed."""
        if entry.content is None:
            await self._run(self._directory.remove, entry.info.etag).addErrback(self._not_removed, entry.info.etag)

    def _remove_later(self, name: str) -> None:
        """Remove a replaced file. The response does not wait for it: after a crash, the sweep removes the file."""
        removed: Deferred[None] = self._run(self._remove, name)
        removed.addErrback(self._not_removed, name)

    def _remove(self, name: str) -> None:
        # In this order: after a kill in between, the next start still knows that the file may be removed.
        self._directory.remove(name)
        self._index.removed(name)

    def _not_removed(self, failure: Failure, name: str) -> None:
        self._log.warn("cannot remove the file {name}: {failure.value}", name=name, failure=failure)


def _each(call: Callable[..., _T], asked: Sequence[tuple[Any, ...]]) -> list[_T | StorageError]:
    """Make a call for each item of a batch. An error of one becomes its result, so that the others have theirs.

    Otherwise readers that were opened for earlier items would never be closed.
    """
    return [_answer(call, one) for one in asked]


def _answer(call: Callable[..., _T], arguments: tuple[Any, ...]) -> _T | StorageError:
    try:
        return call(*arguments)
    except StorageError as error:
        return error
    except (OSError, sqlite3.Error) as error:
        return _failure(error)
    except Exception as error:  # noqa: BLE001 (an unexpected error is that of one item, too)
        return BucketError(f"unexpected {type(error).__name__}: {error}")


def _failure(error: OSError | sqlite3.Error) -> BucketError | OutOfSpace:
    kind = OutOfSpace if _is_out_of_space(error) else BucketError
    return kind(f"{type(error).__name__}: {error}")


def _is_out_of_space(error: OSError | sqlite3.Error) -> bool:
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
