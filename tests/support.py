"""Shared by unit tests: results of Deferreds, bodies, consumers, buckets in memory. No thread, no port, no sleep."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from socket import socket, socketpair
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.local.reader import Chunk, FileReader
from twisted_storaged.buckets.s3.session import Upkeep
from twisted_storaged.buckets.upload import BodyDigests, ThreadedSink, Uploader
from twisted_storaged.errors import DamagedObject, ObjectNotFound, PreconditionFailed
from twisted_storaged.interfaces import IBucket, IObjectReader, IRequestBody, ISpliceConsumer
from twisted_storaged.model import (
    NO_OPTIONS,
    ByteRange,
    Condition,
    Digests,
    ListPage,
    ListQuery,
    Metadata,
    ObjectInfo,
    PutOptions,
    Span,
)
from twisted_storaged.runtime.buffers import BufferPool, DeliveryBudget, FairShare
from twisted_storaged.runtime.concurrency import deferred

#: The reactor that pytest-twisted runs, typed Any as it has many interfaces.
reactor: Any = _reactor

_state = TemporaryDirectory(prefix="storaged-")
#: Shared settings of all S3 buckets in tests; its folder is removed at the end.
UPKEEP = Upkeep(Path(_state.name))

_P = ParamSpec("_P")
_T = TypeVar("_T")


def open_reports() -> int:
    """How many files of reports this process has open."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return sum(link.is_symlink() and os.readlink(link).startswith("/memfd:report") for link in links)


def result(outcome: Deferred[_T]) -> _T:
    """The result with which a Deferred has fired; raises its error."""
    fired: list[Any] = []
    outcome.addBoth(fired.append)
    assert fired, "the Deferred has not fired"
    if isinstance(fired[0], Failure):
        fired[0].raiseException()
    return fired[0]  # type: ignore[no-any-return]


