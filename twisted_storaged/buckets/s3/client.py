"""The operations of S3, as signed requests: those on objects, and those of multipart uploads."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from types import MappingProxyType
from typing import NamedTuple, NoReturn
from urllib.parse import quote
from xml.etree import ElementTree

from awscrt import checksums
from twisted.internet.defer import Deferred

from twisted_storaged import __version__
from twisted_storaged.buckets.s3.blocking import BlockingPool
from twisted_storaged.buckets.s3.connection_pool import READ_SIZE, ConnectionPool, ReadOptions
from twisted_storaged.buckets.s3.meters import Connections
from twisted_storaged.buckets.s3.response_body import BufferedBody, StreamedBody
from twisted_storaged.buckets.s3.responses import (
    CHECKSUM,
    AttemptState,
    ConfirmApplied,
    RequestFailed,
    Retries,
    children,
    is_own,
    require_success,
    text,
    was_put_since,
    was_there_before,
    xml_root,
)
from twisted_storaged.model import ORIGIN
from twisted_storaged.protocol.http1 import ConnectionFailed, Response, TimedOut, request_head
from twisted_storaged.protocol.sigv4 import Credentials, Signer
from twisted_storaged.runtime.buffers import Buffer
from twisted_storaged.runtime.concurrency import Run

#: Bodies of more bytes than this are sent by a thread; for smaller ones, it costs more than it saves.
IN_THREAD_FROM = 512 << 10
#: Bytes of the first read of a GetObject response, so that a small object comes with its head.
FIRST_READ_SIZE = 120 << 10
#: Bytes of one read of a range that is collected in memory.
RANGE_READ_SIZE = 256 << 10
#: The headers that make a write conditional, so that repeating it may fail because of the first attempt.
CONDITIONS = frozenset({"if-match", "if-none-match"})

#: Keys that need no encoding in a path.
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
#: The operation that cannot be repeated, as it ends the upload.
_ENDS = "CompleteMultipartUpload"
_NONE: Mapping[str, str] = MappingProxyType({})
AGENT = f"storaged/{__version__}"
_AGENT_HEADER: Mapping[str, str] = MappingProxyType({"user-agent": AGENT})


class S3Request(NamedTuple):
    """A request: the operation by its name in S3, the key (empty for the bucket itself), query, headers and body."""

    operation: str
    key: str
    query: Mapping[str, str] = _NONE
    headers: Mapping[str, str] = _NONE
    body: Buffer = b""

    @property
    def method(self) -> str:
        """The HTTP method."""
        return _METHODS.get(self.operation, "GET")

    @property
    def query_text(self) -> str:
        """The query, encoded and sorted, as it is sent and signed."""
        if not self.query:
            return ""
        return "&".join([f"{name}={quote(value, safe='')}" for name, value in sorted(self.query.items())])

    @property
    def conditional(self) -> bool:
        """Whether it has a condition, so that a second attempt may fail because of the first."""
        return not self.headers.keys().isdisjoint(CONDITIONS)

    @property
    def decisive(self) -> bool:
        """Whether a refusal may be due to an earlier attempt that was carried out: see `Retries.run`."""
        return self.operation == _ENDS or (self.conditional and self.method in ("PUT", "DELETE"))


@dataclass(frozen=True)
class Location:
    """How a bucket is addressed: the `host` header, and the path up to the key ("/" or "/bucket/")."""

    host: str
    root: str

    def path_of(self, key: str) -> str:
        """The path of a key, encoded as S3 requires; of the bucket itself, if the key is empty."""
        if not key:
            return self.root.rstrip("/") or "/"
        return self.root + (key if _PLAIN.fullmatch(key) else quote(key, safe="/~"))


@dataclass(frozen=True)
class Transports:
    """Connections on the reactor, connections for threads, and the function that runs calls in threads."""

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
    """The requests to one bucket. Each raises RequestFailed or ConnectionFailed when its attempts have failed.

    Attributes:
        retries: repeats requests within their deadline.
        pools: the connections on the reactor, and those of threads.
    """

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
        self.retries = retries
        self.pools: tuple[Connections, ...] = (transports.pool, transports.blocking)
        self._clock = retries.clock

    async def put_object(self, key: str, body: Buffer, headers: Mapping[str, str] = _NONE) -> Response:
        """Store an object, with its CRC-32C. https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html .

        `headers` are its metadata and conditions. If a reply was lost, the object is looked up before another attempt,
        and recognised by the write id in its metadata, if there is one: see `responses`.
        """
        call = S3Request("PutObject", key, _NONE, {**headers, CHECKSUM: crc32c(body)}, body)
        began = self._clock.seconds()

        async def confirm_applied(ends: float) -> Response | AttemptState:
            found = await self.look(key, ends)
            if found is None or found.status != 200:
                return AttemptState.UNKNOWN
            if is_own(found, headers):
                return found
            refuted = call.conditional and _refutes(found, headers)
            long_ago = was_there_before(found, self._clock.seconds() - began)
            # An object that has contradicted the condition since before the first attempt was a reason to refuse all.
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

        The body is read when it is delivered, without retries. `headers` are a range and conditions; `first` is the
        size of the first read, in bytes.
        """
        body: StreamedBody | None = None

        async def attempt(ends: float) -> Response:
            nonlocal body
            head = await self._head(S3Request("GetObject", key, headers=headers))
            reading = ReadOptions(streamed=True, size=first, until=ends)
            response, body = await self._to.pool.open((head,), reading)
            return response

        response = await self.retries.run("GetObject", attempt)
        # The caller must be the only owner of the body, and this frame might outlive the call in a traceback.
        opened, body = body, None
        return response, opened or BufferedBody(response.body)

    async def read_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Response:
        """Read an object, or a range of it, into memory."""
        return await self.ask(S3Request("GetObject", key, headers=headers), read_size=RANGE_READ_SIZE)

    async def head_object(self, key: str) -> Response:
        """Get the metadata of an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html ."""
        return await self.ask(S3Request("HeadObject", key))

    async def delete_object(self, key: str, headers: Mapping[str, str] = _NONE) -> Response:
        """Remove an object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html .

        If a reply was lost and there is no condition, the object is looked up before another attempt, which might
        delete an object that was put meanwhile.
        """
        call, began = S3Request("DeleteObject", key, headers=headers), self._clock.seconds()

        async def confirm_applied(ends: float) -> Response | AttemptState:
            found = await self.look(key, ends)
            if found is None:
                return AttemptState.UNKNOWN
            gone = found.status == 404
            return found if gone or was_put_since(found, self._clock.seconds() - began) else AttemptState.UNKNOWN

        # If there was a condition, a missing object proves nothing, as another client may have deleted it.
        return await self.ask(call, confirm_applied=None if call.conditional else confirm_applied)

    async def list_objects(self, query: Mapping[str, str]) -> Response:
        """List a page. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html .

        `query` has the parameters on that page: `prefix`, `delimiter`, `continuation-token`, `max-keys`, `start-after`.
        """
        return await self.ask(_list_request(query))

    async def list_once(self, query: Mapping[str, str], seconds: float) -> Response:
        """List a page as `list_objects` does, in one attempt that takes at most some seconds."""
        call = _list_request(query)

        async def attempt(_: float) -> Response:
            # Not by `until`, which limits neither a connection that is being made nor a refresh of credentials.
            asked = Deferred.fromCoroutine(self._ask_once(call, READ_SIZE, inf))
            return await asked.addTimeout(seconds, self._clock, _timed_out)

        return await self.retries.run(call.operation, attempt, tries=1)

    async def look(self, key: str, ends: float) -> Response | None:
        """Look up an object, without retries, until `ends`; None if S3 gives no clear answer."""
        call = S3Request("HeadObject", key)
        try:
            return await self.retries.run(call.operation, lambda _: self._ask_once(call, READ_SIZE, ends), tries=1)
        except RequestFailed as error:
            return error.response if error.response.status == 404 else None
        except ConnectionFailed:
            return None

    async def ask(
        self, call: S3Request, read_size: int = READ_SIZE, confirm_applied: ConfirmApplied | None = None
    ) -> Response:
        """Make a request whose body and response are small."""
        return await self.retries.run(
            call.operation, lambda ends: self._ask_once(call, read_size, ends), confirm_applied, call.decisive
        )

    def start(self) -> None:
        """Begin to check for silent connections."""
        self._to.pool.start()

    def stop(self) -> None:
        """Close all connections, except those that threads are using, which are closed afterwards."""
        self._to.pool.stop()
        self._to.blocking.close()

    async def _ask_once(self, call: S3Request, read_size: int, ends: float) -> Response:
        head = await self._head(call)
        reading = ReadOptions(head_request=call.method == "HEAD", size=read_size, until=ends)
        # Only `retries` may send such a request again, as they know that it may have been carried out.
        response = await self._to.pool.ask((head, call.body), reading, once=call.method in ("POST", "DELETE"))
        require_success(call.operation, call.headers, response)
        return response

    async def _send(self, call: S3Request, confirm_applied: ConfirmApplied | None = None) -> Response:
        async def attempt(ends: float) -> Response:
            head = await self._head(call)
            if len(call.body) > IN_THREAD_FROM:
                until = time.monotonic() + ends - self._clock.seconds()
                response = await self._to.run(self._to.blocking.ask, head, call.body, until)
            else:
                # `once`, as a second attempt must not be made before `confirm_applied` has been asked.
                response = await self._to.pool.ask(
                    (head, call.body), ReadOptions(until=ends), once=confirm_applied is not None
                )
            require_success(call.operation, call.headers, response)
            return response

        return await self.retries.run(call.operation, attempt, confirm_applied, call.decisive)

    async def _head(self, call: S3Request) -> bytes:
        method, path, query = call.method, self._location.path_of(call.key), call.query_text
        # Each attempt is signed by itself, as credentials may have been refreshed since the last one.
        signed = {"host": self._location.host, **call.headers}
        headers = self._signer.sign(method, path, query, signed, await self._credentials.get())
        if method in ("PUT", "POST"):
            headers["content-length"] = str(len(call.body))
        headers.update(_origin_headers())
        return request_head(method, f"{path}?{query}" if query else path, headers)


