"""What S3's responses mean: success, an error of storage, a reason to try again, or proof that a write was carried out.

The reply to a write is lost if none comes, if it is a 500, 502 or 504, or if it claims success without what S3's
documentation says it holds, as a proxy's page does. Whether the write was carried out is then unknown. An object with
equal bytes proves nothing, since another client may have written them. What does prove it depends on the operation:

    PutObject                 carried out: the object's metadata has the random id of this write
                              not carried out, if conditional: an object that contradicts the condition was there
                              before the write began
    CompleteMultipartUpload   carried out: as for PutObject; CreateMultipartUpload was given the id
                              not carried out: the upload existed until it was aborted
    DeleteObject              carried out, unless conditional: there is no object, or one that was put after the
                              delete began

Anything else raises `AmbiguousFailure`. UploadPart, CreateMultipartUpload and AbortMultipartUpload may safely be
carried out twice. Lists are parsed by `protocol.s3_xml`.
"""

from __future__ import annotations

import random
import re
import secrets
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import lru_cache
from typing import Any, Final
from xml.etree import ElementTree

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from twisted_storaged.buckets.s3.meters import Outcome, S3Meters
from twisted_storaged.errors import (
    BucketFailed,
    BucketOverloaded,
    BucketTimedOut,
    BucketUnreachable,
    ObjectNotFound,
    OutcomeUnknown,
    OutOfSpace,
    PreconditionFailed,
    StorageError,
    WriteConflict,
)
from twisted_storaged.model import ByteRange, ObjectInfo, Span
from twisted_storaged.protocol.http1 import (
    AmbiguousFailure,
    ConnectionFailed,
    Response,
    TimedOut,
    UnexpectedResponse,
    parse_length,
)
from twisted_storaged.protocol.metadata import WRITE_ID_NAME, metadata_of_response
from twisted_storaged.runtime.files import disk_failure

CHECKSUM: Final = "x-amz-checksum-crc32c"
#: Seconds by which the clocks of one engine's hosts may differ.
SKEW = 2.0
#: Attempts of one request, including the first; and the longest pause between two, in seconds.
TRIES = 3
LONGEST_PAUSE = 20.0

_TRY_AGAIN_STATUS = {429, 500, 502, 503, 504}
_MAYBE_DONE_STATUS = {500, 502, 504}
#: S3's error codes for too many requests.
_BUSY_CODES = {
    "BandwidthLimitExceeded",
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}
#: Codes of engines that have quotas, such as Ceph, or disks, such as MinIO.
_FULL_CODES = {"QuotaExceeded", "XMinioStorageFull"}
_TRY_AGAIN_CODES = {"PriorRequestNotComplete", "RequestTimeout", "RequestTimeoutException", *_BUSY_CODES}

#: Outcomes by the status of a response, and by the kind of a failure without one: the first that fits.
_OUTCOMES: Mapping[int, Outcome] = {
    401: "denied",
    403: "denied",
    404: "not_found",
    409: "conflict",
    412: "precondition_failed",
    416: "range_not_satisfiable",
    429: "busy",
    503: "busy",
}
_OUTCOMES_OF_FAILURES: Sequence[tuple[type[Exception], Outcome]] = (
    (TimedOut, "timed_out"),
    (AmbiguousFailure, "unknown"),
    (UnexpectedResponse, "error"),
    (ConnectionFailed, "unreachable"),
    (CancelledError, "cancelled"),
)

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})")
_ACTUAL_SIZE = re.compile(rb"<ActualObjectSize>([0-9]{1,18})</ActualObjectSize>")

#: One attempt of a request, which ends at the given time of the clock.
Attempt = Callable[[float], Awaitable[Response]]


class AttemptState(Enum):
    """What is known of earlier attempts, if none is known to have been carried out."""

    UNKNOWN = "unknown"
    NOT_DONE = "not carried out"


#: Asks S3, until the given time, whether an earlier attempt was carried out. Returns a response that proves it, or what
#: else is known.
ConfirmApplied = Callable[[float], Awaitable[Response | AttemptState]]


class RequestFailed(Exception):
    """S3's final answer to a request is an error.

    Attributes:
        response: the answer.
        again: whether an earlier attempt may have been carried out.
    """

    def __init__(self, operation: str, response: Response, again: bool) -> None:
        super().__init__(f"{operation}: {response}")
        self.response = response
        self.again = again


