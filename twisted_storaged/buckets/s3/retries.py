"""Trying a request again, as boto3's `standard` retries would, within the time that it has; and never blindly: where
an earlier try may have been carried out, and doing it twice is not the same, S3 is asked first.

https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

from twisted.internet.task import deferLater

from twisted_storaged.protocol.http1 import AmbiguousFailure, ConnectionFailed, Response, TimedOut

#: Tries of one request, the first included; and the longest pause between two, in seconds.
TRIES = 3
LONGEST_PAUSE = 20.0

_TRY_AGAIN_STATUS = {429, 500, 502, 503, 504}
_MAYBE_DONE_STATUS = {500, 502, 504}
#: What S3 calls it when there are too many requests for it.
_BUSY_CODES = {
    "BandwidthLimitExceeded",
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}
_TRY_AGAIN_CODES = {"PriorRequestNotComplete", "RequestTimeout", "RequestTimeoutException", *_BUSY_CODES}

#: One try, to be given up at a time of the clock.
Attempt = Callable[[float], Awaitable[Response]]


class AttemptState(Enum):
    """What is known of earlier tries, none of which is known to have been carried out."""

    UNKNOWN = "unknown"
    NOT_DONE = "not carried out"


#: Asks, until that time, whether an earlier try was carried out; an answer that proves it, or what else is known.
ConfirmApplied = Callable[[float], Awaitable[Response | AttemptState]]


class RequestFailed(Exception):
    """S3 answered with an error, for good.

    Attributes:
        answer: what it said.
        again: whether this was another try, after one that may have been carried out.
    """

    def __init__(self, operation: str, response: Response, again: bool) -> None:
        super().__init__(f"{operation}: {response}")
        self.response = response
        self.again = again


class Retries:
    """Tries that have `deadline` seconds together."""

    def __init__(self, clock: Any, deadline: float) -> None:
        self.clock = clock
        self.deadline = deadline

    def ends(self) -> float:
        """When a request that begins now must be over."""
        return float(self.clock.seconds()) + self.deadline

    async def run(
        self, operation: str, attempt: Attempt, confirm_applied: ConfirmApplied | None = None, decisive: bool = False
    ) -> Response:
        """The answer to a request, if need be to another try of it.

        Where it is `decisive`, its failure is told as that only if no try was carried out: a refusal of the last try
        says nothing of those before it, whose replies were lost.

        Raises:
            RequestFailed: it is an error.
            ConnectionFailed: there was none; TimedOut, if not in time; Undecided, as said above.
        """
        ends, again = self.ends(), False
        for left in reversed(range(TRIES)):
            failure: Exception
            try:
                response = await attempt(ends)
            except ConnectionFailed as error:
                again, passing, failure = again or error.sent, True, error
            else:
                response.again = again
                if response.status < 300:
                    return response
                again = again or response.status in _MAYBE_DONE_STATUS
                passing, failure = _may_pass(response), RequestFailed(operation, response, again)
            if self.clock.seconds() >= ends:
                raise TimedOut(f"{operation}: not done in {self.deadline:.0f} s") from failure
            found = AttemptState.UNKNOWN if confirm_applied is None or not again else await confirm_applied(ends)
            if isinstance(found, Response):
                return found
            if not left or not passing:
                known = not again or found is AttemptState.NOT_DONE
                raise failure if known or not decisive else AmbiguousFailure(operation, failure)
            await deferLater(self.clock, min(_pause(TRIES - left), max(0.0, ends - self.clock.seconds())))
        raise AssertionError("the last try returns or raises")


def is_busy(response: Response) -> bool:
    """Whether S3 says that it takes no more requests for now."""
    return response.status in (429, 503) or response.code in _BUSY_CODES


def _may_pass(response: Response) -> bool:
    return response.status in _TRY_AGAIN_STATUS or response.code in _TRY_AGAIN_CODES


def _pause(tries: int) -> float:
    """Seconds before the next try, after so many: exponential, with jitter, half of which is certain.

    An S3 that is gone for a moment is not asked three times in that moment.
    """
    return min(random.uniform(0.5, 1.0) * 2.0 ** (tries - 1), LONGEST_PAUSE)  # noqa: S311 (no secret)
