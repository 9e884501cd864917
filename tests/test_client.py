"""The client, against the resources and a bucket in memory, on a real port."""

from __future__ import annotations

import io
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed  # noqa: A004 (its own)
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers

from tests.buckets.test_contract import ODD_KEYS
from tests.support import BytesBody, Consumer, MemoryBucket, reactor, result
from twisted_storaged.admission import PutSlots
from twisted_storaged.api.handlers import make_tree
from twisted_storaged.client import Busy, ListedObject, NotFound, StorageClient, StorageFailed, TooLarge
from twisted_storaged.errors import BucketError
from twisted_storaged.routing import DEFAULT_MAX_PUT, Namespace, Policy, Registry
from twisted_storaged.server.site import StorageSite


class Served:
    """A bucket in memory, served on a port, and a client of it."""

    def __init__(self) -> None:
        self.bucket = MemoryBucket(part_size=1 << 20)
        self.slots = PutSlots()
        tree = make_tree(Namespace(Policy(), Registry([self.bucket])), self.slots)
        site: Any = StorageSite(tree, reactor)
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        self._port = pytest_twisted.blockon(endpoint.listen(site))
        self._pool = HTTPConnectionPool(reactor)
        http = treq.client.HTTPClient(Agent(reactor, pool=self._pool))
        self.client = StorageClient(f"http://127.0.0.1:{self._port.getHost().port}/", http)

    def stop(self) -> None:
        pytest_twisted.blockon(self._pool.closeCachedConnections())
        pytest_twisted.blockon(self._port.stopListening())


@pytest.fixture
def served() -> Generator[Served, None, None]:
    served = Served()
    yield served
    served.stop()


class PutTests:
    """Storing objects."""

    @pytest.mark.parametrize("make", [bytes, io.BytesIO, BytesBody])
    @pytest.mark.parametrize("size", [0, 5, 3_000_000])
    @pytest_twisted.ensureDeferred
    async def test_bytes_files_and_producers(self, served: Served, make: Any, size: int) -> None:
        """A PUT stores a body that is given as bytes, as a file, or as a producer."""
        data = b"x" * size
        stored = await served.client.put("a", make(data))
        assert served.bucket.objects == {"a": data}
        assert (stored.key, stored.size, stored.etag) == ("a", size, served.bucket.info("a").etag)

    @pytest.mark.parametrize("key", ODD_KEYS)
    @pytest_twisted.ensureDeferred
    async def test_odd_keys(self, served: Served, key: str) -> None:
        """Keys with special characters can be stored, read, listed and deleted."""
        await served.client.put(key, b"x")
        assert list(served.bucket.objects) == [key]
        assert await served.client.get(key) == b"x"
        assert [item.key for item in await served.client.list(key)] == [key]
        await served.client.delete(key)
        assert served.bucket.objects == {}

    @pytest_twisted.ensureDeferred
    async def test_too_large(self, served: Served) -> None:
        """A PUT over the limit fails with TooLarge and Retry-After, even while its body is still being sent."""

        class Endless(BytesBody):
            length = DEFAULT_MAX_PUT + 1

            def __init__(self) -> None:
                super().__init__(b"x" * 20_000_000)
                self.length = DEFAULT_MAX_PUT + 1

        with pytest.raises(TooLarge) as caught:
            await served.client.put("a", Endless())
        assert (caught.value.status, caught.value.retry_after) == (413, 5)

    @pytest_twisted.ensureDeferred
    async def test_busy(self, served: Served) -> None:
        """A PUT without a free slot fails with Busy and Retry-After."""
        for _ in range(4):
            served.slots.acquire()
        with pytest.raises(Busy, match="put concurrency cap reached") as caught:
            await served.client.put("a", b"x")
        assert (caught.value.status, caught.value.retry_after) == (503, 5)


class GetTests:
    """Reading objects."""

    @pytest_twisted.ensureDeferred
    async def test_bytes(self, served: Served) -> None:
        """`get` returns all bytes of an object."""
        served.bucket.objects["a"] = b"hello"
        assert await served.client.get("a") == b"hello"

    @pytest_twisted.ensureDeferred
    async def test_to_a_consumer(self, served: Served) -> None:
        """`get_to` writes an object to a consumer, and stops reading while the consumer pauses it."""
        served.bucket.objects["a"] = b"x" * 20_000_000
        consumer = Consumer(paused=True)
        outcome = served.client.get_to("a", consumer)
        while consumer.producer is None:
            await _soon()
        await _soon()
        assert len(consumer.data) < 1_000_000
        consumer.producer.resumeProducing()
        await outcome
        assert consumer.data == served.bucket.objects["a"]

    @pytest_twisted.ensureDeferred
    async def test_a_truncated_response(self, served: Served) -> None:
        """A response that ends before its Content-Length makes `get` fail."""
        served.bucket.objects["a"] = b"x" * 3_000_000
        info = served.bucket.info
        served.bucket.info = lambda key: info(key).__class__(key, 3_000_001, "e", 0.0)  # type: ignore[method-assign]
        with pytest.raises(Exception, match=r"ResponseFailed|ConnectionLost|PartialDownload|response"):
            await served.client.get("a")

    @pytest_twisted.ensureDeferred
    async def test_not_found(self, served: Served) -> None:
        """`get` and `get_to` of a missing object fail with NotFound."""
        with pytest.raises(NotFound) as caught:
            await served.client.get("a")
        assert (caught.value.status, caught.value.retry_after) == (404, None)
        with pytest.raises(NotFound):
            await served.client.get_to("a", Consumer())

    @pytest_twisted.ensureDeferred
    async def test_other_errors(self, served: Served) -> None:
        """A 500 makes `get` fail with StorageFailed, the base class of the client's errors."""
        served.bucket.failing = BucketError("down")
        with pytest.raises(StorageFailed, match="500 internal"):
            await served.client.get("a")


