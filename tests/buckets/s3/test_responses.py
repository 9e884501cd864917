"""What answers of S3, and the lack of one, are called in storage terms."""

from __future__ import annotations

import pytest

from twisted_storaged.buckets.s3.responses import info_of, opened, size_from_response, storage_errors
from twisted_storaged.buckets.s3.retries import RequestFailed
from twisted_storaged.errors import (
    BucketBusy,
    BucketError,
    BucketTimedOut,
    BucketUnreachable,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    WriteConflict,
)
from twisted_storaged.model import ByteRange
from twisted_storaged.protocol.http1 import ConnectionFailed, Response, TimedOut


def refused(status: int, code: str = "") -> RequestFailed:
    answer = Response(status, {})
    answer.body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    return RequestFailed("GetObject", answer, again=False)


class StorageErrorsTests:
    """Each trouble has its own error, as each is told in its own way to the client."""

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (refused(503, "SlowDown"), BucketBusy),
            (refused(503), BucketBusy),
            (refused(429), BucketBusy),
            (refused(400, "RequestLimitExceeded"), BucketBusy),
            (refused(500, "InternalError"), BucketError),
            (refused(403, "AccessDenied"), BucketError),
            (refused(404, "NoSuchBucket"), BucketError),
            (refused(404, "NoSuchKey"), ObjectNotFound),
            (ConnectionFailed("no connection to S3"), BucketUnreachable),
            (ConnectionResetError("gone"), BucketUnreachable),
            (TimedOut("not in time"), BucketTimedOut),
        ],
    )
    def test_of_a_read(self, raised: Exception, expected: type[StorageError]) -> None:
        """An S3 that asks to slow down, one that is away, one that is late and one that is broken are four things."""
        with pytest.raises(expected) as caught, storage_errors():
            raise raised
        assert type(caught.value) is expected

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (refused(412, "PreconditionFailed"), PreconditionFailed),
            (refused(404, "NoSuchKey"), PreconditionFailed),
            (refused(409, "ConditionalRequestConflict"), WriteConflict),
            (refused(503, "SlowDown"), BucketBusy),
        ],
    )
    def test_of_a_conditional_write(self, raised: Exception, expected: type[StorageError]) -> None:
        """What a condition may come to is told apart from trouble."""
        with pytest.raises(expected) as caught, storage_errors(writes=True, conditional=True):
            raise raised
        assert type(caught.value) is expected


SAID = {"content-length": "3", "etag": '"e"', "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
DIGITS = "9" * 5000


class NonsenseTests:
    """Heads that cannot be: trouble of S3's, and no defect of ours."""

    @pytest.mark.parametrize(
        "said",
        [
            {"content-length": "-5"},
            {"content-length": DIGITS},
            {"last-modified": "Fri, 31 Dec 9999 23:59:59 +9999"},
            {"last-modified": f"Fri, 31 Dec {DIGITS} 23:59:59 GMT"},
            {"last-modified": ""},
            {"etag": '""'},
        ],
    )
    def test_of_an_object(self, said: dict[str, str]) -> None:
        """A size, a date or an ETag that is none."""
        with pytest.raises(BucketError):
            info_of(Response(200, {**SAID, **said}), "k")

    def test_of_a_range(self) -> None:
        """Numbers of more digits than int() takes."""
        answer = Response(206, {**SAID, "content-range": f"bytes {DIGITS}-5/7"})
        with pytest.raises(BucketError):
            opened(answer, "k", ByteRange(1, 2))
        assert size_from_response(Response(416, {"content-range": f"bytes */{DIGITS}"})) is None
