"""LocalBucket: the embedded default. An index says which keys there are, immutable files hold what they contain.

A PUT writes a new file, brings it and its name to the disk, and then points the key at it in one transaction: before
the commit nobody sees the new object, after it nobody loses it. The file of the old object is removed last; who is
reading it has it open and reads on.

A small content is written into the index, by that same transaction: what limits small PUTs is how often the disk is
waited for, and three waits for each object (file, folder, key) become one for all that arrive together.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.buffers import Buffers
from twisted_storaged.buckets.committer import Committer
from twisted_storaged.buckets.delivery import ObjectReader, share_of_memory
from twisted_storaged.buckets.digests import Digesting
from twisted_storaged.buckets.directory import ContentFile, Directory, new_name
from twisted_storaged.buckets.index import Change, Entry, Index
from twisted_storaged.buckets.interface import IBucket, IObjectReader
from twisted_storaged.buckets.multipart import InThreads, Uploader
from twisted_storaged.buckets.objects import NO_OPTIONS, ListPage, ListQuery, ObjectInfo, PutOptions, Span
from twisted_storaged.buckets.parts import PartStream
from twisted_storaged.buckets.share import Share
from twisted_storaged.buckets.threads import Threads
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import BucketError, ObjectNotFound, StartError

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Bytes that are written at once, and how many such writes of one body may be under way.
PART_SIZE = 2 << 20
WINDOW = 2
#: Bytes of the largest content that is kept in the index.
SMALL = 64 << 10
#: Threads beside the writing ones: for GETs and lists, for removing files, and one for the commits.
READERS = 4
COMMITTERS = 1
PAGE_LIMIT = 1000


@dataclass(frozen=True)
class LocalSettings:
    """Where an embedded bucket is."""

    path: Path


@implementer(IBucket)
class LocalBucket:
    """A bucket in a folder of this machine."""

    _log = Logger()

    def __init__(self, name: str, settings: LocalSettings, reactor: IReactorFromThreads, put_slots: int) -> None:
        self.name = name
        self._path = settings.path
        self._threads = Threads(reactor, put_slots * WINDOW + READERS + COMMITTERS, f"bucket {name}")
        self._chunks = share_of_memory()
        self._buffers = Buffers(PART_SIZE, keep=put_slots)
        self._uploader = Uploader(self._buffers, Share(put_slots, WINDOW, WINDOW))
        self._reactor = reactor
        self._committer = Committer(self._soon, self._commit_all)

    def start(self) -> None:
        path = self._path
        try:
            self._directory = Directory(path)
            self._index = Index(self._directory.index_path)
            swept = self._directory.sweep(self._index.files())
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"bucket {self.name}: {path} cannot be used: {error}") from error
        self._log.info("bucket {name} is in {path}, swept of {swept} leftovers", name=self.name, path=path, swept=swept)
        self._threads.start()

    @deferred
    async def stop(self) -> None:
        await self._threads.stop()
        self._index.close()
        self._directory.close()

    @deferred
    async def put(self, key: str, body: IBodyProducer, max_length: int, options: PutOptions = NO_OPTIONS) -> ObjectInfo:
        digesting = Digesting(options, self._run)
        small = body.length is not UNKNOWN_LENGTH and body.length <= SMALL
        entry = await (self._read(key, body) if small else self._write(key, body, digesting))
        await self._commit(Change(key, entry))
        return entry.info

    @deferred
    async def get(self, key: str) -> IObjectReader:
        entry, descriptor = await self._run(self._open, key)
        if entry.content is not None:
            return _SmallReader(entry.info, bytes(entry.content))
        return ObjectReader(entry.info, Span(0, entry.info.size), _FileSource(descriptor), self._chunks, self._run)

    @deferred
    async def list(self, query: ListQuery, token: str | None = None) -> ListPage:
        prefix = query.prefix
        objects = await self._run(self._index.page, token or prefix, token is not None, PAGE_LIMIT)
        if objects and not objects[-1].key.startswith(prefix):
            return ListPage([info for info in objects if info.key.startswith(prefix)], None)
        return ListPage(objects, objects[-1].key if len(objects) == PAGE_LIMIT else None)

    @deferred
    async def delete(self, key: str) -> None:
        await self._commit(Change(key, None))

    async def _read(self, key: str, body: IBodyProducer) -> Entry:
        """Collect a small body."""
        stream = PartStream(body, self._buffers)
        stream.start()
        try:
            content = await stream.next()
        finally:
            stream.stop()
        return Entry(ObjectInfo(key, len(content), new_name(), time.time()), content)

    async def _write(self, key: str, body: IBodyProducer, digesting: Digesting) -> Entry:
        """Bring a body to the disk, in a new file."""
        upload = InThreads(_Upload(key, self._directory), self._run)
        return Entry(await self._uploader.store(body, upload, digesting))

    async def _commit(self, change: Change) -> None:
        replaced = await self._committer.commit(change)
        if replaced is not None:
            self._remove_later(replaced)

    def _soon(self, call: Callable[[], None]) -> None:
        self._reactor.callFromThread(call)

    def _commit_all(self, changes: Sequence[Change]) -> Deferred[Sequence[str | None]]:
        return self._run(self._index.commit, changes)

    @deferred
    async def _run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await self._threads.run(call, *args, **kwargs)
        except (OSError, sqlite3.Error) as error:
            raise BucketError(f"{type(error).__name__}: {error}") from error

    def _open(self, key: str) -> tuple[Entry, int]:
        """The entry of a key, and a descriptor of its file if it has one, else -1."""
        entry = self._index.get(key)
        while entry is not None:
            if entry.content is not None:
                return entry, -1
            try:
                return entry, self._directory.open(entry.info.etag)
            except FileNotFoundError:
                # Replaced between the two steps? Then the index has another entry by now.
                missing, entry = entry, self._index.get(key)
                if entry == missing:
                    raise
        raise ObjectNotFound(key)

    def _remove_later(self, name: str) -> None:
        """Remove a file that no key points at any more; the answer need not wait, a sweep would find it too."""
        removed: Deferred[None] = self._run(self._directory.remove, name)
        removed.addErrback(self._not_removed, name)

    def _not_removed(self, failure: Failure, name: str) -> None:
        self._log.warn("{name} was not removed: {failure.value}", name=name, failure=failure)


class _Upload:
    """The parts of one PUT, in a new file. What `complete` leaves is durable, and named by the ETag it gives."""

    def __init__(self, key: str, directory: Directory) -> None:
        self._file: ContentFile | None = None
        self._key = key
        self._directory = directory

    def whole(self, body: bytearray) -> ObjectInfo:
        self.begin()
        try:
            self.part(1, body)
            return self.complete()
        except BaseException:
            self.abort()
            raise

    def begin(self) -> None:
        self._file = self._directory.create()

    def part(self, number: int, body: bytearray) -> None:
        assert self._file is not None
        offset = (number - 1) * PART_SIZE
        self._file.write(body, offset)

    def complete(self) -> ObjectInfo:
        assert self._file is not None
        # A content's name is never used again, which makes it a strong validator. RFC 9110, 8.8.1
        return ObjectInfo(self._key, self._file.seal(), self._file.name, time.time())

    def abort(self) -> None:
        if self._file is not None:
            self._file.discard()


class _FileSource:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        return os.read(self._descriptor, size)

    def close(self) -> None:
        os.close(self._descriptor)


@implementer(IObjectReader)
class _SmallReader:
    """An object that has been read."""

    def __init__(self, info: ObjectInfo, content: bytes) -> None:
        self.info = info
        self._content = content

    def deliver(self, consumer: IConsumer) -> Deferred[None]:
        if self._content:
            consumer.write(self._content)
        return succeed(None)

    def close(self) -> None:
        """There is nothing to let go of."""
