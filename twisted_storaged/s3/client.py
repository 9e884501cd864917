"""S3's data plane: the requests that carry objects, signed, sent, and sent again as boto3's `standard` retries would.

https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
"""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from awscrt import checksums
from twisted.internet.task import deferLater

from twisted_storaged.buckets.threads import Run
from twisted_storaged.s3.blocking import BlockingPool
from twisted_storaged.s3.connection import READ_SIZE, BodyStream
from twisted_storaged.s3.pool import Pool
from twisted_storaged.s3.signing import Keys, Signer
from twisted_storaged.s3.wire import Answer, ConnectionFailed, request_head

#: A body of more bytes than this is sent by a thread. Below, the thread costs more than it helps.
IN_THREAD_FROM = 512 << 10
#: Bytes of an object that the first read may bring, with the head: a small object is here at once.
FIRST_READ_SIZE = 120 << 10
#: Bytes of a range that one read may bring.
RANGE_READ_SIZE = 256 << 10
#: Tries of one request, the first included; and the longest pause between two, in seconds.
TRIES = 3
LONGEST_PAUSE = 20.0

#: The headers that make a write conditional: whoever sends it twice must know.
CONDITIONS = frozenset({"if-match", "if-none-match"})

_CHECKSUM = "x-amz-checksum-crc32c"
_METHODS = {"HeadObject": "HEAD", "DeleteObject": "DELETE", "CompleteMultipartUpload": "POST"}
_NONE: Mapping[str, str] = MappingProxyType({})
_TRY_AGAIN_STATUS = {429, 500, 502, 503, 504}
_MAYBE_DONE_STATUS = {500, 502, 504}
_TRY_AGAIN_CODES = {
    "BandwidthLimitExceeded",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}


class RequestFailed(Exception):
    """S3 answered with an error, for good.

    Attributes:
        answer: what it said.
        again: whether this was another try, after one that may have been carried out.
    """

    def __init__(self, operation: str, answer: Answer, again: bool) -> None:
        super().__init__(f"{operation}: {answer}")
        self.answer = answer
        self.again = again


@dataclass(frozen=True)
class Location:
    """How a bucket is addressed: the `host` header, and what comes before a key in the path ("/" or "/bucket/")."""

    host: str
    root: str

    def path_of(self, key: str) -> str:
        """The path of a key, encoded as S3 wants it; of the bucket itself, for no key."""
        return self.root + quote(key, safe="/~") if key else self.root.rstrip("/") or "/"


@dataclass(frozen=True)
class Transports:
    """The ways to S3: connections on the reactor; connections for threads, and what runs calls in those."""

    pool: Pool
    blocking: BlockingPool
    run: Run
    reactor: Any


