"""Trying again, in the time that there is: with a clock, and attempts that do as told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.support import result
from twisted_storaged.buckets.s3 import retries
from twisted_storaged.buckets.s3.retries import AttemptState, ConfirmApplied, RequestFailed, Retries
from twisted_storaged.protocol.http1 import (
    AmbiguousFailure,
    ConnectionFailed,
    NotConnected,
    Response,
    TimedOut,
    UnexpectedResponse,
)

DEADLINE = 10.0


def answer(status: int, code: str = "") -> Response:
    made = Response(status, {})
    made.body = f"<Error><Code>{code}</Code></Error>".encode()
    return made


class Tries:
    """Attempts that each take some seconds and end as told, the last way for ever."""

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
        """Run them to the end, as fast as their pauses allow it."""
        running = Deferred.fromCoroutine(self.retries.run("PutObject", self.attempt, landed, decisive))
        while self.clock.getDelayedCalls():
            self.clock.advance(self.clock.getDelayedCalls()[0].getTime() - self.clock.seconds())
        return running

    def looking(self, *found: Response | AttemptState) -> ConfirmApplied:
        """Asks of that kind, which find this in turn."""
        left = list(found)

        async def landed(ends: float) -> Response | AttemptState:
            assert ends == DEADLINE
            self.asked.append(self.clock.seconds())
            return left.pop(0)

        return landed


@pytest.fixture(autouse=True)
def _whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_pause", float)


class DeadlineTests:
    """All tries together."""

    def test_is_over_for_all_tries(self) -> None:
        """Not for each of them: the second one ends it, and nothing is asked any more."""
        tries = Tries(ConnectionFailed("gone"), seconds=6)
        with pytest.raises(TimedOut, match="PutObject: not done in 10 s"):
            result(tries.run(tries.looking(AttemptState.UNKNOWN)))
        assert (tries.began, tries.asked) == ([0, 7], [6])

    def test_an_error_after_it_is_no_other_error(self) -> None:
        """It is late, whatever it says."""
        tries = Tries(answer(503, "SlowDown"), seconds=11)
        with pytest.raises(TimedOut):
            result(tries.run())

    def test_an_answer_just_in_time_counts(self) -> None:
        """It is what was asked for."""
        assert result(Tries(answer(200), seconds=11).run()).status == 200

    def test_no_pause_goes_beyond_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The last try begins when it is over, at the latest."""
        monkeypatch.setattr(retries, "_pause", lambda _: 100.0)
        tries = Tries(answer(503))
        with pytest.raises(TimedOut):
            result(tries.run())
        assert tries.began == [0, DEADLINE]

    def test_each_request_has_its_own(self) -> None:
        """From when it begins."""
        tries = Tries(answer(200))
        tries.clock.advance(5)
        assert tries.retries.ends() == 5 + DEADLINE


class LandedTests:
    """A request that must not be carried out twice."""

    @pytest.mark.parametrize("lost", [ConnectionFailed("gone"), answer(500), answer(502), answer(504)])
    def test_is_looked_for_before_it_is_sent_again(self, lost: Response | Exception) -> None:
        """What is found is the answer."""
        tries, found = Tries(lost), answer(200)
        assert result(tries.run(tries.looking(found))) is found
        assert len(tries.began) == 1

    def test_is_sent_again_where_it_is_not_found(self) -> None:
        """Each time anew."""
        tries = Tries(ConnectionFailed("gone"), answer(503), answer(200))
        assert result(tries.run(tries.looking(AttemptState.UNKNOWN, AttemptState.UNKNOWN))).again
        assert (len(tries.began), len(tries.asked)) == (3, 2)

    def test_is_looked_for_after_the_last_try_too(self) -> None:
        """It may have been carried out then."""
        tries, found = Tries(ConnectionFailed("gone")), answer(200)
        assert result(tries.run(tries.looking(AttemptState.UNKNOWN, AttemptState.UNKNOWN, found))) is found

    def test_is_not_looked_for_where_it_cannot_be(self) -> None:
        """S3 said that it has not done it."""
        tries = Tries(answer(503, "SlowDown"), answer(200))
        assert not result(tries.run(tries.looking())).again


class DecisiveTests:
    """A request whose refusal may be the work of an earlier try."""

    @pytest.mark.parametrize("lost", [ConnectionFailed("gone"), answer(500), UnexpectedResponse("hello")])
    def test_a_refusal_after_a_lost_reply_is_undecided(self, lost: Response | Exception) -> None:
        """Where nothing is known of the earlier try, and where it cannot be looked for."""
        for landed in (lambda tries: tries.looking(AttemptState.UNKNOWN, AttemptState.UNKNOWN), lambda _: None):
            tries = Tries(lost, answer(412))
            with pytest.raises(AmbiguousFailure, match="a reply was lost") as raised:
                result(tries.run(landed(tries), decisive=True))
            assert isinstance(raised.value.failure, RequestFailed)

    def test_a_refusal_counts_where_nothing_was_carried_out(self) -> None:
        """As the look after it says; one before another try says nothing of that."""
        tries = Tries(ConnectionFailed("gone"), answer(412))
        with pytest.raises(RequestFailed):
            result(tries.run(tries.looking(AttemptState.UNKNOWN, AttemptState.NOT_DONE), decisive=True))
        tries = Tries(ConnectionFailed("gone"), answer(412))
        with pytest.raises(AmbiguousFailure):
            result(tries.run(tries.looking(AttemptState.NOT_DONE, AttemptState.UNKNOWN), decisive=True))

    @pytest.mark.parametrize("passed", [NotConnected("refused"), answer(503, "SlowDown")])
    def test_a_refusal_counts_where_no_reply_was_lost(self, passed: Response | Exception) -> None:
        """Nothing was sent, or S3 said that it did nothing."""
        tries = Tries(passed, answer(412))
        with pytest.raises(RequestFailed):
            result(tries.run(tries.looking(), decisive=True))


class WhichTests:
    """What is tried again."""

    @pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "ExpiredToken", "AccessDenied", "BadDigest"])
    def test_errors_that_do_not_pass_are_not(self, code: str) -> None:
        """They would be the same again."""
        tries = Tries(answer(403, code))
        with pytest.raises(RequestFailed, match=code):
            result(tries.run())
        assert len(tries.began) == 1

    @pytest.mark.parametrize(
        ("outcome", "kind"),
        [(lambda: answer(503), RequestFailed), (lambda: ConnectionFailed("gone"), ConnectionFailed)],
    )
    def test_so_often_and_not_more(self, outcome: Callable[[], Response | Exception], kind: type[Exception]) -> None:
        """Then it is the last error that counts."""
        tries = Tries(outcome())
        with pytest.raises(kind):
            result(tries.run())
        assert tries.began == [0, 1, 3]