class Retries:
    """Repeats a request as boto3's `standard` retries do, all attempts together within `deadline` seconds.

    If an earlier attempt may have been carried out, and repeating it is not the same as doing it once, S3 is asked
    first. https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html

    Attributes:
        meters: count requests and their retries.
    """

    def __init__(self, clock: Any, deadline: float, meters: S3Meters | None = None) -> None:
        self.clock = clock
        self.deadline = deadline
        self.meters = S3Meters() if meters is None else meters

    def ends(self) -> float:
        """The time by which a request that begins now must be over."""
        return float(self.clock.seconds()) + self.deadline

    async def run(
        self,
        operation: str,
        attempt: Attempt,
        confirm_applied: ConfirmApplied | None = None,
        decisive: bool = False,
        tries: int = TRIES,
    ) -> Response:
        """Make a request, repeat it if necessary, up to `tries` attempts in all, and return the response.

        If the request is `decisive`, its failure is raised as such only if no attempt was carried out: the refusal of
        the last attempt may be the effect of an earlier one whose reply was lost.

        Raises:
            RequestFailed: the response is an error.
            ConnectionFailed: there was no response; TimedOut, if not in time; AmbiguousFailure, if it is unknown
                whether a decisive request was carried out.
        """
        began = self.clock.seconds()
        ends, again = began + self.deadline, False
        try:
            for left in reversed(range(tries)):
                failure: Exception
                try:
                    response = await attempt(ends)
                except ConnectionFailed as error:
                    again, passing, failure = again or error.sent, True, error
                else:
                    response.again = again
                    if response.status < 300:
                        break
                    again = again or response.status in _MAYBE_DONE_STATUS
                    passing = response.status in _TRY_AGAIN_STATUS or response.code in _TRY_AGAIN_CODES
                    failure = RequestFailed(operation, response, again)
                if self.clock.seconds() >= ends:
                    raise TimedOut(f"{operation}: not done in {self.deadline:.0f} s") from failure
                found = AttemptState.UNKNOWN if confirm_applied is None or not again else await confirm_applied(ends)
                if isinstance(found, Response):
                    response = found
                    break
                if not left or not passing:
                    known = not again or found is AttemptState.NOT_DONE
                    raise failure if known or not decisive else AmbiguousFailure(operation, failure)
                self.meters.retried(operation, outcome_of(failure))
                await deferLater(self.clock, min(_pause(tries - left), max(0.0, ends - self.clock.seconds())))
        except Exception as error:
            self._count(operation, outcome_of(error), began)
            raise
        self._count(operation, "ok", began)
        return response

    def _count(self, operation: str, outcome: Outcome, began: float) -> None:
        meters, seconds = self.meters, self.clock.seconds() - began
        meters.requests.values[meters.bucket, operation, outcome] += 1
        cells = meters.seconds.cells[meters.bucket, operation]
        cells[bisect_left(meters.seconds.bounds, seconds)] += 1
        cells[-1] += seconds


def _pause(tries: int) -> float:
    """Seconds before the next attempt, after so many: exponential, between half and all of it at random."""
    # At least half, so that an outage of a moment does not use up all attempts.
    return min(random.uniform(0.5, 1.0) * 2.0 ** (tries - 1), LONGEST_PAUSE)  # noqa: S311 (no secret)


class storage_errors(AbstractContextManager[None]):  # noqa: N801 (it is used as contextlib's functions are)
    """Turns the errors of requests to S3 into errors of storage, for a call that `writes`, maybe on a condition.

    Raises:
        ObjectNotFound: a read, and S3 has no such key. A missing bucket is a BucketFailed.
        PreconditionFailed: the condition did not hold, or there was no object to compare with.
        WriteConflict: another write of the key was in progress.
        OutcomeUnknown: the reply was lost, and nothing proves whether the write was carried out.
        BucketTimedOut: there was no response in time.
        BucketUnreachable: there was no response.
        BucketOverloaded: S3 asks for fewer requests.
        OutOfSpace: S3 is full, or a quota is exhausted; or a disk of this host is.
        BucketFailed: anything else that S3 has answered.
        BucketError: a disk of this host failed, which has the journal.
    """

    def __init__(self, writes: bool = False, conditional: bool = False) -> None:
        self._writes = writes
        self._conditional = conditional

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RequestFailed):
            raise _storage_error(error, self._writes, self._conditional) from error
        # Before ConnectionFailed, of which this and AmbiguousFailure are kinds.
        if isinstance(error, TimedOut):
            raise BucketTimedOut(str(error)) from error
        if isinstance(error, AmbiguousFailure):
            raise OutcomeUnknown(str(error)) from error
        if isinstance(error, ConnectionFailed):
            raise BucketUnreachable(f"{type(error).__name__}: {error}") from error
        if isinstance(error, OSError):
            raise disk_failure(error, "cannot write the upload journal") from error


