"""Which conditional writes a bucket of S3 may be asked for: only those that its engine checks and carries out in one
step. The operator says which, or `probe` finds out, at the first that is asked for.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_storaged.buckets.s3.session import ConditionalWrites
from twisted_storaged.errors import BucketError, BucketTimedOut, ConditionUnsupported
from twisted_storaged.model import Condition
from twisted_storaged.protocol.http1 import TimedOut


class Conditional(NamedTuple):
    """An operation of S3 and a header that makes it conditional."""

    operation: str
    header: str

    def __str__(self) -> str:
        return f"{self.operation} with {self.header}"


PUT_ABSENT: Final = Conditional("PutObject", "if-none-match")
PUT_SAME: Final = Conditional("PutObject", "if-match")
COMPLETE_ABSENT: Final = Conditional("CompleteMultipartUpload", "if-none-match")
COMPLETE_SAME: Final = Conditional("CompleteMultipartUpload", "if-match")
DELETE_SAME: Final = Conditional("DeleteObject", "if-match")

Capabilities = frozenset[Conditional]
NO_CAPABILITIES: Capabilities = frozenset()

#: What `conditional_writes` may be, and what that claims; "auto" is to be found out.
CAPABILITIES_BY_SETTING: Mapping[ConditionalWrites, Capabilities | None] = {
    "auto": None,
    "all": frozenset({PUT_ABSENT, PUT_SAME, COMPLETE_ABSENT, COMPLETE_SAME, DELETE_SAME}),
    "put_object": frozenset({PUT_ABSENT, PUT_SAME}),
    "none": NO_CAPABILITIES,
}


def condition_headers(condition: Condition | None) -> dict[str, str]:
    """The header of a condition, if there is one. RFC 9110, 13.1.1 and 13.1.2."""
    if condition is None:
        return {}
    return {"if-none-match": "*"} if condition.etag is None else {"if-match": f'"{condition.etag}"'}


def conditional(operation: str, condition: Condition) -> Conditional:
    """What an operation with this condition is."""
    return Conditional(operation, "if-none-match" if condition.etag is None else "if-match")


class ConditionalSupport:
    """What a bucket claims, once that is known."""

    def __init__(self, capabilities: Capabilities | None, probe: Callable[[], Awaitable[Capabilities]]) -> None:
        """It has `capabilities`; or, for None, what `probe` finds. A failed probe is repeated for the next caller."""
        self._capabilities = capabilities
        self._probe = probe
        self._waiting: list[Deferred[Capabilities]] = []

    async def require(self, condition: Condition, *operations: str) -> Capabilities:
        """What the bucket claims, which is this condition on one of these operations at least.

        Raises:
            ConditionUnsupported: on none of them.
            BucketError: that could not be found out; BucketTimedOut, if not in time.
        """
        capabilities = self._capabilities if self._capabilities is not None else await self._found()
        if not any(conditional(operation, condition) in capabilities for operation in operations):
            raise ConditionUnsupported(f"not {' or '.join(str(conditional(name, condition)) for name in operations)}")
        return capabilities

    def _found(self) -> Deferred[Capabilities]:
        """What the one probe finds that all wait for who ask meanwhile."""
        waiter: Deferred[Capabilities] = Deferred()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            Deferred.fromCoroutine(self._find()).addBoth(self._tell)
        return waiter

    async def _find(self) -> Capabilities:
        try:
            self._capabilities = await self._probe()
        except TimedOut as error:
            raise BucketTimedOut(f"which conditional writes there are was not found out in time: {error}") from error
        except Exception as error:
            raise BucketError(f"which conditional writes there are could not be found out: {error}") from error
        return self._capabilities

    def _tell(self, found: Capabilities | Failure) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(found)
