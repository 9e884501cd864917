"""A client of storaged for Twisted services: stores, reads, lists and deletes objects, and streams bodies both ways."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote

from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from twisted_storaged.runtime.concurrency import deferred


class StorageFailed(Exception):
    """storaged answered a request with an error.

    Attributes:
        status: the HTTP status.
        retry_after: seconds to wait before a retry; None if the response does not say.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.retry_after = retry_after


class NotFound(StorageFailed):
    """404: no object has this key."""


class TooLarge(StorageFailed):
    """413: the body exceeds the limit for its key."""


class Busy(StorageFailed):
    """503: all put slots are taken; `retry_after` says how long to wait."""


_FAILURES = {404: NotFound, 413: TooLarge, 503: Busy}


@dataclass(frozen=True)
class StoredObject:
    """An object: its key, size in bytes, and ETag (without quotes)."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class ListedObject(StoredObject):
    """An entry of a list."""

    last_modified: datetime


class HTTPClient(Protocol):
    """The part of treq that the client needs: the module `treq`, its HTTPClient, and its StubTreq have it."""

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Send a request; the Deferred fires with an IResponse."""


class StorageClient:
    """A client of the daemon at `url`, for example `http://127.0.0.1:3211`.

    Every Deferred may fail with StorageFailed (or NotFound, TooLarge, Busy), and with the errors of treq if there is no
    response. Cancelling one, also by a timeout, closes its connection: nothing more is read or written to a consumer.
    """

    def __init__(self, url: str, treq: HTTPClient) -> None:
        self._storage = url.rstrip("/") + "/storage"
        self._treq = treq

    @deferred
    async def put(self, key: str, body: bytes | BinaryIO | IBodyProducer) -> StoredObject:
        """Store `body` under `key`. A file or a producer is streamed. The Deferred fires when the object is durable."""
        response = await self._request("PUT", f"/put/{_quoted(key)}", data=body)
        stored = json.loads(await _collect(response))
        return StoredObject(stored["key"], stored["size"], stored["etag"])

    @deferred
    async def get(self, key: str) -> bytes:
        """Read an object completely."""
        return await _collect(await self._request("GET", f"/get/{_quoted(key)}"))

    @deferred
    async def get_to(self, key: str, consumer: IConsumer) -> None:
        """Write an object to `consumer`, which may pause it. The Deferred fires when everything was written."""
        response = await self._request("GET", f"/get/{_quoted(key)}")
        await _deliver(response, consumer)

    @deferred
    async def list(self, prefix: str = "") -> list[ListedObject]:
        """List the objects whose keys start with `prefix`, in the order of the bytes of their keys."""
        response = await self._request("GET", f"/list?prefix={quote(prefix, safe='')}")
        return [
            ListedObject(item["key"], item["size"], item["etag"], datetime.fromisoformat(item["last_modified"]))
            for item in json.loads(await _collect(response))["objects"]
        ]

    @deferred
    async def delete(self, key: str) -> None:
        """Delete the object with this key. It is not an error if there is none."""
        await _collect(await self._request("DELETE", f"/delete/{_quoted(key)}"))

    async def _request(self, method: str, path: str, **kwargs: Any) -> IResponse:
        # Unbuffered: treq would otherwise collect the whole body in memory.
        response: IResponse = await self._treq.request(method, self._storage + path, unbuffered=True, **kwargs)
        if response.code < 300:
            return response
        message = (await _collect(response)).decode("utf-8", "replace").strip()
        retry_after = _parse_retry_after(response.headers.getRawHeaders("Retry-After", [""])[0], time.time())
        raise _FAILURES.get(response.code, StorageFailed)(response.code, message, retry_after)


@implementer(IPushProducer)
class _Delivery(protocol.Protocol):
    """Writes the body of a response to a consumer, whose pauses become pauses of the transport.

    Attributes:
        done: fires when everything was written. Once it has fired or was cancelled, the consumer is not used again.
    """

    transport: Any

    def __init__(self, consumer: IConsumer) -> None:
        self._consumer: IConsumer | None = consumer
        self._paused = False
        self._stopped = False
        self.done: Deferred[None] = Deferred(lambda _: self._cancel())

    def connectionMade(self) -> None:
        if self._consumer is not None:
            self._consumer.registerProducer(self, True)

    def after_deliver_body(self) -> None:
        """Pause or close the transport if the consumer asked for it during `deliverBody`."""
        # Twisted resumes the transport at the end of `deliverBody`, whatever was asked for meanwhile.
        if self._consumer is None:
            self._close()
        elif self._paused:
            self.transport.pauseProducing()

    def pauseProducing(self) -> None:
        self._paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        self._stopped = True
        self._close()

    def dataReceived(self, data: bytes) -> None:
        # A connection that is being closed may still deliver what it had received.
        if self._consumer is not None and not self._stopped:
            self._consumer.write(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        if self._detach():
            # PotentialDataLoss is a failure as well: the body had no length, so that it may be incomplete.
            self.done.callback(None if reason.check(ResponseDone) else reason)

    def _cancel(self) -> None:
        # In this order, so that bytes which the closing connection still delivers do not reach the consumer.
        if self._detach():
            self._close()

    def _detach(self) -> bool:
        """Unregister from the consumer, and forget it; returns False if that was done before."""
        # First, as the consumer may cancel the read when its producer is unregistered.
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return False
        consumer.unregisterProducer()
        return True

    def _close(self) -> None:
        """Close the connection in the middle of the response, at once if the transport can do that."""
        # There is no transport yet if the Deferred is cancelled before `deliverBody`.
        if self.transport is not None:
            getattr(self.transport, "abortConnection", self.transport.stopProducing)()


class _Collector:
    """A consumer that collects a body in memory."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def registerProducer(self, producer: object, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.chunks.append(data)


def _deliver(response: IResponse, consumer: Any) -> Deferred[None]:
    delivery = _Delivery(consumer)
    response.deliverBody(delivery)
    delivery.after_deliver_body()
    return delivery.done


async def _collect(response: IResponse) -> bytes:
    collector = _Collector()
    await _deliver(response, collector)
    return b"".join(collector.chunks)


def _parse_retry_after(retry_after: str, now: float) -> int | None:
    """Parse a Retry-After, a number of seconds or a date; returns None if it is neither. RFC 9110, 10.2.3."""
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return int(retry_after)
    try:
        return max(0, ceil(parsedate_to_datetime(retry_after).timestamp() - now))
    except (ValueError, OverflowError):
        return None


def _quoted(key: str) -> str:
    return quote(key, safe="/")
