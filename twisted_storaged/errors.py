"""What can go wrong, in storage terms. Nothing in here knows HTTP: `web.responses` has the one table of statuses."""

from __future__ import annotations


class StartError(SystemExit, Exception):
    """The daemon cannot start as it was told to; str() is one line for the operator.

    It is a SystemExit, so that the process says that line instead of a traceback and exits 1; and it is an
    Exception, because twistd removes its pid file (and tells a waiting parent) only after one of those.
    """


class StorageError(Exception):
    """Everything that a request can meet."""


class InvalidKey(StorageError):
    """The client's key or prefix breaks a rule of `keys`; str() says which."""


class PayloadTooLarge(StorageError):
    """The body is, or says it is, over the cap of its key."""


class NoFreeSlot(StorageError):
    """As many PUTs as are allowed are under way."""


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
    """An object's bytes are fewer, or more, than its size."""
