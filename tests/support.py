"""What unit tests share: results of Deferreds, bodies, consumers, buckets in memory. No thread, no port, no sleep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.buffers import Buffers
from twisted_storaged.buckets.delivery import ObjectReader, share_of_memory
from twisted_storaged.buckets.interface import IBucket, IObjectReader, ListPage, ObjectInfo
from twisted_storaged.buckets.multipart import InThreads, Uploader
from twisted_storaged.buckets.share import Share
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import ObjectNotFound

#: The reactor that pytest-twisted runs, as something with all its interfaces.
reactor: Any = _reactor

_P = ParamSpec("_P")
_T = TypeVar("_T")


def result(outcome: Deferred[_T]) -> _T:
    """What a Deferred has fired with; raises what it failed with."""
    fired: list[Any] = []
    outcome.addBoth(fired.append)
    assert fired, "the Deferred has not fired"
    if isinstance(fired[0], Failure):
        fired[0].raiseException()
    return fired[0]  # type: ignore[no-any-return]


def run_now(call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
    """A `Run` without threads."""
    return execute(call, *args, **kwargs)


class RunLater:
    """A `Run` whose calls are made one by one, when the test says so."""

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
        """The calls that wait."""
        return [name for name, _ in self.calls]

    def step(self, index: int = 0) -> None:
        """Make one of the waiting calls."""
        self.calls.pop(index)[1]()

    def run(self) -> None:
        """Make all, also those that come up meanwhile."""
        while self.calls:
            self.step()


@implementer(IBodyProducer)
class Body:
    """A body whose bytes come when the test sends them."""

    def __init__(self, length: int | None = None) -> None:
        self.length = UNKNOWN_LENGTH if length is None else length
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


@implementer(IBodyProducer)
class BytesBody:
    """A body that is all there."""

    def __init__(self, data: bytes, chunk: int = 1 << 16, chunked: bool = False) -> None:
        self.length = UNKNOWN_LENGTH if chunked else len(data)
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
    """Keeps what it gets, and its producer for the test to pause."""

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


class BytesSource:
    """A source that says when it was closed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reads = 0
        self.closed = False

    def read(self, size: int) -> bytes:
        self.reads += 1
        data, self._data = self._data[:size], self._data[size:]
        return data

    def close(self) -> None:
        self.closed = True


@implementer(IBucket)
class MemoryBucket:
    """A bucket in memory, which keeps the same contract as the real ones and can be made to fail."""

    def __init__(self, name: str = "primary", page: int = 1000, part_size: int = 1 << 16) -> None:
        self.name = name
        self.objects: dict[str, bytes] = {}
        self.failing: Exception | None = None
        self.fail_parts = False
        self.run: Any = run_now
        self._page = page
        self._part_size = part_size

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    @deferred
    async def put(self, key: str, body: IBodyProducer, max_length: int) -> ObjectInfo:
        uploader = Uploader(Buffers(self._part_size, keep=0), Share(2, 2, 2))
        return await uploader.store(body, InThreads(_MemoryUpload(self, key), self.run))

    def get(self, key: str) -> Deferred[IObjectReader]:
        if self.failing is not None:
            return fail(self.failing)
        if key not in self.objects:
            return fail(ObjectNotFound(key))
        return succeed(ObjectReader(self.info(key), BytesSource(self.objects[key]), share_of_memory(), self.run))

    def list(self, prefix: str, token: str | None = None) -> Deferred[ListPage]:
        if self.failing is not None:
            return fail(self.failing)
        keys = sorted((key for key in self.objects if key.startswith(prefix)), key=str.encode)
        rest = [key for key in keys if token is None or key.encode() > token.encode()]
        page = rest[: self._page]
        return succeed(ListPage([self.info(key) for key in page], page[-1] if len(rest) > len(page) else None))

    def delete(self, key: str) -> Deferred[None]:
        if self.failing is not None:
            return fail(self.failing)
        self.objects.pop(key, None)
        return succeed(None)

    def info(self, key: str) -> ObjectInfo:
        data = self.objects[key]
        return ObjectInfo(key, len(data), hashlib.md5(data).hexdigest(), 1_700_000_000.5)


class _MemoryUpload:
    def __init__(self, bucket: MemoryBucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._parts: dict[int, bytes] = {}

    def whole(self, body: bytearray) -> ObjectInfo:
        self.part(1, body)
        return self.complete()

    def begin(self) -> None:
        pass

    def part(self, number: int, body: bytearray) -> None:
        if self._bucket.fail_parts and self._bucket.failing is not None:
            raise self._bucket.failing
        self._parts[number] = bytes(body)

    def complete(self) -> ObjectInfo:
        if self._bucket.failing is not None:
            raise self._bucket.failing
        self._bucket.objects[self._key] = b"".join(self._parts[number] for number in sorted(self._parts))
        return self._bucket.info(self._key)

    def abort(self) -> None:
        self._parts.clear()
