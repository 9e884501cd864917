"""The operations of S3: the requests that carry objects, and those of multipart uploads, signed and sent."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from awscrt import checksums

from twisted_storaged.buckets.s3.blocking import BlockingPool
from twisted_storaged.buckets.s3.connection_pool import READ_SIZE, ConnectionPool, ReadOptions
from twisted_storaged.buckets.s3.response_body import BufferedBody, StreamedBody
from twisted_storaged.buckets.s3.responses import (
    CHECKSUM,
    AttemptState,
    ConfirmApplied,
    Retries,
    children,
    is_own,
    require_success,
    text,
    was_put_since,
    was_there_before,
    xml_root,
)
from twisted_storaged.protocol.http1 import ConnectionFailed, Response, request_head
from twisted_storaged.protocol.sigv4 import Credentials, Signer
from twisted_storaged.runtime.buffers import Buffer
from twisted_storaged.runtime.concurrency import Run

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


class S3Request(NamedTuple):
    """A request: S3's name of the operation, a key (none for the bucket itself), and what goes with it."""

    operation: str
    key: str
    query: Mapping[str, str] = _NONE
    headers: Mapping[str, str] = _NONE
    body: Buffer = b""

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

    pool: ConnectionPool
    blocking: BlockingPool
    run: Run


@dataclass(frozen=True)
class CredentialSource:
    """The credentials that requests are signed with.

    Attributes:
        current: returns them, without blocking unless they expire soon.
        refresh: fetches new ones in a thread if necessary, and returns them. Raises NotConnected.
        expire_soon: whether they expire so soon that they must be refreshed; None if they never expire.
    """

    current: Callable[[], Credentials]
    refresh: Callable[[], Awaitable[Credentials]]
    expire_soon: Callable[[], bool] | None = None

    async def get(self) -> Credentials:
        """Valid credentials. Raises NotConnected."""
        if self.expire_soon is not None and self.expire_soon():
            return await self.refresh()
        return self.current()


class DataPlane:
    """The requests to one bucket. Each raises RequestFailed or ConnectionFailed when its attempts have failed."""

    def __init__(
        self,
        location: Location,
        signer: Signer,
        credentials: CredentialSource,
        transports: Transports,
        retries: Retries,
    ) -> None:
        self._location = location
        self._signer = signer
        self._credentials = credentials
        self._to = transports
        self._retries = retries

    async def put_object(self, key: str, body: Buffer, headers: Mapping[str, str] = _NONE) -> Response:
        """Store an object, with its CRC-32C. https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html .

        `headers` are its metadata, and conditions. A try whose reply was lost is looked for, before there is another;
        it is recognised by the write id among the metadata, if there is one: see `responses`.
        """
        call, began = (
            S3Request("PutObject", key, _NONE, {**headers, CHECKSUM: crc32c(body)}, body),
            self.clock.seconds(),
        )

        async def confirm_applied(ends: float) -> Response | AttemptState:
            found = await self.look(key, ends)
            if found is None or found.status != 200:
                return AttemptState.UNKNOWN
            if is_own(found, headers):
                return found
            refuted = call.conditional and _refutes(found, headers)
            long_ago = was_there_before(found, self.clock.seconds() - began)
            return AttemptState.NOT_DONE if refuted and long_ago else AttemptState.UNKNOWN

        return await self._send(call, confirm_applied)

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer, checksum: str) -> Response:
        """Store a part of a multipart upload. https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html ."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        return await self._send(S3Request("UploadPart", key, query, {CHECKSUM: checksum}, body))

    async def get_object(
        self, key: str, headers: Mapping[str, str] = _NONE, first: int = FIRST_READ_SIZE
    ) -> tuple[Response, StreamedBody | BufferedBody]:
        """Open an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html .

        The body comes when it is delivered; what goes wrong then is not tried again. `headers` are a range, and
        conditions; `first` is how many bytes the first read may bring.
        """
        body: StreamedBody | None = None

        async def attempt(ends: float) -> Response:
            nonlocal body
            head = await self._head(S3Request("GetObject", key, headers=headers))
            reading = ReadOptions(streamed=True, size=first, until=ends)
            response, body = await self._to.pool.open((head,), reading)
            return response

        response = await self._retries.run("GetObject", attempt)
        # The caller must be the only owner of the body, and this frame might outlive the call in a traceback.
        opened, body = body, None
        return response, opened or BufferedBody(response.body)

    async def read_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Response:
        """Get an object, or a range of it, all at once."""
        return await self.ask(S3Request("GetObject", key, headers=headers), read_size=RANGE_READ_SIZE)

    async def head_object(self, key: str) -> Response:
        """Look at an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html ."""
        return await self.ask(S3Request("HeadObject", key))

    async def delete_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Response:
        """Remove an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html .

        Without a condition, a try whose reply was lost is looked for, before there is another, which might remove what
        somebody has put meanwhile.
        """
        call, began = S3Request("DeleteObject", key, headers=headers), self.clock.seconds()

        async def confirm_applied(ends: float) -> Response | AttemptState:
            found = await self.look(key, ends)
            if found is None:
                return AttemptState.UNKNOWN
            gone = found.status == 404
            return found if gone or was_put_since(found, self.clock.seconds() - began) else AttemptState.UNKNOWN

        return await self.ask(call, confirm_applied=None if call.conditional else confirm_applied)

    async def list_objects(self, query: Mapping[str, str]) -> Response:
        """List a page. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html .

        `query` is what that page names: `prefix`, `delimiter`, `continuation-token`, `max-keys`, `start-after`.
        """
        return await self.ask(S3Request("ListObjectsV2", "", {"encoding-type": "url", "list-type": "2", **query}))

    async def look(self, key: str, ends: float) -> Response | None:
        """Look at an object, once, until `ends`; None where S3 does not say."""
        head = await self._head(S3Request("HeadObject", key))
        try:
            response = await self._to.pool.ask((head,), ReadOptions(head_request=True, until=ends))
        except ConnectionFailed:
            return None
        return response if response.status in (200, 404) else None

    async def ask(
        self, call: S3Request, read_size: int = READ_SIZE, confirm_applied: ConfirmApplied | None = None
    ) -> Response:
        """Make a request whose body and answer are small."""
        once = call.method in ("POST", "DELETE")

        async def attempt(ends: float) -> Response:
            head = await self._head(call)
            reading = ReadOptions(head_request=call.method == "HEAD", size=read_size, until=ends)
            response = await self._to.pool.ask((head, call.body), reading, once)
            require_success(call.operation, call.headers, response)
            return response

        return await self._retries.run(call.operation, attempt, confirm_applied, call.decisive)

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

    async def _send(self, call: S3Request, confirm_applied: ConfirmApplied | None = None) -> Response:
        async def attempt(ends: float) -> Response:
            head = await self._head(call)
            if len(call.body) > IN_THREAD_FROM:
                until = time.monotonic() + ends - self.clock.seconds()
                response = await self._to.run(self._to.blocking.ask, head, call.body, until)
            else:
                response = await self._to.pool.ask(
                    (head, call.body), ReadOptions(until=ends), once=confirm_applied is not None
                )
            require_success(call.operation, call.headers, response)
            return response

        return await self._retries.run(call.operation, attempt, confirm_applied, call.decisive)

    async def _head(self, call: S3Request) -> bytes:
        method, path, query = call.method, self._location.path_of(call.key), call.query_text
        signed = {"host": self._location.host, **call.headers}
        headers = self._signer.sign(method, path, query, signed, await self._credentials.get())
        if method in ("PUT", "POST"):
            headers["content-length"] = str(len(call.body))
        return request_head(method, f"{path}?{query}" if query else path, headers)


def _refutes(found: Response, headers: Mapping[str, str]) -> bool:
    """Whether a condition does not hold for an object that is there."""
    return headers.get("if-none-match") == "*" or headers.get("if-match") != found.headers.get("etag")


def crc32c(body: Buffer) -> str:
    """The checksum as S3 wants it in a header: base64 of four bytes, big-endian."""
    return b64encode(checksums.crc32c(body).to_bytes(4, "big")).decode("ascii")


_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


class Part(NamedTuple):
    """A part that was uploaded: its number, its ETag as S3 gave it, and its CRC-32C in base64."""

    number: int
    etag: str
    checksum: str


class OpenUpload(NamedTuple):
    """An upload that has not ended; `began` is in seconds since the epoch, by S3's clock."""

    key: str
    upload_id: str
    began: float