def _storage_error(error: RequestFailed, writes: bool, conditional: bool) -> StorageError:
    response = error.response
    # The response to a HEAD has no body, and so no code.
    missing = response.status == 404 and response.code in ("NoSuchKey", "NotFound", "")
    if conditional and (missing or response.status == 412):
        return PreconditionFailed(str(error))
    if conditional and response.code == "ConditionalRequestConflict":
        return WriteConflict(str(error))
    if response.status in (429, 503) or response.code in _BUSY_CODES:
        return BucketOverloaded(str(error))
    # Clients rely on it that nothing was changed.
    if (response.status == 507 or response.code in _FULL_CODES) and not error.again:
        return OutOfSpace(str(error))
    return ObjectNotFound(str(error)) if missing and not writes else BucketFailed(str(error))


def outcome_of(error: Exception) -> Outcome:
    """What the failure of a request, or of one attempt, means, for metrics."""
    if isinstance(error, RequestFailed):
        if error.response.code in _BUSY_CODES:
            return "busy"
        # A missing bucket is no answer about an object.
        return "error" if error.response.code == "NoSuchBucket" else _OUTCOMES.get(error.response.status, "error")
    return next((outcome for kind, outcome in _OUTCOMES_OF_FAILURES if isinstance(error, kind)), "error")


def etag_of(response: Response) -> str:
    """The ETag, without quotes. Raises BucketFailed if there is none."""
    etag = response.headers.get("etag", "").strip('"')
    if not etag:
        raise BucketFailed("the engine gave no ETag")
    return etag


def info_of(response: Response, key: str) -> ObjectInfo:
    """The object that the head of a GetObject or HeadObject response describes. Raises BucketFailed if it does not."""
    try:
        size, modified = parse_length(response.headers["content-length"]), _http_date(response.headers["last-modified"])
    except (KeyError, ValueError, OverflowError) as error:
        raise BucketFailed(f"the engine's answer does not say what {key!r} is: {error}") from error
    return ObjectInfo(key, size, etag_of(response), modified, *metadata_of_response(response.headers))


def opened(response: Response, key: str, wanted: ByteRange | None) -> tuple[ObjectInfo, Span]:
    """The whole object that a GetObject response belongs to, and the span of it that is the body.

    Raises:
        RangeNotSatisfiable: the engine sends the whole object for a range that it has nothing of.
        BucketFailed: the span is not what was wanted.
    """
    info = info_of(response, key)
    if wanted is None:
        return info, Span(0, info.size)
    # Content-Range counts, not the status: rclone answers a range with 200.
    told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    first, last, size = map(int, told.groups()) if told else (0, info.size - 1, info.size)
    span = wanted.within(size)
    if span != (first, last + 1) or info.size != last + 1 - first:
        raise BucketFailed(f"the engine gave bytes {first}-{last}/{size} of {key!r} for {wanted}")
    return info._replace(size=size), span


def size_from_response(response: Response) -> int | None:
    """The size of the object according to a 416 response, if it has one."""
    told = _UNSATISFIED.fullmatch(response.headers.get("content-range", "")) or _ACTUAL_SIZE.search(response.body)
    return int(told[1]) if told else None


