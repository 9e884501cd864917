"""LocalBucket: the embedded default. An index says which keys there are, immutable files hold what they contain.

A PUT writes a new file, brings it and its name to the disk, and then points the key at it in one transaction: before
the commit nobody sees the new object, after it nobody loses it. The file of the old object is removed last; who is
reading it has it open and reads on.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.buffers import Buffers
from twisted_storaged.buckets.delivery import ChunkBudget, ObjectReader
from twisted_storaged.buckets.directory import ContentFile, Directory
from twisted_storaged.buckets.index import Entry, Index
from twisted_storaged.buckets.interface import IBucket, IObjectReader, ListPage, ObjectInfo
from twisted_storaged.buckets.multipart import InThreads, Uploader, Window
from twisted_storaged.buckets.threads import Threads
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import BucketError, ObjectNotFound, StartError

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Bytes that are written at once, and how many such writes of one body may be under way.
PART_SIZE = 4 << 20
WINDOW = 2
#: Threads beside the writing ones: for GETs, lists and deletes.
READERS = 4
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
        self._threads = Threads(reactor, put_slots * WINDOW + READERS, f"bucket {name}")
        self._chunks = ChunkBudget()
        self._uploader = Uploader(Buffers(PART_SIZE, keep=put_slots), Window(put_slots, WINDOW, WINDOW))

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
    async def put(self, key: str, body: IBodyProducer, max_length: int) -> ObjectInfo:
        upload = _Upload(key, self._directory, self._index)
        info = await self._uploader.store(body, InThreads(upload, self._run))
        self._remove_later(upload.replaced)
        return info

    @deferred
    async def get(self, key: str) -> IObjectReader:
        entry, descriptor = await self._run(self._open, key)
        return ObjectReader(_info(entry), _FileSource(descriptor), self._chunks, self._run)

    @deferred
    async def list(self, prefix: str, token: str | None = None) -> ListPage:
        entries = await self._run(self._index.page, token or prefix, token is not None, PAGE_LIMIT)
        objects = [_info(entry) for entry in entries if entry.key.startswith(prefix)]
        more = len(objects) == PAGE_LIMIT
        return ListPage(objects, objects[-1].key if more else None)

    @deferred
    async def delete(self, key: str) -> None:
        self._remove_later(await self._run(self._index.delete, key))

    @deferred
    async def _run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await self._threads.run(call, *args, **kwargs)
        except (OSError, sqlite3.Error) as error:
            raise BucketError(f"{type(error).__name__}: {error}") from error

    def _open(self, key: str) -> tuple[Entry, int]:
        entry = self._index.get(key)
        while entry is not None:
            try:
                return entry, self._directory.open(entry.file)
            except FileNotFoundError:
                # Replaced between the two steps? Then the index names another file by now.
                missing, entry = entry, self._index.get(key)
                if entry is not None and entry.file == missing.file:
                    raise
        raise ObjectNotFound(key)

    def _remove_later(self, name: str | None) -> None:
        """Remove a file that no key points at any more; the answer need not wait, a sweep would find it too."""
        if name is not None:
            removed: Deferred[None] = self._run(self._directory.remove, name)
            removed.addErrback(self._not_removed, name)

    def _not_removed(self, failure: Failure, name: str) -> None:
        self._log.warn("{name} was not removed: {failure.value}", name=name, failure=failure)


class _Upload:
    """The parts of one PUT, in a new file."""

    def __init__(self, key: str, directory: Directory, index: Index) -> None:
        self._file: ContentFile | None = None
        self._key = key
        self._directory = directory
        self._index = index
        self.replaced: str | None = None

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
        self._file.write(body, (number - 1) * PART_SIZE)

    def complete(self) -> ObjectInfo:
        assert self._file is not None
        entry = Entry(self._key, self._file.name, self._file.seal(), time.time())
        # A commit that fails may be found done after a crash: from here on only a sweep may remove the file.
        self._file = None
        self.replaced = self._index.put(entry)
        return _info(entry)

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


def _info(entry: Entry) -> ObjectInfo:
    # A content's name is never used again, which makes it a strong validator. RFC 9110, 8.8.1
    return ObjectInfo(entry.key, entry.size, etag=entry.file, last_modified=entry.last_modified)