class MultipartUploads:
    """The multipart uploads of a bucket. Every call raises RequestFailed or ConnectionFailed.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
    """

    def __init__(self, objects: DataPlane) -> None:
        self._objects = objects

    async def create(self, key: str, headers: Mapping[str, str]) -> tuple[str, bool]:
        """Begin one, whose object will have these metadata: its id, and whether there may be another, of a lost reply.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
        """
        extra = {**headers, "x-amz-checksum-algorithm": "CRC32C"}
        response = await self._objects.ask(S3Request("CreateMultipartUpload", key, {"uploads": ""}, extra))
        return text(xml_root(response), "UploadId"), response.again

    async def complete(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        headers: Mapping[str, str],
        confirm_applied: ConfirmApplied | None = None,
    ) -> str:
        """Make the object of its parts, under the condition in `headers`; gives its ETag, if the engine does.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        extra = {"content-type": "application/xml", **headers}
        call = S3Request("CompleteMultipartUpload", key, {"uploadId": upload_id}, extra, _completion(parts))
        response = await self._objects.ask(call, confirm_applied=confirm_applied)
        return response.headers.get("etag") or (text(xml_root(response), "ETag") if response.body else "")

    async def abort(self, key: str, upload_id: str) -> bool:
        """Forget one; whether S3 says, as it should, that there was one.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
        """
        response = await self._objects.ask(S3Request("AbortMultipartUpload", key, {"uploadId": upload_id}))
        return response.status == 204

    async def has_parts(self, key: str, upload_id: str) -> bool:
        """Whether one has a part. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html ."""
        response = await self._objects.ask(S3Request("ListParts", key, {"max-parts": "1", "uploadId": upload_id}))
        return bool(children(xml_root(response), "Part"))

    async def of(self, key: str) -> list[OpenUpload]:
        """Those of a key that are open, up to a thousand.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
        """
        response = await self._objects.ask(S3Request("ListMultipartUploads", "", {"prefix": key, "uploads": ""}))
        found = [
            OpenUpload(
                text(item, "Key"), text(item, "UploadId"), datetime.fromisoformat(text(item, "Initiated")).timestamp()
            )
            for item in children(xml_root(response), "Upload")
        ]
        return [upload for upload in found if upload.key == key]


def _completion(parts: Sequence[Part]) -> bytes:
    root = ElementTree.Element("CompleteMultipartUpload", xmlns=_XMLNS)
    for part in parts:
        element = ElementTree.SubElement(root, "Part")
        fields = {"PartNumber": str(part.number), "ETag": part.etag, "ChecksumCRC32C": part.checksum}
        for name, value in fields.items():
            ElementTree.SubElement(element, name).text = value
    return bytes(ElementTree.tostring(root, "utf-8"))