def _origin_headers() -> Mapping[str, str]:
    """The headers by which a request is found in the logs and traces of S3. Not signed: proxies may change them."""
    origin = ORIGIN.get()
    if origin is None:
        return _AGENT_HEADER
    # Of all headers, engines log the user agent.
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/LogFormat.html
    headers = {"user-agent": f"{AGENT} (request {origin.id})"}
    if origin.trace is not None:
        headers["traceparent"] = origin.trace.parent
        if origin.trace.state:
            headers["tracestate"] = origin.trace.state
    return headers


def _list_request(query: Mapping[str, str]) -> S3Request:
    return S3Request("ListObjectsV2", "", {"encoding-type": "url", "list-type": "2", **query})


def _timed_out(_: object, seconds: float) -> NoReturn:
    raise TimedOut(f"no response within {seconds:.1f} s")


def _refutes(found: Response, headers: Mapping[str, str]) -> bool:
    """Whether the condition in `headers` does not hold for the object that was found."""
    return headers.get("if-none-match") == "*" or headers.get("if-match") != found.headers.get("etag")


def crc32c(body: Buffer) -> str:
    """The CRC-32C as in S3's headers: base64 of four bytes, big-endian."""
    return b64encode(checksums.crc32c(body).to_bytes(4, "big")).decode("ascii")


