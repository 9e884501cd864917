"""A fake S3 endpoint with a few operations, in a thread, whose responses a test scripts."""

from __future__ import annotations

import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from tests.engines import HOST, Engine


@dataclass(frozen=True)
class Call:
    """A request; `name` is S3's name of the operation."""

    name: str
    method: str
    target: str
    key: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """A scripted response; `drop` closes the connection without one, `cut` after so many bytes of it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    seconds_per_mib: float = 0
    do_it_first: bool = False
    cut: int | None = None


Script = Callable[[Call], Answer | None]

#: The time at which objects that a test sets were stored.
LONG_AGO = 1_700_000_000.0
#: Headers that an engine keeps with an object.
_KEPT = ("cache-control", "content-disposition", "content-encoding", "content-type")


class Objects(dict[str, tuple[bytes, str]]):
    """Bodies and ETags by key. An object that a test sets has no metadata and an old date."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, dict[str, str]] = {}
        self.put_at: dict[str, float] = {}

    def __setitem__(self, key: str, value: tuple[bytes, str]) -> None:
        super().__setitem__(key, value)
        self.kept[key], self.put_at[key] = {}, LONG_AGO

    def keep(self, key: str, value: tuple[bytes, str], headers: dict[str, str]) -> None:
        """Store an object now, with those of these headers that an engine keeps."""
        self[key] = value
        self.put_at[key] = time.time()
        self.kept[key] = {
            name: text for name, text in headers.items() if name in _KEPT or name.startswith("x-amz-meta-")
        }


ERROR = b"<Error><Code>%s</Code><Message>scripted</Message></Error>"


