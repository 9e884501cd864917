"""What answers look like: errors to statuses in one table, objects to headers, lists to JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from twisted_storaged import errors
from twisted_storaged.buckets.objects import ObjectInfo
from twisted_storaged.deferreds import ConsumerGone, Gate
from twisted_storaged.transports import flush
from twisted_storaged.web.request import StreamingRequest

#: Seconds that a client is told to wait before it tries again.
RETRY_AFTER = 5

Header = tuple[bytes, bytes]

_TEXT = (b"Content-Type", b"text/plain; charset=utf-8")
_JSON = (b"Content-Type", b"application/json")
_BYTES = (b"Content-Type", b"application/octet-stream")

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
        retry = [(b"Retry-After", b"%d" % RETRY_AFTER)] if refusal.retry else []
        answer_text(request, refusal.status, refusal.message or str(failure.value), retry)


def answer_text(request: StreamingRequest, status: int, line: str, headers: Iterable[Header] = ()) -> None:
    """Answer with one line of text."""
    _answer(request, status, [_TEXT, *headers], line.encode("utf-8") + b"\n")


def answer_json(request: StreamingRequest, document: object) -> None:
    """Answer 200 with a JSON document."""
    _answer(request, http.OK, [_JSON], _json(document))


def answer_nothing(request: StreamingRequest) -> None:
    """Answer 204."""
    if not request.gone:
        request.start_answer(http.NO_CONTENT, ())
        request.finish()


def start_object(request: StreamingRequest, info: ObjectInfo) -> None:
    """Say what an object is, ahead of its bytes."""
    headers = [
        _BYTES,
        (b"ETag", b'"%s"' % info.etag.encode("ascii")),
        (b"Last-Modified", _http_date(info.last_modified)),
    ]
    request.start_answer(http.OK, headers, info.size)


async def answer_list(request: StreamingRequest, prefix: str, pages: AsyncIterator[list[ObjectInfo]]) -> None:
    """Answer with the JSON of a list, page by page, as fast as the client takes it."""
    gate = Gate()
    request.registerProducer(gate, True)
    try:
        lead = b'{"prefix":%s,"objects":[' % _json(prefix)
        async for page in pages:
            if not request.startedWriting:
                request.start_answer(http.OK, [_JSON])
            if page:
                request.write(lead + _json([_listed(info) for info in page])[1:-1])
                await gate.opened()
                lead = b","
        if not request.startedWriting:
            request.start_answer(http.OK, [_JSON])
        request.write(b"]}" if lead == b"," else lead + b"]}")
    finally:
        request.unregisterProducer()
    if not request.gone:
        request.finish()


def _listed(info: ObjectInfo) -> dict[str, object]:
    return {"key": info.key, "size": info.size, "etag": info.etag, "last_modified": _timestamp(int(info.last_modified))}


@lru_cache(maxsize=4096)
def _timestamp(seconds: int) -> str:
    """The time as RFC 3339 has it; objects are often put many at a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _answer(request: StreamingRequest, status: int, headers: Iterable[Header], body: bytes) -> None:
    if request.gone:
        return
    request.start_answer(status, headers, len(body))
    if request.method != b"HEAD":
        request.write(body)
    flush(request.transport)
    request.finish()


@lru_cache(maxsize=256)
def _http_date(seconds: float) -> bytes:
    date: bytes = http.datetimeToString(seconds)
    return date


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _log_failure(failure: Failure, request: StreamingRequest) -> None:
    what = f"{request.method!r} {request.path!r}"
    if failure.check(errors.StorageError):
        _log.error("{what}: {failure.type.__name__}: {failure.value}", what=what, failure=failure)
    else:
        _log.failure("{what} met a defect", failure=failure, what=what)
