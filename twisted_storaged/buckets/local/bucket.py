"""LocalBucket: the embedded default. An index says which keys there are, immutable files hold what they contain.

A PUT writes a new file, brings it and its name to the disk, and then points the key at it in one transaction: before
the commit nobody sees the new object, after it nobody loses it. The file of the old object is removed last; who is
reading it has it open and reads on.

A small content is written into the index, by that same transaction: what limits small PUTs is how often the disk is
waited for, and three waits for each object (file, folder, key) become one for all that arrive together.

The transaction is also where the condition of a write is checked, so that nothing comes between; and with the key go
checksums of its row and of each block of its content, which all reads and `scrub` verify.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.local.files import DataFolder, RecentNames
from twisted_storaged.buckets.local.generation import Generation
from twisted_storaged.buckets.local.index_reads import Entry, is_corrupt
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter, Outcome
from twisted_storaged.buckets.local.reader import (
    FileReader,
    FileSource,
    InlineReader,
    damaged,
    verify_content,
    verify_size,
)
from twisted_storaged.buckets.local.sweep import sweep
from twisted_storaged.buckets.local.writer import PART_SIZE, Commits, LocalUpload
from twisted_storaged.buckets.upload import BodyDigests, Uploader
from twisted_storaged.errors import (
    BucketBusy,
    BucketError,
    DamagedObject,
    ObjectNotFound,
    OutOfSpace,
    PreconditionFailed,
    StartError,
    StorageError,
    WritesSuspended,
)
from twisted_storaged.interfaces import IBucket, IObjectReader
from twisted_storaged.model import NO_OPTIONS, ByteRange, Condition, ListPage, ListQuery, ObjectInfo, PutOptions, Span
from twisted_storaged.runtime.batching import Batcher
from twisted_storaged.runtime.budgets import DeliveryBudget, FairShare
from twisted_storaged.runtime.buffers import KEEP_FOR_READS, BufferPool
from twisted_storaged.runtime.concurrency import Threads, deferred
from twisted_storaged.runtime.files import touch

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: What a GET is for: a key, and a range of it, or None for all.
_Wanted = tuple[str, ByteRange | None]

#: How many parts of one body may be written at once.
WINDOW = 2
#: Threads beside the writing ones: for GETs and lists, for removing files, and one for the commits.
READERS = 4
COMMITTERS = 1
#: Objects of which it is known that they were read; the next time they come through the page cache.
RECENT = 4096


@dataclass(frozen=True)
class LocalSettings:
    """Where an embedded bucket is."""

    path: Path


@implementer(IBucket)
class LocalBucket:
    """A bucket in a folder of this machine."""

    _log = Logger()

    def __init__(
        self,
        name: str,
        settings: LocalSettings,
        reactor: IReactorFromThreads,
        put_slots: int,
        delivering: DeliveryBudget | None = None,
    ) -> None:
        """`delivering` is shared by all buckets; without it, there is one for this bucket alone."""
        self.name = name
        self._path = settings.path
        self._threads = Threads(reactor, put_slots * WINDOW + READERS + COMMITTERS, f"bucket {name}")
        self._delivering = DeliveryBudget() if delivering is None else delivering
        self._buffers = BufferPool(PART_SIZE, keep=put_slots)
        self._uploader = Uploader(self._buffers, FairShare(put_slots, WINDOW, WINDOW))
        self._recent = RecentNames(RECENT)
        clock = IReactorTime(reactor)
        self._commits: Batcher[Change, str | None] = Batcher(clock, self._commit_all)
        self._heads: Batcher[str, ObjectInfo | None] = Batcher(clock, self._head_all)
        self._opens: Batcher[_Wanted, IObjectReader] = Batcher(
            clock, self._open_all, unclaimed=lambda reader: reader.close()
        )

    def start(self) -> None:
        path = self._path
        try:
            with ExitStack() as opened:
                self._directory = DataFolder(path)
                opened.callback(self._directory.close)
                self._generation = Generation(path, self._directory.boot)
                self._generation.check_files(has_contents=any(self._directory.names()))
                touch(self._directory.index_path)
                self._index = IndexWriter(self._directory.index_path)
                opened.callback(self._close_index, keep_log=True)
                self._generation.open(self._index)
                self._writes = Commits(self._index, self._directory.index_path, self._directory.objects_path)
                opened.callback(self._writes.close)
                self._sweep()
                opened.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"bucket {self.name}: {path} cannot be used: {error}") from error
        memory = self._directory.memory
        self._delivering.when_idle.append(lambda: memory.trim(KEEP_FOR_READS))
        self._threads.start()

    @deferred
    async def stop(self) -> None:
        await self._threads.stop()
        self.close()

    def close(self) -> None:
        # In this order: closing the index removes its log, and `index.state` must not ask for that any more.
        self._close_index(keep_log=not self._close_generation())
        self._writes.close()
        self._directory.close()

    def _close_index(self, *, keep_log: bool) -> None:
        try:
            self._index.close(keep_log=keep_log)
        except sqlite3.Error as error:
            self._log.warn("bucket {name}: the index cannot be closed: {error}", name=self.name, error=error)

    def _close_generation(self) -> bool:
        """Note that the index needs its log no more; if another program reads it, the log stays, and is needed.

        Returns whether that is durable.
        """
        try:
            if self._index.is_checkpointed():
                self._generation.close()
                return True
        except (OSError, sqlite3.Error) as error:
            self._log.warn("bucket {name}: the log of the index stays: {error}", name=self.name, error=error)
        return False

    async def put(self, key: str, body: IBodyProducer, max_length: int, options: PutOptions = NO_OPTIONS) -> ObjectInfo:
        upload = LocalUpload(key, self._directory, self._run)
        stored = await self._uploader.store(body, upload, BodyDigests(options, self._run))
        entry = upload.entry(stored._replace(metadata=options.metadata) if options.metadata else stored)
        try:
            await self._commit(Change(key, entry, options.condition))
        except (PreconditionFailed, OutOfSpace, BucketBusy, WritesSuspended) as error:
            if isinstance(error, WritesSuspended) and error.begun:
                raise
            # This was not committed. Of other failures nobody can say, so the file stays for the next start to look at.
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

    def _sweep(self) -> None:
        """Clear away what a crash left; nothing, if the index cannot be read to its end."""
        try:
            swept = sweep(self._directory, self._index, self._warn)
        except (sqlite3.DatabaseError, DamagedObject) as error:
            if not is_corrupt(error):
                raise
            self._log.critical("bucket {name} is damaged: {error}: try --scrub", name=self.name, error=error)
        else:
            self._log.info(
                "bucket {name} is in {path}; {swept.removed} leftovers removed, {swept.lost} files moved to "
                "lost/, {swept.strays} names that are not storaged's",
                name=self.name,
                path=self._path,
                swept=swept,
            )

    def _warn(self, line: str) -> None:
        self._log.warn("bucket {name}: {line}", name=self.name, line=line)

    async def _commit(self, change: Change) -> None:
        replaced = await self._commits.do(change)
        if replaced is not None:
            self._remove_later(replaced)

    def _commit_all(self, changes: Sequence[Change]) -> Deferred[Sequence[Outcome]]:
        return self._run(self._commit_and_note, changes)

    def _commit_and_note(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        outcomes = self._writes.commit(changes)
        for change, outcome in zip(changes, outcomes, strict=True):
            if change.entry is not None and change.entry.content is None and not isinstance(outcome, StorageError):
                self._directory.drop_note(change.entry.info.etag)
        return outcomes

    @deferred
    async def _run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await self._threads.run(call, *args, **kwargs)
        except (OSError, sqlite3.Error) as error:
            raise _failure(error) from error

    def _head_all(self, keys: Sequence[str]) -> Deferred[Sequence[ObjectInfo | StorageError | None]]:
        return self._run(_each, self._index.head, [(key,) for key in keys])

    def _open_all(self, asked: Sequence[_Wanted]) -> Deferred[Sequence[IObjectReader | StorageError]]:
        return self._run(_each, self._open, asked)

    def _open(self, key: str, wanted: ByteRange | None) -> IObjectReader:
        """The reader of a key."""
        entry, descriptor = self._look_up(key)
        try:
            size = entry.info.size
            span = Span(0, size) if wanted is None else wanted.within(size)
            if entry.content is not None:
                verify_content(entry, entry.content)
                return InlineReader(entry.info, entry.content, span)
            verify_size(entry, descriptor)
            source = FileSource(descriptor, entry, span, self._directory.memory)
            return FileReader(entry.info, span, source, self._delivering, self._run)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise

    def _look_up(self, key: str) -> tuple[Entry, int]:
        """The entry of a key, and a descriptor of its file if it has one, else -1."""
        entry = self._index.get(key)
        while entry is not None:
            if entry.content is not None:
                return entry, -1
            try:
                again = self._recent.asked_again(entry.info.etag)
                return entry, self._directory.open(entry.info.etag, direct=not again)
            except FileNotFoundError:
                # Replaced between the two steps? Then the index has another entry by now.
                missing, entry = entry, self._index.get(key)
                if entry == missing:
                    raise damaged(missing, "there is no file") from None
        raise ObjectNotFound(key)

    async def _forget(self, entry: Entry) -> None:
        """Remove the file of an entry that will never be."""
        if entry.content is None:
            await self._run(self._directory.remove, entry.info.etag).addErrback(self._not_removed, entry.info.etag)

    def _remove_later(self, name: str) -> None:
        """Remove a file that no key points at any more; the answer need not wait, a sweep would find it too."""
        removed: Deferred[None] = self._run(self._remove, name)
        removed.addErrback(self._not_removed, name)

    def _remove(self, name: str) -> None:
        self._directory.remove(name)
        self._index.removed(name)

    def _not_removed(self, failure: Failure, name: str) -> None:
        self._log.warn("{name} was not removed: {failure.value}", name=name, failure=failure)


def _each(call: Callable[..., _T], asked: Sequence[tuple[Any, ...]]) -> list[_T | StorageError]:
    """Make a call for each of a batch, and answer each by itself: whatever one meets, the others have their results.

    This is the only place where a batch is gone through, so that none ends early with readers that were opened in it.
    """
    return [_answer(call, one) for one in asked]


def _answer(call: Callable[..., _T], arguments: tuple[Any, ...]) -> _T | StorageError:
    try:
        return call(*arguments)
    except StorageError as error:
        return error
    except (OSError, sqlite3.Error) as error:
        return _failure(error)
    except Exception as error:  # noqa: BLE001 (one that nobody thought of is that of one key, too)
        return BucketError(f"unexpected {type(error).__name__}: {error}")


def _failure(error: OSError | sqlite3.Error) -> BucketError | OutOfSpace:
    kind = OutOfSpace if _is_out_of_space(error) else BucketError
    return kind(f"{type(error).__name__}: {error}")


def _is_out_of_space(error: OSError | sqlite3.Error) -> bool:
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
