"""What answers look like: errors to statuses in one table, objects to headers, lists to JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from twisted_storaged import errors
from twisted_storaged.buckets.interface import ObjectInfo
from twisted_storaged.deferreds import ConsumerGone, Gate
from twisted_storaged.web.streaming import StreamingRequest

#: Seconds that a client is told to wait before it tries again.
RETRY_AFTER = 5

_log = Logger()


class Refusal(NamedTuple):
    """How an error is told to the client; without a message, the error's own text is the message."""

    status: int
    message: str = ""
    retry: bool = False


REFUSALS: Mapping[type[BaseException] | None, Refusal] = {
    errors.InvalidKey: Refusal(http.BAD_REQUEST),
    errors.ObjectNotFound: Refusal(http.NOT_FOUND, "not found"),
    errors.BodyStalled: Refusal(http.REQUEST_TIMEOUT, "body stalled"),
    errors.PayloadTooLarge: Refusal(http.REQUEST_ENTITY_TOO_LARGE, "payload too large", retry=True),
    errors.NoFreeSlot: Refusal(http.SERVICE_UNAVAILABLE, "storaged: put concurrency cap reached", retry=True),
}
INTERNAL = Refusal(http.INTERNAL_SERVER_ERROR, "internal")


def answer_failure(failure: Failure, request: StreamingRequest) -> None:
    """End a request whose handling failed. What the table does not know goes to the log, and as `internal` to the
    client; where the answer has begun already, the connection is dropped, so that it cannot look whole."""
    refusal = REFUSALS.get(failure.type, INTERNAL)
    if refusal is INTERNAL and not failure.check(errors.BodyLost, ConsumerGone):
        _log_failure(failure, request)
    if request.startedWriting:
        request.abort()
    elif not request.gone:
        if refusal.retry:
            request.setHeader(b"Retry-After", b"%d" % RETRY_AFTER)
        answer_text(request, refusal.status, refusal.message or str(failure.value))


def answer_text(request: StreamingRequest, status: int, line: str) -> None:
    """Answer with one line of text."""
    _answer(request, status, b"text/plain; charset=utf-8", line.encode("utf-8") + b"\n")


def answer_json(request: StreamingRequest, document: object) -> None:
    """Answer 200 with a JSON document."""
    _answer(request, http.OK, b"application/json", _json(document))


def answer_nothing(request: StreamingRequest) -> None:
    """Answer 204."""
    if not request.gone:
        request.setResponseCode(http.NO_CONTENT)
        request.finish()


def set_object_headers(request: StreamingRequest, info: ObjectInfo) -> None:
    """Say what an object is, ahead of its bytes."""
    request.setHeader(b"Content-Type", b"application/octet-stream")
    request.setHeader(b"Content-Length", b"%d" % info.size)
    request.setHeader(b"ETag", b'"%s"' % info.etag.encode("ascii"))
    request.setHeader(b"Last-Modified", http.datetimeToString(info.last_modified))


async def answer_list(request: StreamingRequest, prefix: str, pages: AsyncIterator[list[ObjectInfo]]) -> None:
    """Answer with the JSON of a list, page by page, as fast as the client takes it."""
    gate = Gate()
    request.setHeader(b"Content-Type", b"application/json")
    request.registerProducer(gate, True)
    try:
        lead = b'{"prefix":%s,"objects":[' % _json(prefix)
        async for page in pages:
            if page:
                request.write(lead + b",".join(_json(_listed(info)) for info in page))
                await gate.opened()
                lead = b","
        request.write(b"]}" if lead == b"," else lead + b"]}")
    finally:
        request.unregisterProducer()
    if not request.gone:
        request.finish()


def _listed(info: ObjectInfo) -> dict[str, object]:
    changed = datetime.fromtimestamp(int(info.last_modified), UTC)
    stamp = changed.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"key": info.key, "size": info.size, "etag": info.etag, "last_modified": stamp}


def _answer(request: StreamingRequest, status: int, content_type: bytes, body: bytes) -> None:
    if request.gone:
        return
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", content_type)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    request.write(body)
    request.finish()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _log_failure(failure: Failure, request: StreamingRequest) -> None:
    what = f"{request.method!r} {request.path!r}"
    if failure.check(errors.StorageError):
        _log.error("{what}: {failure.type.__name__}: {failure.value}", what=what, failure=failure)
    else:
        _log.failure("{what} met a defect", failure=failure, what=what)
