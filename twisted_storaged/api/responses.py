"""Responses: the table from errors to statuses, short texts and documents, and the headers of objects.

Lists are in `listing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

# By name, since an attribute of this module is looked up slowly, past its deprecated names.
from twisted.web.http import OK, PARTIAL_CONTENT, datetimeToString

from twisted_storaged import errors
from twisted_storaged.errors import in_words
from twisted_storaged.model import ObjectInfo, Span
from twisted_storaged.protocol.http_fields import content_range, preference, repr_digest
from twisted_storaged.protocol.metadata import metadata_headers
from twisted_storaged.runtime.concurrency import ConsumerGone, forget_frames
from twisted_storaged.server.request import StreamingRequest

#: The value of Retry-After, in seconds, unless the error has its own.
RETRY_AFTER = 5

Header = tuple[bytes, bytes]

#: The forms of errors: one line, or a document. RFC 9457
TEXT, PROBLEM = "text/plain", "application/problem+json"
#: What the type of an error begins with, as a URN.
PROBLEM_TYPE = "urn:storaged:error:"

_TEXT = (b"Content-Type", b"text/plain; charset=utf-8")
_PROBLEM = (b"Content-Type", PROBLEM.encode("ascii"))
_JSON = (b"Content-Type", b"application/json")
_RANGES = (b"Accept-Ranges", b"bytes")
#: A response that must not be stored by caches: it says what was true for a moment. RFC 9111, 5.2.2.5
NOT_CACHED = (b"Cache-Control", b"no-store")
#: A response whose form depends on what the client accepts. RFC 9110, 12.5.5
BY_ACCEPT = (b"Vary", b"Accept")

_log = Logger()
_json = msgspec.json.Encoder()


class _Stored(msgspec.Struct, gc=False):
    """The body of the response to a PUT, with its fields in the order of the wire contract."""

    status: str
    key: str
    size: int
    etag: str


class Problem(msgspec.Struct, omit_defaults=True, gc=False):
    """An error as a document, with its fields in the order of the wire contract. RFC 9457.

    Attributes:
        type: a URN for the kind of the error.
        title: the same in words.
        detail: the line of the form in text.
        retry_after: seconds after which the client may try again, as in Retry-After.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    retry_after: int | None = None


class ErrorResponse(NamedTuple):
    """The response to an error.

    Attributes:
        line: what the client is told; empty for the text of the error itself.
        retry: whether Retry-After is sent.
    """

    status: int
    line: str = ""
    retry: bool = False


ERROR_RESPONSES: Mapping[type | None, ErrorResponse] = {
    errors.UnknownPath: ErrorResponse(http.NOT_FOUND, "not found"),
    errors.MethodNotAllowed: ErrorResponse(http.NOT_ALLOWED, "method not allowed"),
    errors.InvalidKey: ErrorResponse(http.BAD_REQUEST),
    errors.InvalidRequest: ErrorResponse(http.BAD_REQUEST),
    errors.DigestMismatch: ErrorResponse(http.BAD_REQUEST),
    errors.CrossSiteRequest: ErrorResponse(http.FORBIDDEN),
    errors.UnknownBucket: ErrorResponse(http.NOT_FOUND, "no such bucket"),
    errors.ObjectNotFound: ErrorResponse(http.NOT_FOUND, "not found"),
    errors.BodyStalled: ErrorResponse(http.REQUEST_TIMEOUT, "body stalled"),
    errors.PayloadTooLarge: ErrorResponse(http.REQUEST_ENTITY_TOO_LARGE, "payload too large", retry=True),
    errors.PreconditionFailed: ErrorResponse(http.PRECONDITION_FAILED, "precondition failed"),
    errors.RangeNotSatisfiable: ErrorResponse(http.REQUESTED_RANGE_NOT_SATISFIABLE, "range not satisfiable"),
    errors.WriteConflict: ErrorResponse(http.CONFLICT, "another conditional write is under way", retry=True),
    errors.ConditionUnsupported: ErrorResponse(http.NOT_IMPLEMENTED, "conditional write not supported by this bucket"),
    errors.BucketFailed: ErrorResponse(http.BAD_GATEWAY, "bucket failed"),
    errors.BucketTimedOut: ErrorResponse(http.GATEWAY_TIMEOUT, "bucket timed out", retry=True),
    errors.BucketUnreachable: ErrorResponse(http.BAD_GATEWAY, "bucket unreachable", retry=True),
    errors.DamagedAnswer: ErrorResponse(http.BAD_GATEWAY, "object is damaged"),
    errors.UnverifiableObject: ErrorResponse(http.BAD_GATEWAY, "object cannot be verified"),
    errors.BucketOverloaded: ErrorResponse(http.SERVICE_UNAVAILABLE, "bucket busy", retry=True),
    errors.BucketBusy: ErrorResponse(http.SERVICE_UNAVAILABLE, "bucket busy", retry=True),
    errors.WritesSuspended: ErrorResponse(http.SERVICE_UNAVAILABLE, "bucket takes no writes: see the log", retry=True),
    # Without Retry-After, since the object must be read before a retry.
    errors.OutcomeUnknown: ErrorResponse(http.GATEWAY_TIMEOUT, "outcome unknown: read the object before trying again"),
    errors.OutOfSpace: ErrorResponse(http.INSUFFICIENT_STORAGE_SPACE, "out of space"),
    errors.SupervisorSilent: ErrorResponse(http.SERVICE_UNAVAILABLE, "the other workers cannot be asked", retry=True),
    errors.TooManyPages: ErrorResponse(http.SERVICE_UNAVAILABLE, "too many pages are open", retry=True),
    errors.NoFreeSlot: ErrorResponse(http.SERVICE_UNAVAILABLE, "storaged: put concurrency cap reached", retry=True),
}
INTERNAL_ERROR = ErrorResponse(http.INTERNAL_SERVER_ERROR, "internal")