class DataPlane:
    """The requests of one bucket. Every one raises RequestFailed or ConnectionFailed, after the tries it has."""

    def __init__(
        self, location: Location, signer: Signer, keys: Callable[[], Awaitable[Keys]], transports: Transports
    ) -> None:
        self._location = location
        self._signer = signer
        self._keys = keys
        self._to = transports

    async def put_object(self, key: str, body: bytearray, headers: Mapping[str, str] = _NONE) -> Answer:
        """Store an object, with its CRC-32C. https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html .

        `headers` are its metadata, and conditions.
        """
        return await self._send("PutObject", key, "", body, {**headers, _CHECKSUM: crc32c(body)})

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytearray, checksum: str) -> Answer:
        """Store a part of a multipart upload. https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html ."""
        query = f"partNumber={number}&uploadId={quote(upload_id, safe='')}"
        return await self._send("UploadPart", key, query, body, {_CHECKSUM: checksum})

    async def complete_upload(self, key: str, upload_id: str, parts: bytearray, headers: Mapping[str, str]) -> Answer:
        """Complete a multipart upload of these parts, in XML; the answer may be an error whatever its status says.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        return await self._send("CompleteMultipartUpload", key, f"uploadId={quote(upload_id, safe='')}", parts, headers)

    async def get_object(self, key: str, headers: Mapping[str, str] = _NONE) -> tuple[Answer, BodyStream]:
        """Open an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html .

        The body comes when it is delivered; what goes wrong then is not tried again. `headers` are a range, and
        conditions.
        """
        streams: list[BodyStream] = []

        async def attempt() -> Answer:
            head = await self._head("GET", key, "", headers)
            answer, connection = await self._to.pool.ask(head, streamed=True, read_size=FIRST_READ_SIZE)
            if answer.status < 300:
                streams.append(connection.stream())
            return answer

        answer = await self._tried("GetObject", attempt)
        return answer, streams[0]

    async def read_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Answer:
        """Get an object, or a range of it, all at once."""
        return await self._ask("GetObject", key, "", headers, RANGE_READ_SIZE)

    async def head_object(self, key: str) -> Answer:
        """Look at an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html ."""
        return await self._ask("HeadObject", key, "")

    async def delete_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Answer:
        """Remove an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html ."""
        return await self._ask("DeleteObject", key, "", headers)

    async def list_objects(self, query: Mapping[str, str]) -> Answer:
        """List a page. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html .

        `query` is what that page names: `prefix`, `delimiter`, `continuation-token`, `max-keys`, `start-after`.
        """
        parameters = sorted({"encoding-type": "url", "list-type": "2", **query}.items())
        text = "&".join([f"{name}={quote(value, safe='')}" for name, value in parameters])
        return await self._ask("ListObjectsV2", "", text)

    def start(self) -> None:
        """Begin to look at who is late."""
        self._to.pool.start()

    def stop(self) -> None:
        """Close all connections that are idle, and give up those on the reactor that are not."""
        self._to.pool.stop()
        self._to.blocking.close()

    @property
    def clock(self) -> Any:
        """The reactor, for who measures time."""
        return self._to.reactor

    async def _ask(
        self,
        operation: str,
        key: str,
        query: str,
        extra: Mapping[str, str] = _NONE,
        read_size: int = READ_SIZE,
    ) -> Answer:
        method = _METHODS.get(operation, "GET")

        async def attempt() -> Answer:
            head = await self._head(method, key, query, extra)
            once = method == "DELETE" and not extra.keys().isdisjoint(CONDITIONS)
            answer, _ = await self._to.pool.ask(head, method == "HEAD", read_size=read_size, once=once)
            return answer

        return await self._tried(operation, attempt)

    async def _send(self, operation: str, key: str, query: str, body: bytearray, extra: Mapping[str, str]) -> Answer:
        method = _METHODS.get(operation, "PUT")

        async def attempt() -> Answer:
            head = await self._head(method, key, query, extra, len(body))
            if len(body) > IN_THREAD_FROM:
                return await self._to.run(self._to.blocking.ask, head, body)
            answer, _ = await self._to.pool.ask(head + body, once=not extra.keys().isdisjoint(CONDITIONS))
            return answer

        return await self._tried(operation, attempt)

    async def _head(
        self, method: str, key: str, query: str, extra: Mapping[str, str] = _NONE, length: int | None = None
    ) -> bytes:
        path = self._location.path_of(key)
        headers = self._signer.sign(method, path, query, {"host": self._location.host, **extra}, await self._keys())
        if length is not None:
            headers["content-length"] = str(length)
        return request_head(method, f"{path}?{query}" if query else path, headers)

    async def _tried(self, operation: str, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        again = False
        for left in reversed(range(TRIES)):
            try:
                answer = await attempt()
            except ConnectionFailed:
                if not left:
                    raise
                again = True
            else:
                if answer.status < 300:
                    return answer
                if not left or not _may_pass(answer):
                    raise RequestFailed(operation, answer, again)
                again = again or answer.status in _MAYBE_DONE_STATUS
            await deferLater(self._to.reactor, _pause(TRIES - left))
        raise AssertionError("the last try returns or raises")


def _may_pass(answer: Answer) -> bool:
    return answer.status in _TRY_AGAIN_STATUS or answer.code in _TRY_AGAIN_CODES


def _pause(tries: int) -> float:
    """Seconds before the next try, after so many: exponential, with full jitter."""
    return min(random.random() * 2.0 ** (tries - 1), LONGEST_PAUSE)  # noqa: S311 (no secret)


def crc32c(body: bytearray) -> str:
    """The checksum as S3 wants it in a header: base64 of four bytes, big-endian."""
    return b64encode(checksums.crc32c(body).to_bytes(4, "big")).decode("ascii")