class ListTests:
    """Listing objects."""

    @pytest_twisted.ensureDeferred
    async def test_objects(self, served: Served) -> None:
        """`list` returns the objects under a prefix as ListedObjects; without a prefix, all objects."""
        served.bucket.objects = {"a/1": b"x", "b": b""}
        etag = served.bucket.info("a/1").etag
        when = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        assert await served.client.list("a/") == [ListedObject("a/1", 1, etag, when)]
        assert len(await served.client.list()) == 2


class Response:
    """A response whose body the test delivers."""

    def __init__(self, code: int = 200, **headers: str) -> None:
        self.code = code
        self.headers = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        self.transport = StringTransport()
        self.protocol: Any = None

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return succeed(self)

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self.transport)

    @property
    def closed(self) -> bool:
        return bool(self.transport.disconnecting) or self.transport.producerState == "stopped"


class CancelTests:
    """Reads that the caller cancels."""

    def test_nothing_is_written_afterwards(self) -> None:
        """A `get_to` that is cancelled closes its connection; bytes that still come do not reach the consumer."""
        response, consumer = Response(), Consumer()
        outcome = StorageClient("http://x", response).get_to("a", consumer)
        response.protocol.dataReceived(b"first")
        outcome.cancel()
        response.protocol.dataReceived(b"second")
        response.protocol.connectionLost(Failure(ResponseDone()))
        with pytest.raises(CancelledError):
            result(outcome)
        assert (consumer.data, consumer.producer, response.closed) == (b"first", None, True)

    @pytest.mark.parametrize("code", [200, 404])
    def test_a_timeout(self, code: int) -> None:
        """A `get` that times out closes its connection, also while it reads the body of an error."""
        response, clock = Response(code), Clock()
        outcome = StorageClient("http://x", response).get("a").addTimeout(5, clock)
        response.protocol.dataReceived(b"first")
        clock.advance(5)
        with pytest.raises(TimeoutError):
            result(outcome)
        assert response.closed

    def test_a_consumer_that_cancels_while_it_is_registered(self) -> None:
        """A read that is cancelled during registerProducer closes its connection after deliverBody."""
        response = Response()

        class CancellingConsumer(Consumer):
            def registerProducer(self, producer: Any, streaming: bool) -> None:
                super().registerProducer(producer, streaming)
                producer.done.cancel()

        with pytest.raises(CancelledError):
            result(StorageClient("http://x", response).get_to("a", CancellingConsumer()))
        assert response.closed

    def test_a_consumer_that_has_left(self) -> None:
        """A consumer that stops its producer gets no more, and the read fails."""
        response, consumer = Response(), Consumer()
        outcome = StorageClient("http://x", response).get_to("a", consumer)
        consumer.producer.stopProducing()
        assert response.closed
        response.protocol.dataReceived(b"late")
        response.protocol.connectionLost(Failure(ConnectionError("closed")))
        with pytest.raises(ConnectionError):
            result(outcome)
        assert consumer.data == b""

    @pytest_twisted.ensureDeferred
    async def test_the_server_stops_sending(self, served: Served) -> None:
        """A read that is cancelled ends at the server, too, long before the end of the object."""
        served.bucket.objects["a"] = b"x" * 50_000_000
        reader: Any = await served.bucket.get("a")
        ended: Deferred[None] = Deferred()
        deliver = reader.deliver

        def end(outcome: Any) -> Any:
            ended.callback(None)
            return outcome

        def watched(consumer: Any) -> Deferred[None]:
            return deliver(consumer).addBoth(end)  # type: ignore[no-any-return]

        reader.deliver = watched
        served.bucket.get = lambda *_: succeed(reader)  # type: ignore[method-assign]
        consumer = Consumer(paused=True)
        outcome = served.client.get_to("a", consumer)
        while consumer.producer is None:
            await _soon()
        assert not ended.called
        outcome.cancel()
        with pytest.raises(CancelledError):
            await outcome
        await ended
        assert len(consumer.data) < 1_000_000


class RetryAfterTests:
    """The Retry-After of an error."""

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("7", 7),
            ("0", 0),
            ("Wed, 21 Oct 2015 07:28:00 GMT", 0),  # the past
            ("Fri, 31 Dec 9999 23:59:59 GMT", "many"),
            ("soon", None),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("9" * 5000, None),
            ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ],
    )
    def test_both_forms(self, value: str, seconds: object) -> None:
        """Retry-After may be a number of seconds or a date; anything else is ignored. RFC 9110, 10.2.3."""
        response = Response(503, Retry_After=value)
        outcome = StorageClient("http://x", response).get("a")
        response.protocol.connectionLost(Failure(ResponseDone()))
        with pytest.raises(Busy) as caught:
            result(outcome)
        assert caught.value.retry_after == seconds or (seconds == "many" and (caught.value.retry_after or 0) > 10**9)


async def _soon() -> None:
    await deferLater(reactor, 0.05)