def run_now(call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
    """A `Run` that calls at once, without threads."""
    return execute(call, *args, **kwargs)


class Turns:
    """A reactor whose iterations the test runs one by one."""

    def __init__(self) -> None:
        self._next: list[Callable[[], object]] = []

    def callLater(self, delay: float, call: Callable[[], object]) -> None:
        assert delay == 0
        self._next.append(call)

    def turn(self) -> None:
        calls, self._next = self._next, []
        for call in calls:
            call()


class RunLater:
    """A `Run` whose calls the test makes one by one."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Callable[[], None]]] = []

    def __call__(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        outcome: Deferred[_T] = Deferred()

        def make() -> None:
            execute(call, *args, **kwargs).addBoth(outcome.callback)

        self.calls.append((call.__name__, make))
        return outcome

    @property
    def names(self) -> list[str]:
        """The names of the functions that are to be called."""
        return [name for name, _ in self.calls]

    def step(self, index: int = 0) -> None:
        """Make one of the calls."""
        self.calls.pop(index)[1]()

    def run(self) -> None:
        """Make all calls, also those that are added meanwhile."""
        while self.calls:
            self.step()


@implementer(IRequestBody)
class Body:
    """A body whose bytes the test sends."""

    def __init__(self, length: int | None = None) -> None:
        self.declared = length
        self.buffered: memoryview | None = None
        self.paused = False
        self.stopped = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._consumer = consumer
        self._done: Deferred[None] = Deferred()
        return self._done

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        self.stopped = True

    def send(self, data: bytes) -> None:
        self._consumer.write(data)

    def end(self) -> None:
        self._done.callback(None)

    def fail(self, error: Exception) -> None:
        self._done.errback(Failure(error))


@implementer(IBodyProducer, IRequestBody)
class BytesBody:
    """A body whose bytes are all known."""

    def __init__(self, data: bytes, chunk: int = 1 << 16, chunked: bool = False) -> None:
        self.declared = None if chunked else len(data)
        self.length = UNKNOWN_LENGTH if chunked else len(data)
        self.buffered: memoryview | None = None
        self._data = data
        self._chunk = chunk
        self._paused = False
        self._at = 0

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._consumer = consumer
        self._done: Deferred[None] = Deferred()
        self._go()
        return self._done

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._go()

    def stopProducing(self) -> None:
        self._paused = True

    def _go(self) -> None:
        while not self._paused and self._at < len(self._data):
            data = self._data[self._at : self._at + self._chunk]
            self._at += len(data)
            self._consumer.write(data)
        if self._at >= len(self._data) and not self._done.called:
            self._done.callback(None)


@implementer(IConsumer)
class Consumer:
    """A consumer that collects data, and keeps its producer for the test to pause."""

    producer: Any = None

    def __init__(self, paused: bool = False) -> None:
        self.data = b""
        self._paused = paused

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert streaming
        self.producer = producer
        if self._paused:
            self.producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.data += data


@implementer(ISpliceConsumer)
class SpliceConsumer(Consumer):
    """A consumer that takes bytes from a socket with the function `take`; the default cannot."""

    take: Callable[[Any, int], int | None] = staticmethod(lambda *_: None)

    def take_from(self, source: Any, count: int) -> int | None:
        return self.take(source, count)


class BytesSource:
    """A source of bytes in memory that counts reads and records that it was closed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reads = 0
        self.closed = False

    def read(self, offset: int, size: int) -> Chunk:
        self.reads += 1
        data = memoryview(self._data)[offset : offset + size]
        if len(data) < size:
            raise DamagedObject("there is not as much")
        return Chunk(data, 0)

    def check(self, chunk: Chunk) -> None:
        """It has no checksum."""

    def close(self) -> None:
        self.closed = True


@implementer(IBucket)
class MemoryBucket:
    """A bucket in memory, which fulfils the contract of IBucket and can be made to fail."""

    def __init__(self, name: str = "primary", page: int = 1000, part_size: int = 1 << 16) -> None:
        self.name = name
        self.objects: dict[str, bytes] = {}
        self.metadata: dict[str, Metadata] = {}
        self.digests: dict[str, Digests] = {}
        self.failing: Exception | None = None
        self.fail_parts = False
        self.run: Any = run_now
        self._page = page
        self._part_size = part_size
        self.delivering = DeliveryBudget()

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return succeed(None)

    def check(self) -> Deferred[None]:
        return succeed(None) if self.failing is None else fail(self.failing)

    @deferred
    async def put(self, key: str, body: IRequestBody, max_length: int, options: PutOptions = NO_OPTIONS) -> ObjectInfo:
        uploader = Uploader(BufferPool(self._part_size, keep=0), FairShare(2, 2, 2))
        upload = ThreadedSink(_MemoryUpload(self, key, options), self.run)
        info = await uploader.store(body, upload, BodyDigests(options, self.run))
        self.digests[key] = info.digests
        return info

    @deferred
    async def head(self, key: str) -> ObjectInfo:
        if self.failing is not None:
            raise self.failing
        if key not in self.objects:
            raise ObjectNotFound(key)
        return self.info(key)

    @deferred
    async def get(self, key: str, wanted: ByteRange | None = None) -> IObjectReader:
        info = await self.head(key)
        span = Span(0, info.size) if wanted is None else wanted.within(info.size)
        source = BytesSource(self.objects[key])
        return FileReader(info, span, source, self.delivering, self.run)

    def list(self, query: ListQuery, token: str | None = None) -> Deferred[ListPage]:
        if self.failing is not None:
            return fail(self.failing)
        rest = entries(self.objects, replace(query, after=token or query.after))
        page = rest[: min(self._page, query.page_limit)]
        prefixes = tuple(entry for entry in page if is_common_prefix(entry, query))
        objects = [listed(self.info(entry)) for entry in page if not is_common_prefix(entry, query)]
        return succeed(ListPage(objects, page[-1] if len(rest) > len(page) else None, prefixes))

    def delete(self, key: str, condition: Condition | None = None) -> Deferred[None]:
        try:
            self.require(key, condition)
        except Exception:  # noqa: BLE001 (whatever it is, the Deferred has it)
            return fail()
        self.objects.pop(key, None)
        return succeed(None)

    def require(self, key: str, condition: Condition | None) -> None:
        """Raise the error that the bucket is to fail with, or PreconditionFailed."""
        if self.failing is not None:
            raise self.failing
        etag = self.info(key).etag if key in self.objects else None
        if condition is not None and condition.etag != etag:
            raise PreconditionFailed(f"{key!r} has {etag}")

    def info(self, key: str) -> ObjectInfo:
        data = self.objects[key]
        etag = hashlib.md5(data).hexdigest()
        return ObjectInfo(key, len(data), etag, 1_700_000_000.5, self.metadata.get(key, ()), self.digests.get(key, {}))


def entries(keys: Iterable[str], query: ListQuery) -> list[str]:
    """The expected names of a list, computed in the simplest way."""
    names = set()
    for key in keys:
        if key.startswith(query.prefix):
            end = key.find(query.delimiter, len(query.prefix)) if query.delimiter else -1
            names.add(key if end < 0 else key[: end + len(query.delimiter or "")])
    return sorted((name for name in names if name.encode() > (query.after or "").encode()), key=str.encode)


def is_common_prefix(entry: str, query: ListQuery) -> bool:
    """Whether an entry of a list is a common prefix."""
    return query.delimiter is not None and query.delimiter in entry[len(query.prefix) :]


def listed(info: ObjectInfo) -> ObjectInfo:
    """An object as lists show it: without metadata and digests."""
    return info._replace(metadata=(), digests={})


class _MemoryUpload:
    def __init__(self, bucket: MemoryBucket, key: str, options: PutOptions) -> None:
        self._bucket = bucket
        self._key = key
        self._options = options
        self._parts: dict[int, bytes] = {}

    def whole(self, body: memoryview) -> ObjectInfo:
        self.part(1, body)
        return self.complete()

    def begin(self) -> None:
        pass

    def part(self, number: int, body: memoryview) -> None:
        if self._bucket.fail_parts and self._bucket.failing is not None:
            raise self._bucket.failing
        self._parts[number] = bytes(body)

    def complete(self) -> ObjectInfo:
        self._bucket.require(self._key, self._options.condition)
        self._bucket.metadata[self._key] = self._options.metadata
        self._bucket.objects[self._key] = b"".join(self._parts[number] for number in sorted(self._parts))
        return self._bucket.info(self._key)

    def abort(self) -> None:
        self._parts.clear()


@contextmanager
def connected(protocol: Protocol | None = None) -> Iterator[tuple[Any, socket]]:
    """A transport of Twisted on a real socket, and the peer's socket; the reactor does nothing by itself."""
    ours, theirs = socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    transport: Any = Connection(ours, protocol or Protocol(), MemoryReactor())
    transport.connected = True
    transport.startReading()
    with ours, theirs:
        yield transport, theirs


@implementer(IPushProducer)
class Producer:
    """A producer that records its calls in `told`."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")
