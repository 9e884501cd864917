"""What S3's responses mean: errors of storage, another attempt, and proof that a write was carried out."""

from __future__ import annotations

import errno
from collections.abc import Callable
from email.utils import formatdate

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.support import result
from twisted_storaged.buckets.s3 import responses
from twisted_storaged.buckets.s3.responses import (
    SKEW,
    AttemptState,
    ConfirmApplied,
    RequestFailed,
    Retries,
    info_of,
    is_own,
    new_write_id,
    opened,
    size_from_response,
    storage_errors,
    was_put_since,
    was_there_before,
)
from twisted_storaged.errors import (
    BucketError,
    BucketFailed,
    BucketOverloaded,
    BucketTimedOut,
    BucketUnreachable,
    ObjectNotFound,
    OutOfSpace,
    PreconditionFailed,
    StorageError,
    WriteConflict,
)
from twisted_storaged.model import ByteRange
from twisted_storaged.protocol.http1 import (
    AmbiguousFailure,
    ConnectionFailed,
    NotConnected,
    Response,
    TimedOut,
    UnexpectedResponse,
)
from twisted_storaged.protocol.metadata import WRITE_ID_NAME

DEADLINE = 10.0
NOW = 1_700_000_000
SAID = {"content-length": "3", "etag": '"e"', "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
DIGITS = "9" * 5000


def answer(status: int, code: str = "") -> Response:
    made = Response(status, {})
    made.body = f"<Error><Code>{code}</Code></Error>".encode()
    return made


class Tries:
    """Attempts that take some seconds each and end as given, the last of them for ever."""

    def __init__(self, *outcomes: Response | Exception, seconds: float = 0) -> None:
        self.clock = Clock()
        self.retries = Retries(self.clock, DEADLINE)
        self.began: list[float] = []
        self.asked: list[float] = []
        self._outcomes = list(outcomes)
        self._seconds = seconds

    async def attempt(self, ends: float) -> Response:
        assert ends == DEADLINE
        self.began.append(self.clock.seconds())
        self.clock.advance(self._seconds)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run(self, landed: ConfirmApplied | None = None, decisive: bool = False) -> Deferred[Response]:
        """Run all attempts, with no real pauses."""
        running = Deferred.fromCoroutine(self.retries.run("PutObject", self.attempt, landed, decisive))
        while self.clock.getDelayedCalls():
            self.clock.advance(self.clock.getDelayedCalls()[0].getTime() - self.clock.seconds())
        return running

    def looking(self, *found: Response | AttemptState) -> ConfirmApplied:
        """A function that confirms attempts with these results in turn."""
        left = list(found)

        async def landed(ends: float) -> Response | AttemptState:
            assert ends == DEADLINE
            self.asked.append(self.clock.seconds())
            return left.pop(0)

        return landed


@pytest.fixture(autouse=True)
def _whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_pause", float)


class DeadlineTests:
    """The deadline of all attempts."""

    def test_is_over_for_all_tries(self) -> None:
        """The deadline holds for all attempts together; the one during which it passes is the last."""
        tries = Tries(ConnectionFailed("gone"), seconds=6)
        with pytest.raises(TimedOut, match="PutObject: not done in 10 s"):
            result(tries.run(tries.looking(AttemptState.UNKNOWN)))
        assert (tries.began, tries.asked) == ([0, 7], [6])

    def test_an_error_after_it_is_no_other_error(self) -> None:
        """An error after the deadline is a timeout, whatever the response was."""
        tries = Tries(answer(503, "SlowDown"), seconds=11)
        with pytest.raises(TimedOut):
            result(tries.run())

    def test_an_answer_just_in_time_counts(self) -> None:
        """A success counts, even if it comes after the deadline."""
        assert result(Tries(answer(200), seconds=11).run()).status == 200

    def test_no_pause_goes_beyond_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pause ends at the deadline at the latest."""
        monkeypatch.setattr(responses, "_pause", lambda _: 100.0)
        tries = Tries(answer(503))
        with pytest.raises(TimedOut):
            result(tries.run())
        assert tries.began == [0, DEADLINE]

    def test_each_request_has_its_own(self) -> None:
        """The deadline of a request counts from its beginning."""
        tries = Tries(answer(200))
        tries.clock.advance(5)
        assert tries.retries.ends() == 5 + DEADLINE


class LandedTests:
    """Requests that must not be carried out twice."""

    @pytest.mark.parametrize("lost", [ConnectionFailed("gone"), answer(500), answer(502), answer(504)])
    def test_is_looked_for_before_it_is_sent_again(self, lost: Response | Exception) -> None:
        """A request whose reply was lost is not repeated if it was carried out; the proof is its response."""
        tries, found = Tries(lost), answer(200)
        assert result(tries.run(tries.looking(found))) is found
        assert len(tries.began) == 1

    def test_is_sent_again_where_it_is_not_found(self) -> None:
        """A request whose effect is not found is repeated, and looked for after each attempt."""
        tries = Tries(ConnectionFailed("gone"), answer(503), answer(200))
        assert result(tries.run(tries.looking(AttemptState.UNKNOWN, AttemptState.UNKNOWN))).again
        assert (len(tries.began), len(tries.asked)) == (3, 2)

    def test_is_looked_for_after_the_last_try_too(self) -> None:
        """The effect of the last attempt is looked for, too."""
        tries, found = Tries(ConnectionFailed("gone")), answer(200)
        assert result(tries.run(tries.looking(AttemptState.UNKNOWN, AttemptState.UNKNOWN, found))) is found

    def test_is_not_looked_for_where_it_cannot_be(self) -> None:
        """Nothing is looked for if S3 said that it did not carry out the request."""
        tries = Tries(answer(503, "SlowDown"), answer(200))
        assert not result(tries.run(tries.looking())).again


class DecisiveTests:
    """Requests whose refusal may be due to an earlier attempt."""

    @pytest.mark.parametrize("lost", [ConnectionFailed("gone"), answer(500), UnexpectedResponse("hello")])
    def test_a_refusal_after_a_lost_reply_is_undecided(self, lost: Response | Exception) -> None:
        """A refusal after a lost reply is ambiguous if nothing is known of the earlier attempt."""
        for landed in (lambda tries: tries.looking(AttemptState.UNKNOWN, AttemptState.UNKNOWN), lambda _: None):
            tries = Tries(lost, answer(412))
            with pytest.raises(AmbiguousFailure, match="a reply was lost") as raised:
                result(tries.run(landed(tries), decisive=True))
            assert isinstance(raised.value.failure, RequestFailed)

    def test_a_refusal_counts_where_nothing_was_carried_out(self) -> None:
        """A refusal counts if it is known after the last attempt that none was carried out."""
        tries = Tries(ConnectionFailed("gone"), answer(412))
        with pytest.raises(RequestFailed):
            result(tries.run(tries.looking(AttemptState.UNKNOWN, AttemptState.NOT_DONE), decisive=True))
        tries = Tries(ConnectionFailed("gone"), answer(412))
        with pytest.raises(AmbiguousFailure):
            result(tries.run(tries.looking(AttemptState.NOT_DONE, AttemptState.UNKNOWN), decisive=True))

    @pytest.mark.parametrize("passed", [NotConnected("refused"), answer(503, "SlowDown")])
    def test_a_refusal_counts_where_no_reply_was_lost(self, passed: Response | Exception) -> None:
        """A refusal counts if nothing was sent before, or S3 said that it did nothing."""
        tries = Tries(passed, answer(412))
        with pytest.raises(RequestFailed):
            result(tries.run(tries.looking(), decisive=True))


class WhichTests:
    """Which failures are retried."""

    @pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "ExpiredToken", "AccessDenied", "BadDigest"])
    def test_errors_that_do_not_pass_are_not(self, code: str) -> None:
        """Errors that would be the same again are not retried."""
        tries = Tries(answer(403, code))
        with pytest.raises(RequestFailed, match=code):
            result(tries.run())
        assert len(tries.began) == 1

    @pytest.mark.parametrize(
        ("outcome", "kind"),
        [(lambda: answer(503), RequestFailed), (lambda: ConnectionFailed("gone"), ConnectionFailed)],
    )
    def test_so_often_and_not_more(self, outcome: Callable[[], Response | Exception], kind: type[Exception]) -> None:
        """The last of three failures is raised."""
        tries = Tries(outcome())
        with pytest.raises(kind):
            result(tries.run())
        assert tries.began == [0, 1, 3]


def refused(status: int, code: str = "", again: bool = False) -> RequestFailed:
    answer = Response(status, {})
    answer.body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    return RequestFailed("GetObject", answer, again)


class StorageErrorsTests:
    """The errors of storage that failures become."""

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (refused(503, "SlowDown"), BucketOverloaded),
            (refused(503), BucketOverloaded),
            (refused(429), BucketOverloaded),
            (refused(400, "RequestLimitExceeded"), BucketOverloaded),
            (refused(500, "InternalError"), BucketFailed),
            (refused(301, "PermanentRedirect"), BucketFailed),
            (refused(403, "AccessDenied"), BucketFailed),
            (refused(403, "InvalidAccessKeyId"), BucketFailed),
            (refused(404, "NoSuchBucket"), BucketFailed),
            (refused(403, "QuotaExceeded"), OutOfSpace),
            (refused(507, "XMinioStorageFull"), OutOfSpace),
            (refused(507), OutOfSpace),
            (refused(507, again=True), BucketFailed),
            (refused(404, "NoSuchKey"), ObjectNotFound),
            (ConnectionFailed("no connection to S3"), BucketUnreachable),
            (OSError(errno.EIO, "the journal's disk"), BucketError),
            (OSError(errno.ENOSPC, "the journal's disk"), OutOfSpace),
            (TimedOut("not in time"), BucketTimedOut),
        ],
    )
    def test_of_a_read(self, raised: Exception, expected: type[StorageError]) -> None:
        """An S3 that is busy, away, late, full or broken, and a disk of this host, give different errors."""
        with pytest.raises(expected) as caught, storage_errors():
            raise raised
        assert type(caught.value) is expected

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (refused(412, "PreconditionFailed"), PreconditionFailed),
            (refused(404, "NoSuchKey"), PreconditionFailed),
            (refused(409, "ConditionalRequestConflict"), WriteConflict),
            (refused(503, "SlowDown"), BucketOverloaded),
        ],
    )
    def test_of_a_conditional_write(self, raised: Exception, expected: type[StorageError]) -> None:
        """A failed condition and a conflict are different from other errors of a write."""
        with pytest.raises(expected) as caught, storage_errors(writes=True, conditional=True):
            raise raised
        assert type(caught.value) is expected


class NonsenseTests:
    """Heads of responses that make no sense."""

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
        """An invalid size, date or ETag is an error of the bucket."""
        with pytest.raises(BucketFailed):
            info_of(Response(200, {**SAID, **said}), "k")

    def test_of_a_range(self) -> None:
        """A range with more digits than int() takes is an error of the bucket."""
        answer = Response(206, {**SAID, "content-range": f"bytes {DIGITS}-5/7"})
        with pytest.raises(BucketFailed):
            opened(answer, "k", ByteRange(1, 2))
        assert size_from_response(Response(416, {"content-range": f"bytes */{DIGITS}"})) is None


def found(age: float, etag: str = '"e"', **headers: str) -> Response:
    """The response to a look-up of an object that was put `age` seconds ago."""
    dates = {"date": formatdate(NOW, usegmt=True), "last-modified": formatdate(NOW - age, usegmt=True)}
    return Response(200, {**dates, "etag": etag, **headers})


class OwnTests:
    """How a write recognises its object."""

    def test_ids_differ(self) -> None:
        """Write ids are random."""
        assert len({new_write_id() for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        ("sent", "kept", "status", "expected"),
        [
            ("a", "a", 200, True),
            ("a", "b", 200, False),
            ("a", None, 200, False),
            (None, None, 200, False),
            ("a", "a", 404, False),
        ],
    )
    def test_by_its_id(self, sent: str | None, kept: str | None, status: int, expected: bool) -> None:
        """A write recognises an object by its id, and none if it has no id."""
        headers = {} if kept is None else {WRITE_ID_NAME: kept}
        assert is_own(Response(status, headers), {} if sent is None else {WRITE_ID_NAME: sent}) == expected


class DatesTests:
    """What the date of an object proves."""

    @pytest.mark.parametrize(
        ("age", "before", "since"),
        [
            (60, True, False),
            (5 + SKEW + 1, True, False),
            (5 + SKEW, False, False),
            (5, False, False),
            (5 - SKEW, False, False),
            (5 - SKEW - 1, False, True),
            (0, False, True),
        ],
    )
    def test_of_a_write_that_began_five_seconds_ago(self, age: float, before: bool, since: bool) -> None:
        """An object is older or newer than a write only if the dates differ by more than the skew."""
        assert (was_there_before(found(age), 5), was_put_since(found(age), 5)) == (before, since)

    def test_of_an_object_in_parts(self) -> None:
        """The date of an object in parts does not prove that it was there."""
        assert not was_there_before(found(60, '"e-2"'), 5)

    @pytest.mark.parametrize("headers", [{"date": "today"}, {"last-modified": ""}])
    def test_that_cannot_be_read(self, headers: dict[str, str]) -> None:
        """Dates that cannot be parsed prove nothing."""
        answer = found(60, **headers)
        assert (was_there_before(answer, 5), was_put_since(answer, 1e9)) == (False, False)
