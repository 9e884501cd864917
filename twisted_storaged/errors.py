"""Errors in storage terms. Their HTTP statuses are in one table, in `api.responses`."""

from __future__ import annotations

import re
from collections.abc import Iterable


class StartError(SystemExit, Exception):
    """The daemon cannot start with this configuration or data; str() is one line for the operator."""

    # A SystemExit, so that the process prints that line instead of a traceback, and exits with status 1. An Exception
    # as well, because only then twistd removes its pid file and notifies a waiting parent.


class WorkEnded(SystemExit, Exception):
    """The command has finished; the process exits with this status. An Exception for the same reason as StartError."""


class StorageError(Exception):
    """Base class of the errors that a request can fail with."""


def in_words(kind: type) -> str:
    """The name of a class of errors in words, such as `bucket timed out`, which may be shown to anyone."""
    return " ".join(re.findall(r"[A-Z][a-z0-9]*", kind.__name__)).lower()


class UnknownPath(StorageError):
    """Nothing has the path of the request."""


class MethodNotAllowed(StorageError):
    """The path of the request does not know its method.

    Attributes:
        allowed: the methods that it knows.
    """

    def __init__(self, allowed: Iterable[bytes]) -> None:
        super().__init__("method not allowed")
        self.allowed = tuple(allowed)


class InvalidKey(StorageError):
    """The key or prefix of a request breaks a rule of `model.parse_prefix`; str() says which."""


class PayloadTooLarge(StorageError):
    """The body, or its declared length, exceeds the limit for its key."""


class NoFreeSlot(StorageError):
    """The maximum number of PUTs is under way.

    Attributes:
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class InvalidRequest(StorageError):
    """The headers or the query of a request are invalid; str() says why."""


class DigestMismatch(StorageError):
    """The body does not have the digest that the client sent; str() says which."""


class PreconditionFailed(StorageError):
    """The condition of a request does not hold."""


class WriteConflict(StorageError):
    """Another conditional write of the same key was under way; the client may retry."""


class ConditionUnsupported(StorageError):
    """The bucket cannot check the condition and write in one atomic step."""


class RangeNotSatisfiable(StorageError):
    """The object has none of the requested bytes.

    Attributes:
        size: of the object, in bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"the object has {size} bytes")
        self.size = size


class CrossSiteRequest(StorageError):
    """The request may be one that another web site has made a browser send; str() says why."""


class SupervisorSilent(StorageError):
    """The supervisor does not answer, so that nothing is known of the other workers."""


class TooManyPages(StorageError):
    """As many pages are kept up to date as can be."""


class BodyLost(StorageError):
    """The peer disconnected before its body was complete."""


class BodyStalled(StorageError):
    """The peer sent no more of its body for too long."""


class ObjectNotFound(StorageError):
    """No object has this key."""


class UnknownBucket(StorageError):
    """No bucket has this name."""


class BucketError(StorageError):
    """The storage behind a bucket failed; str() is the cause, for the log and never for the client."""


class DamagedObject(BucketError):
    """The bytes of an object on a disk of this host are not those that were put."""


class BucketBusy(BucketError):
    """Another program has locked the storage behind a bucket."""


class WritesSuspended(BucketError):
    """The bucket accepts no writes: the outcome of an earlier one is unresolved, or its folder was replaced.

    Attributes:
        begun: whether this write had begun, so that its outcome is unknown; otherwise nothing was changed.
    """

    def __init__(self, cause: str, begun: bool) -> None:
        super().__init__(cause)
        self.begun = begun


class OutOfSpace(BucketError):
    """The storage behind a bucket is full, or a quota is exhausted."""


class BucketFailed(BucketError):
    """The service behind a bucket, such as S3, refused a request, or gave an answer that it should not.

    The base class of what else can go wrong there, and not on this host.
    """


class BucketUnreachable(BucketFailed):
    """The service behind a bucket could not be reached, or its connection was lost, in every attempt."""


class BucketTimedOut(BucketFailed):
    """The storage behind a bucket did not answer within the time limit."""


class BucketOverloaded(BucketFailed):
    """The service behind a bucket asks to slow down."""


class OutcomeUnknown(BucketFailed):
    """It is unknown whether the service behind a bucket carried out a write."""


class DamagedAnswer(BucketFailed):
    """The bytes of an object, as the service behind a bucket sent them, are not those that were put."""


class UnverifiableObject(BucketFailed):
    """An object has no checksum to verify its bytes with, and the configuration requires one."""