@lru_cache(maxsize=1024)
def _http_date(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()


def new_write_id() -> str:
    """An id for one write, 128 random bits, which no other client can have written."""
    return secrets.token_hex(16)


def is_own(found: Response, sent: Mapping[str, str]) -> bool:
    """Whether a found object is the one that was put with the headers `sent`, by its write id."""
    write_id = sent.get(WRITE_ID_NAME)
    return write_id is not None and found.status == 200 and found.headers.get(WRITE_ID_NAME) == write_id


def was_there_before(found: Response, seconds: float) -> bool:
    """Whether an object was certainly there, as it is now, `seconds` ago by the engine's own clock."""
    age = _age(found)
    # S3 dates an object of several parts, whose ETag has a hyphen, to the creation of the upload.
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html#SysMetadata
    return age is not None and "-" not in found.headers.get("etag", "-") and age > seconds + SKEW


def was_put_since(found: Response, seconds: float) -> bool:
    """Whether an object was put in the last `seconds`, by the engine's own clock."""
    age = _age(found)
    return age is not None and age + SKEW < seconds


def _age(found: Response) -> float | None:
    """Seconds from when the object was put until the engine looked at it, in whole seconds; None if unknown."""
    try:
        looked, put = (parsedate_to_datetime(found.headers[name]) for name in ("date", "last-modified"))
        return (looked - put).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def require_success(operation: str, sent: Mapping[str, str], response: Response) -> None:
    """Check that a response with a status of success holds what S3 documents; `sent` are the request's headers.

    Raises:
        UnexpectedResponse: it does not, so that it is unknown whether the request was carried out.
    """
    lacks = _LACKS.get(operation)
    if response.status < 300 and lacks is not None and (reason := lacks(sent, response)):
        raise UnexpectedResponse(f"{operation}: an answer {response} {reason}")


def _lacks_etag(sent: Mapping[str, str], response: Response) -> str:
    """What a response to PutObject or UploadPart lacks: the ETag, or the right checksum, if the engine keeps one."""
    # It is not compared with the MD5 of the body: computing that costs more than the rest of a PUT, and the ETag of an
    # encrypted object only looks like an MD5.
    if not response.headers.get("etag", "").strip('"'):
        return "has no ETag"
    told, checksum = response.headers.get(CHECKSUM), sent.get(CHECKSUM)
    if told and checksum and told != checksum:
        return f"tells the checksum {told}, where {checksum} was sent"
    return ""


def _lacks_upload_id(_: Mapping[str, str], response: Response) -> str:
    # The name of the root is not compared: rclone's is another.
    root = _xml_root_or_none(response)
    return "" if root is not None and text(root, "UploadId") else "has no UploadId"


def _lacks_completion(_: Mapping[str, str], response: Response) -> str:
    # It may hold an error despite its status of success, and Ceph's has no ETag, so that only the root's name counts.
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
    root = _xml_root_or_none(response)
    is_result = root is not None and _local_name(root) == "CompleteMultipartUploadResult"
    return "" if is_result else "is no CompleteMultipartUploadResult"


def _lacks_emptiness(_: Mapping[str, str], response: Response) -> str:
    # S3's response has no body: one with a body may be a proxy's page.
    return "is not empty" if response.body.strip() else ""


_LACKS: Mapping[str, Callable[[Mapping[str, str], Response], str]] = {
    "AbortMultipartUpload": _lacks_emptiness,
    "CompleteMultipartUpload": _lacks_completion,
    "CreateMultipartUpload": _lacks_upload_id,
    "DeleteObject": _lacks_emptiness,
    "PutObject": _lacks_etag,
    "UploadPart": _lacks_etag,
}


def xml_root(response: Response) -> ElementTree.Element:
    """The root element of a response's body. Raises ConnectionFailed if it is not XML."""
    try:
        # S3 sends white space before the XML while it works on a request.
        return ElementTree.fromstring(response.body.strip())  # noqa: S314 (from our S3, and expat refuses entity bombs)
    except ElementTree.ParseError as error:
        raise ConnectionFailed(f"not XML: {error}") from error


def _xml_root_or_none(response: Response) -> ElementTree.Element | None:
    try:
        return xml_root(response)
    except ConnectionFailed:
        return None


def children(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """The children with this name, in any namespace."""
    return [child for child in root if _local_name(child) == name]


def text(root: ElementTree.Element, name: str) -> str:
    """The text of the first child with this name, in any namespace; empty if there is none."""
    return next((child.text or "" for child in root if _local_name(child) == name), "").strip()


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