def send_failure(failure: Failure, request: StreamingRequest) -> None:
    """End a request whose handler failed: with the response to its error, or `internal` if the table has none.

    If the response has begun, the connection is dropped, so that the client cannot take it for complete.
    """
    name = request.reason = type(failure.value).__name__
    response = ERROR_RESPONSES.get(failure.type, INTERNAL_ERROR)
    # The client is not told the cause of a BucketError, so that the log must have it.
    if failure.check(errors.BucketError) or (
        # A client that disconnects is no error of ours.
        response is INTERNAL_ERROR and not failure.check(errors.BodyLost, ConsumerGone)
    ):
        _log_failure(failure, request)
    if request.startedWriting:
        request.cut(f"S3 {name}" if failure.check(errors.BucketFailed) else name)
    elif not request.gone:
        send_error(request, failure.value)
        request.finish()
    # Its frames refer to the request and its buffers, which would stay until the garbage collector runs.
    forget_frames(failure.value)


def send_error(request: StreamingRequest, error: BaseException | None) -> None:
    """Send the response to an error, in the form that the client accepts."""
    response = ERROR_RESPONSES.get(type(error), INTERNAL_ERROR)
    line = response.line or str(error)
    headers = [NOT_CACHED, BY_ACCEPT]
    retry_after = None
    if response.retry:
        retry_after = error.retry_after if isinstance(error, errors.NoFreeSlot) else RETRY_AFTER
        headers.append((b"Retry-After", b"%d" % retry_after))
    if isinstance(error, errors.RangeNotSatisfiable):
        # RFC 9110, 15.5.17: so the client learns the size.
        headers.append((b"Content-Range", b"bytes */%d" % error.size))
    elif isinstance(error, errors.MethodNotAllowed):
        headers.append((b"Allow", b", ".join(error.allowed)))
    if preference(request, (TEXT, PROBLEM)) == TEXT:
        _respond(request, response.status, [_TEXT, *headers], line.encode("utf-8") + b"\n")
        return
    words = "internal" if response is INTERNAL_ERROR else in_words(type(error))
    problem = Problem(
        PROBLEM_TYPE + words.replace(" ", "-"), words.capitalize(), response.status, line, request.id, retry_after
    )
    _respond(request, response.status, [_PROBLEM, *headers], _json.encode(problem))


def send_json(request: StreamingRequest, document: object, status: int = OK, headers: Iterable[Header] = ()) -> None:
    """Send a JSON document on what is the case at this moment."""
    _respond(request, status, [_JSON, NOT_CACHED, *headers], _json.encode(document))


def send_stored(request: StreamingRequest, info: ObjectInfo, headers: Iterable[Header]) -> None:
    """Send the response to a PUT that has stored an object."""
    _respond(request, OK, [_JSON, *headers], _json.encode(_Stored("ok", info.key, info.size, info.etag)))


def send_empty(request: StreamingRequest, status: int = http.NO_CONTENT, headers: Iterable[Header] = ()) -> None:
    """Send a response without a body."""
    request.start_response(status, headers)


def send_not_modified(request: StreamingRequest, info: ObjectInfo) -> None:
    """Send a 304 with the fields that update a cache. RFC 9110, 15.4.5."""
    cached = [(b"Cache-Control", value.encode("latin-1")) for name, value in info.metadata if name == "cache-control"]
    send_empty(request, http.NOT_MODIFIED, [*_validators(info), *cached])


def start_object_response(
    request: StreamingRequest, info: ObjectInfo, span: Span | None, algorithm: str | None
) -> None:
    """Send the head of a response with an object, or with `span` of it, and with its digest by `algorithm` if known."""
    headers = [*metadata_headers(info.metadata), *_validators(info), _RANGES]
    if algorithm is not None:
        headers += repr_digest(algorithm, info.digests)
    if span is None:
        request.start_response(OK, headers, info.size)
    else:
        headers.append((b"Content-Range", content_range(span, info.size)))
        request.start_response(PARTIAL_CONTENT, headers, span.end - span.start)


def _validators(info: ObjectInfo) -> list[Header]:
    etag = b'"%s"' % info.etag.encode("latin-1")
    return [(b"ETag", etag), (b"Last-Modified", _http_date(info.last_modified))]


def _respond(request: StreamingRequest, status: int, headers: Iterable[Header], body: bytes) -> None:
    request.start_response(status, headers, len(body))
    if request.method != b"HEAD":  # which gets the length only
        request.write(body)


@lru_cache(maxsize=256)
def _http_date(seconds: float) -> bytes:
    date: bytes = datetimeToString(seconds)
    return date


def _log_failure(failure: Failure, request: StreamingRequest) -> None:
    what = request.description
    if failure.check(errors.StorageError):
        # Its text names the cause. Only an unexpected error needs a traceback.
        _log.error("{what}: {failure.type.__name__}: {failure.value}", what=what, failure=failure)
    else:
        _log.failure("unexpected error while handling {what}", failure=failure, what=what)
