"""S3's data plane: the requests that carry objects, signed and sent. When to send one again is in `retries`."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from awscrt import checksums

from twisted_storaged.buckets.threads import Run
from twisted_storaged.s3.blocking import BlockingPool
from twisted_storaged.s3.body import BodyStream, WholeBody
from twisted_storaged.s3.connection import READ_SIZE, Reading
from twisted_storaged.s3.pool import Pool
from twisted_storaged.s3.proofs import CHECKSUM, is_own, require_success, was_put_since, was_there_before
from twisted_storaged.s3.retries import Fate, Landed, Retries
from twisted_storaged.s3.signing import Keys, Signer
from twisted_storaged.s3.wire import Answer, ConnectionFailed, request_head

#: A body of more bytes than this is sent by a thread. Below, the thread costs more than it helps.
IN_THREAD_FROM = 512 << 10
#: Bytes of an object that the first read may bring, with the head: a small object is here at once.
FIRST_READ_SIZE = 120 << 10
#: Bytes of a range that one read may bring.
RANGE_READ_SIZE = 256 << 10
#: The headers that make a write conditional: whoever sends it twice must know.
CONDITIONS = frozenset({"if-match", "if-none-match"})

#: A key that is the same when it is encoded.
_PLAIN = re.compile(r"[A-Za-z0-9_./~-]*")
_METHODS = {
    "AbortMultipartUpload": "DELETE",
    "CompleteMultipartUpload": "POST",
    "CreateMultipartUpload": "POST",
    "DeleteObject": "DELETE",
    "HeadObject": "HEAD",
    "PutObject": "PUT",
    "UploadPart": "PUT",
}
#: The operation that cannot be carried out twice, as the first time ends what it is about.
_ENDS = "CompleteMultipartUpload"
_NONE: Mapping[str, str] = MappingProxyType({})


class Call(NamedTuple):
    """A request: S3's name of the operation, a key (none for the bucket itself), and what goes with it."""

    operation: str
    key: str
    query: Mapping[str, str] = _NONE
    headers: Mapping[str, str] = _NONE
    body: bytes | bytearray = b""

    @property
    def method(self) -> str:
        """The method of HTTP."""
        return _METHODS.get(self.operation, "GET")

    @property
    def query_text(self) -> str:
        """The query as it is sent and signed."""
        if not self.query:
            return ""
        return "&".join([f"{name}={quote(value, safe='')}" for name, value in sorted(self.query.items())])

    @property
    def conditional(self) -> bool:
        """Whether a second try might meet what the first one did."""
        return not self.headers.keys().isdisjoint(CONDITIONS)

    @property
    def decisive(self) -> bool:
        """Whether a refusal says nothing of an earlier try, which may be what it is refused for."""
        return self.operation == _ENDS or (self.conditional and self.method in ("PUT", "DELETE"))


@dataclass(frozen=True)
class Location:
    """How a bucket is addressed: the `host` header, and what comes before a key in the path ("/" or "/bucket/")."""

    host: str
    root: str

    def path_of(self, key: str) -> str:
        """The path of a key, encoded as S3 wants it; of the bucket itself, for no key."""
        if not key:
            return self.root.rstrip("/") or "/"
        return self.root + (key if _PLAIN.fullmatch(key) else quote(key, safe="/~"))


@dataclass(frozen=True)
class Transports:
    """The ways to S3: connections on the reactor; connections for threads, and what runs calls in those."""

    pool: Pool
    blocking: BlockingPool
    run: Run