class Scripted:
    """The endpoint: its objects, the open uploads, and the calls so far."""

    def __init__(self) -> None:
        self.script: Script = lambda _: None
        self.calls: list[Call] = []
        self.objects = Objects()
        #: Computes the ETag of a body, or of the MD5s of parts.
        self.etag_of: Callable[[bytes], str] = lambda body: hashlib.md5(body).hexdigest()
        self.uploads: dict[str, dict[int, bytes]] = {}
        #: An operation, and a condition (header) that it checks in a step before the write.
        self.look_first: tuple[str, str] | None = None
        #: Headers that are added to responses about objects.
        self.told: dict[str, str] = {}
        self._created: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self._numbers = count(1)

    def reset(self) -> None:
        """Forget all objects, uploads, calls and scripts."""
        self.script = lambda _: None
        for kept in (self.calls, self.objects, self.uploads, self.told):
            kept.clear()

    def names(self) -> list[str]:
        """The operations that were called, in order."""
        return [call.name for call in self.calls]

    def answer(self, call: Call, query: dict[str, list[str]]) -> Answer:
        """The response to a call."""
        with self._lock:
            self.calls.append(call)
        scripted = self.script(call)
        if self.look_first is not None and self.look_first[0] == call.name and self.look_first[1] in call.headers:
            if refused := self._refused(call):
                return refused
            time.sleep(0.3)
            call.headers.pop(self.look_first[1])
        elif self.look_first is not None and call.name == "PutObject":
            time.sleep(0.1)  # so that it is between check and write of a concurrent call
        if scripted is None or scripted.do_it_first:
            with self._lock:
                done: Answer = getattr(self, f"_{call.name}")(call, query)
            if scripted is not None and not scripted.drop and scripted.status == 200 and not scripted.body:
                return replace(done, seconds_per_mib=scripted.seconds_per_mib, cut=scripted.cut)
        return scripted or done

    def _PutObject(self, call: Call, query: dict[str, list[str]]) -> Answer:
        if refused := self._refused(call):
            return refused
        etag = self.etag_of(call.body)
        self.objects.keep(call.key, (call.body, etag), call.headers)
        return Answer(headers={"ETag": f'"{etag}"'})

    def _GetObject(self, call: Call, query: dict[str, list[str]]) -> Answer:
        if call.key not in self.objects:
            return Answer(404, ERROR % b"NoSuchKey")
        body, etag = self.objects[call.key]
        if call.headers.get("if-match", f'"{etag}"') != f'"{etag}"':
            return Answer(412, ERROR % b"PreconditionFailed")
        headers = {"ETag": f'"{etag}"', "Last-Modified": formatdate(self.objects.put_at[call.key], usegmt=True)}
        headers |= self.objects.kept[call.key] | self.told
        if "range" not in call.headers:
            return Answer(200, body, headers)
        first, last = call.headers["range"].removeprefix("bytes=").split("-")
        start, end = (int(first), int(last or len(body)) + 1) if first else (len(body) - int(last), len(body))
        part = body[max(0, start) : end]
        if not part:
            return Answer(416, ERROR % b"InvalidRange", {"Content-Range": f"bytes */{len(body)}"})
        said = f"bytes {max(0, start)}-{max(0, start) + len(part) - 1}/{len(body)}"
        return Answer(206, part, {**headers, "Content-Range": said})

    _HeadObject = _GetObject

    def _CreateMultipartUpload(self, call: Call, query: dict[str, list[str]]) -> Answer:
        upload = f"upload-{next(self._numbers)}"
        self.uploads[upload] = {}
        self._created[upload] = call.headers
        xml = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        return Answer(body=xml.encode())

    def _UploadPart(self, call: Call, query: dict[str, list[str]]) -> Answer:
        self.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = call.body
        return Answer(headers={"ETag": f'"{self.etag_of(call.body)}"'})

    def _CompleteMultipartUpload(self, call: Call, query: dict[str, list[str]]) -> Answer:
        if refused := self._refused(call):
            return refused
        parts = self.uploads.pop(query["uploadId"][0], None)
        if parts is None:
            return Answer(404, ERROR % b"NoSuchUpload")
        digests = b"".join(hashlib.md5(parts[number]).digest() for number in sorted(parts))
        etag = f"{self.etag_of(digests)}-{len(parts)}"
        body = b"".join(parts[number] for number in sorted(parts))
        self.objects.keep(call.key, (body, etag), self._created[query["uploadId"][0]])
        xml = f"<CompleteMultipartUploadResult><ETag>&quot;{etag}&quot;</ETag></CompleteMultipartUploadResult>"
        return Answer(body=xml.encode())

    def _AbortMultipartUpload(self, call: Call, query: dict[str, list[str]]) -> Answer:
        gone = self.uploads.pop(query["uploadId"][0], None) is None
        return Answer(404, ERROR % b"NoSuchUpload") if gone else Answer(204)

    def _DeleteObject(self, call: Call, query: dict[str, list[str]]) -> Answer:
        if refused := self._refused(call):
            return refused
        self.objects.pop(call.key, None)
        return Answer(204)

    def _ListObjectsV2(self, call: Call, query: dict[str, list[str]]) -> Answer:
        return Answer(body=b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

    def _ListObjectVersions(self, call: Call, query: dict[str, list[str]]) -> Answer:
        return Answer(501, ERROR % b"NotImplemented")

    def _refused(self, call: Call) -> Answer | None:
        """The response if a condition does not hold. Calls are serialized, so that check and write are one step."""
        there = self.objects.get(call.key)
        if call.headers.get("if-none-match") == "*" and there is not None:
            return Answer(412, ERROR % b"PreconditionFailed")
        if "if-match" in call.headers and there is None:
            return Answer(404, ERROR % b"NoSuchKey")
        if "if-match" in call.headers and there is not None and call.headers["if-match"] != f'"{there[1]}"':
            return Answer(412, ERROR % b"PreconditionFailed")
        return None


def _operation(method: str, query: dict[str, list[str]]) -> str:
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if "uploadId" in query:
        return {"PUT": "UploadPart", "DELETE": "AbortMultipartUpload", "GET": "ListParts"}[method]
    if "uploads" in query:
        return "ListMultipartUploads"
    if "versions" in query:
        return "ListObjectVersions"
    if "list-type" in query:
        return "ListObjectsV2"
    return f"{method.capitalize()}Object"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: Else each answer's body waits up to 40 ms until the client has acknowledged its head.
    disable_nagle_algorithm = True
    endpoint: ClassVar[Scripted]

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        key = unquote(parts.path).removeprefix("/bucket/")
        answer = self.endpoint.answer(
            Call(_operation(self.command, query), self.command, self.path, key, headers, body), query
        )
        if answer.drop:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(answer)
        if "Content-Length" in answer.headers:
            self.close_connection = True  # the script announced another length than it sent

    def _write(self, answer: Answer) -> None:
        body = answer.body if answer.cut is None else answer.body[: answer.cut]
        self.close_connection = self.close_connection or len(body) < len(answer.body)
        if not answer.seconds_per_mib:
            self.wfile.write(body)
            return
        for start in range(0, len(body), 1 << 16):
            self.wfile.write(body[start : start + (1 << 16)])
            time.sleep(answer.seconds_per_mib / 16)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: tests close connections in the middle of a response."""


@contextmanager
def scripted(tls: tuple[Path, Path] | None = None) -> Iterator[tuple[Scripted, Engine]]:
    """Run the endpoint with one bucket named `bucket`; with a certificate and its key, over https."""
    endpoint = Scripted()
    handler = type("Handler", (_Handler,), {"endpoint": endpoint})
    with _Server((HOST, 0), handler) as server:
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield (
            endpoint,
            Engine("scripted", f"{'https' if tls else 'http'}://{HOST}:{server.server_port}", "id", "hunter2"),
        )
        server.shutdown()