_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


class Part(NamedTuple):
    """An uploaded part: its number, its ETag as S3 returned it, and its CRC-32C in base64."""

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
        """Create an upload; returns its id, and whether a lost reply may have created another one.

        `headers` are the metadata of the object.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
        """
        # S3 accepts parts with a checksum only if the upload was created with its algorithm.
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
        """Make the object of the parts, on the condition in `headers`; returns its ETag, or "" if the engine gave none.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        extra = {"content-type": "application/xml", **headers}
        call = S3Request("CompleteMultipartUpload", key, {"uploadId": upload_id}, extra, _completion(parts))
        response = await self._objects.ask(call, confirm_applied=confirm_applied)
        # A lost reply is resolved by a HEAD, whose response has the ETag as a header, and no body.
        return response.headers.get("etag") or (text(xml_root(response), "ETag") if response.body else "")

    async def abort(self, key: str, upload_id: str) -> bool:
        """Abort an upload and delete its parts; returns whether S3 answers 204, so that there was one.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
        """
        response = await self._objects.ask(S3Request("AbortMultipartUpload", key, {"uploadId": upload_id}))
        return response.status == 204

    async def has_parts(self, key: str, upload_id: str) -> bool:
        """Whether an upload has a part. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html ."""
        response = await self._objects.ask(S3Request("ListParts", key, {"max-parts": "1", "uploadId": upload_id}))
        return bool(children(xml_root(response), "Part"))

    async def of(self, key: str) -> list[OpenUpload]:
        """The open uploads of a key, up to a thousand.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
        """
        response = await self._objects.ask(S3Request("ListMultipartUploads", "", {"prefix": key, "uploads": ""}))
        found = [
            OpenUpload(
                text(item, "Key"), text(item, "UploadId"), datetime.fromisoformat(text(item, "Initiated")).timestamp()
            )
            for item in children(xml_root(response), "Upload")
        ]
        # The prefix also finds uploads of longer keys.
        return [upload for upload in found if upload.key == key]


def _completion(parts: Sequence[Part]) -> bytes:
    root = ElementTree.Element("CompleteMultipartUpload", xmlns=_XMLNS)
    for part in parts:
        element = ElementTree.SubElement(root, "Part")
        fields = {"PartNumber": str(part.number), "ETag": part.etag, "ChecksumCRC32C": part.checksum}
        for name, value in fields.items():
            ElementTree.SubElement(element, name).text = value
    return bytes(ElementTree.tostring(root, "utf-8"))