class DataPlane:
    """The requests of one bucket. Every one raises RequestFailed or ConnectionFailed, after the tries it has."""

    def __init__(
        self,
        location: Location,
        signer: Signer,
        keys: Callable[[], Awaitable[Keys]],
        transports: Transports,
        retries: Retries,
    ) -> None:
        self._location = location
        self._signer = signer
        self._keys = keys
        self._to = transports
        self._retries = retries

    async def put_object(self, key: str, body: bytearray, headers: Mapping[str, str] = _NONE) -> Answer:
        """Store an object, with its CRC-32C. https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html .

        `headers` are its metadata, and conditions. A try whose reply was lost is looked for, before there is another;
        it is recognised by the write id among the metadata, if there is one: see `proofs`.
        """
        call, began = Call("PutObject", key, _NONE, {**headers, CHECKSUM: crc32c(body)}, body), self.clock.seconds()

        async def landed(ends: float) -> Answer | Fate:
            found = await self.look(key, ends)
            if found is None or found.status != 200:
                return Fate.UNKNOWN
            if is_own(found, headers):
                return found
            refuted = call.conditional and _refutes(found, headers)
            long_ago = was_there_before(found, self.clock.seconds() - began)
            return Fate.NOT_DONE if refuted and long_ago else Fate.UNKNOWN

        return await self._send(call, landed)

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytearray, checksum: str) -> Answer:
        """Store a part of a multipart upload. https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html ."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        return await self._send(Call("UploadPart", key, query, {CHECKSUM: checksum}, body))

    async def get_object(
        self, key: str, headers: Mapping[str, str] = _NONE, first: int = FIRST_READ_SIZE
    ) -> tuple[Answer, BodyStream | WholeBody]:
        """Open an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html .

        The body comes when it is delivered; what goes wrong then is not tried again. `headers` are a range, and
        conditions; `first` is how many bytes the first read may bring.
        """

        async def attempt(ends: float) -> Answer:
            head = await self._head(Call("GetObject", key, headers=headers))
            reading = Reading(streamed=True, size=first, until=ends)
            return await self._to.pool.ask((head,), reading)

        answer = await self._retries.run("GetObject", attempt)
        # The body is owned by whoever gets it here, and by nobody else: answer and body would keep each other.
        stream, answer.stream = answer.stream, None
        return answer, stream or WholeBody(answer.body)

    async def read_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Answer:
        """Get an object, or a range of it, all at once."""
        return await self.ask(Call("GetObject", key, headers=headers), read_size=RANGE_READ_SIZE)

    async def head_object(self, key: str) -> Answer:
        """Look at an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html ."""
        return await self.ask(Call("HeadObject", key))

    async def delete_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Answer:
        """Remove an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html .

        Without a condition, a try whose reply was lost is looked for, before there is another, which might remove what
        somebody has put meanwhile.
        """
        call, began = Call("DeleteObject", key, headers=headers), self.clock.seconds()

        async def landed(ends: float) -> Answer | Fate:
            found = await self.look(key, ends)
            if found is None:
                return Fate.UNKNOWN
            gone = found.status == 404
            return found if gone or was_put_since(found, self.clock.seconds() - began) else Fate.UNKNOWN

        return await self.ask(call, landed=None if call.conditional else landed)

    async def list_objects(self, query: Mapping[str, str]) -> Answer:
        """List a page. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html .

        `query` is what that page names: `prefix`, `delimiter`, `continuation-token`, `max-keys`, `start-after`.
        """
        return await self.ask(Call("ListObjectsV2", "", {"encoding-type": "url", "list-type": "2", **query}))

    async def look(self, key: str, ends: float) -> Answer | None:
        """Look at an object, once, until `ends`; None where S3 does not say."""
        head = await self._head(Call("HeadObject", key))
        try:
            answer = await self._to.pool.ask((head,), Reading(head_request=True, until=ends))
        except ConnectionFailed:
            return None
        return answer if answer.status in (200, 404) else None

    async def ask(self, call: Call, read_size: int = READ_SIZE, landed: Landed | None = None) -> Answer:
        """Make a request whose body and answer are small."""
        once = call.method in ("POST", "DELETE")

        async def attempt(ends: float) -> Answer:
            head = await self._head(call)
            reading = Reading(head_request=call.method == "HEAD", size=read_size, until=ends)
            answer = await self._to.pool.ask((head, call.body), reading, once)
            require_success(call.operation, call.headers, answer)
            return answer

        return await self._retries.run(call.operation, attempt, landed, call.decisive)

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
        return self._retries.clock

    @property
    def deadline(self) -> float:
        """Seconds that a request has, with all its tries."""
        return self._retries.deadline

    def ends(self) -> float:
        """When a request that begins now must be over."""
        return self._retries.ends()

    async def _send(self, call: Call, landed: Landed | None = None) -> Answer:
        async def attempt(ends: float) -> Answer:
            head = await self._head(call)
            if len(call.body) > IN_THREAD_FROM:
                until = time.monotonic() + ends - self.clock.seconds()
                answer = await self._to.run(self._to.blocking.ask, head, call.body, until)
            else:
                answer = await self._to.pool.ask((head, call.body), Reading(until=ends), once=landed is not None)
            require_success(call.operation, call.headers, answer)
            return answer

        return await self._retries.run(call.operation, attempt, landed, call.decisive)

    async def _head(self, call: Call) -> bytes:
        method, path, query = call.method, self._location.path_of(call.key), call.query_text
        signed = {"host": self._location.host, **call.headers}
        headers = self._signer.sign(method, path, query, signed, await self._keys())
        if method in ("PUT", "POST"):
            headers["content-length"] = str(len(call.body))
        return request_head(method, f"{path}?{query}" if query else path, headers)


def _refutes(found: Answer, headers: Mapping[str, str]) -> bool:
    """Whether a condition does not hold for an object that is there."""
    return headers.get("if-none-match") == "*" or headers.get("if-match") != found.headers.get("etag")


def crc32c(body: bytearray) -> str:
    """The checksum as S3 wants it in a header: base64 of four bytes, big-endian."""
    return b64encode(checksums.crc32c(body).to_bytes(4, "big")).decode("ascii")
