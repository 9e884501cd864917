"""What answers of S3 mean, in storage terms: objects, ranges of them, and errors. Lists are in `listing`."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from email.utils import parsedate_to_datetime
from functools import lru_cache

from twisted_storaged.buckets.s3.retries import RequestFailed, is_busy
from twisted_storaged.errors import (
    BucketBusy,
    BucketError,
    BucketTimedOut,
    BucketUnreachable,
    ObjectNotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StorageError,
    WriteConflict,
)
from twisted_storaged.model import ByteRange, ObjectInfo, Span
from twisted_storaged.protocol.http1 import AmbiguousFailure, ConnectionFailed, Response, TimedOut, parse_length
from twisted_storaged.protocol.metadata import metadata_of_response

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})")
_ACTUAL_SIZE = re.compile(rb"<ActualObjectSize>([0-9]{1,18})</ActualObjectSize>")


class storage_errors(AbstractContextManager[None]):  # noqa: N801 (it is used as contextlib's functions are)
    """Turn what the data plane raises into errors of storage, for a call that `writes`, maybe on a condition, or reads.

    Raises:
        ObjectNotFound: S3 says that there is no such key, of a read. That there is no such bucket is trouble.
        PreconditionFailed: the condition did not hold; also, there was no object to hold it against.
        WriteConflict: another write of the key was under way.
        OutcomeUnknown: the reply was lost, and nothing proves what was done.
        BucketTimedOut: there was no answer in time.
        BucketUnreachable: there was no answer.
        BucketBusy: S3 asks to slow down.
        BucketError: anything else, with its cause.
    """

    def __init__(self, writes: bool = False, conditional: bool = False) -> None:
        self._writes = writes
        self._conditional = conditional

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RequestFailed):
            raise _meaning(error, error.response, self._writes, self._conditional) from error
        if isinstance(error, TimedOut):
            raise BucketTimedOut(str(error)) from error
        if isinstance(error, AmbiguousFailure):
            raise OutcomeUnknown(str(error)) from error
        if isinstance(error, (ConnectionFailed, OSError)):
            raise BucketUnreachable(f"{type(error).__name__}: {error}") from error


def _meaning(error: Exception, response: Response, writes: bool, conditional: bool) -> StorageError:
    missing = response.status == 404 and response.code in ("NoSuchKey", "NotFound", "")
    if conditional and (missing or response.status == 412):
        return PreconditionFailed(str(error))
    if conditional and response.code == "ConditionalRequestConflict":
        return WriteConflict(str(error))
    if is_busy(response):
        return BucketBusy(str(error))
    return ObjectNotFound(str(error)) if missing and not writes else BucketError(str(error))


def etag_of(response: Response) -> str:
    """The ETag, without quotes. Raises BucketError where there is none."""
    etag = response.headers.get("etag", "").strip('"')
    if not etag:
        raise BucketError("the engine gave no ETag")
    return etag


def info_of(response: Response, key: str) -> ObjectInfo:
    """What the head of a GetObject's answer says of the object. Raises BucketError where it does not say it."""
    try:
        size, modified = parse_length(response.headers["content-length"]), _http_date(response.headers["last-modified"])
    except (KeyError, ValueError, OverflowError) as error:
        raise BucketError(f"the engine's answer does not say what {key!r} is: {error}") from error
    return ObjectInfo(key, size, etag_of(response), modified, *metadata_of_response(response.headers))


def opened(response: Response, key: str, wanted: ByteRange | None) -> tuple[ObjectInfo, Span]:
    """The whole object that an answer is of, and the span of it that its body is.

    What counts is Content-Range and not the status: rclone answers 200 with one.

    Raises:
        RangeNotSatisfiable: the engine gives the whole object for a range that it has nothing of.
        BucketError: it is not what was wanted.
    """
    info = info_of(response, key)
    if wanted is None:
        return info, Span(0, info.size)
    told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    first, last, size = map(int, told.groups()) if told else (0, info.size - 1, info.size)
    span = wanted.within(size)
    if span != (first, last + 1) or info.size != last + 1 - first:
        raise BucketError(f"the engine gave bytes {first}-{last}/{size} of {key!r} for {wanted}")
    return info._replace(size=size), span


def size_from_response(response: Response) -> int | None:
    """The size of the object in an answer of 416, if it says so."""
    told = _UNSATISFIED.fullmatch(response.headers.get("content-range", "")) or _ACTUAL_SIZE.search(response.body)
    return int(told[1]) if told else None


@lru_cache(maxsize=1024)
def _http_date(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()
