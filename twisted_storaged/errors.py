"""What can go wrong, in storage terms. Nothing in here knows HTTP: `web.responses` has the one table of statuses."""

from __future__ import annotations


class StartError(SystemExit, Exception):
    """The daemon cannot start as it was told to; str() is one line for the operator.

    It is a SystemExit, so that the process says that line instead of a traceback and exits 1; and it is an
    Exception, because twistd removes its pid file (and tells a waiting parent) only after one of those.
    """


class WorkEnded(SystemExit, Exception):
    """The process has done all that it was started for, and is to end with this status; an Exception as well, for the
    reason that StartError is one."""


class StorageError(Exception):
    """Everything that a request can meet."""


class InvalidKey(StorageError):
    """The client's key or prefix breaks a rule of `keys`; str() says which."""


class PayloadTooLarge(StorageError):
    """The body is, or says it is, over the cap of its key."""


class NoFreeSlot(StorageError):
    """As many PUTs as are allowed are under way."""


class InvalidRequest(StorageError):
    """The client's headers or query say something that cannot be; str() says what."""


class DigestMismatch(StorageError):
    """The body has another digest than the client said; str() says which."""


class PreconditionFailed(StorageError):
    """What the client wanted to be so before its request was carried out is not."""


class WriteConflict(StorageError):
    """Another conditional write of the same key was under way: the client may try again."""


class ConditionUnsupported(StorageError):
    """The bucket cannot check a condition and write in one step."""


class RangeNotSatisfiable(StorageError):
    """The object has none of the bytes that were asked for.

    Attributes:
        size: of the object, in bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"the object has {size} bytes")
        self.size = size


class BodyLost(StorageError):
    """The peer went away before its body was whole."""


class BodyStalled(StorageError):
    """The peer stopped sending in the middle of its body."""


class ObjectNotFound(StorageError):
    """No object has this key."""


class UnknownBucket(StorageError):
    """No bucket has this name."""


class BucketError(StorageError):
    """The storage behind a bucket failed; str() is the cause, for the log and never for the client."""


class DamagedObject(BucketError):
    """An object's bytes are not those that were put: fewer, more, or others."""


class UnverifiableObject(BucketError):
    """An object has no checksum that its bytes could be compared with, and the configuration wants all to be."""


class BucketUnreachable(BucketError):
    """The storage behind a bucket could not be reached, or its connection was lost, in all tries."""


class BucketBusy(BucketError):
    """The storage behind a bucket takes no more for now, and asks to slow down."""


class WritesSuspended(BucketError):
    """The bucket takes no writes: an earlier one is not settled, or its folder was replaced.

    Attributes:
        begun: whether this one has begun, so that its outcome is not known; else nothing has happened.
    """

    def __init__(self, cause: str, begun: bool) -> None:
        super().__init__(cause)
        self.begun = begun


class OutOfSpace(BucketError):
    """The storage behind a bucket has no room for this, or its owner may have no more; there may be again, later."""


class OutcomeUnknown(BucketError):
    """The storage behind a bucket did not say whether it has carried out a write, and nothing proves either."""


class BucketTimedOut(BucketError):
    """The storage behind a bucket did not answer in the time that it has."""
