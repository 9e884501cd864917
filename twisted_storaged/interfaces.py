"""The interfaces between floors: buckets, open objects, request bodies, and what consumers can do beside `write`.

The values that they exchange are in `model`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from socket import socket

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import Attribute, Interface

from twisted_storaged.model import NO_OPTIONS, ByteRange, Condition, ListPage, ListQuery, ObjectInfo, PutOptions, Span


class IRequestBody(IPushProducer):
    """The body of a PUT. It is read from its socket only while it is consumed and not paused."""

    declared: int | None = Attribute("Its length in bytes, from the headers; None for a chunked body.")
    buffered: memoryview | None = Attribute(
        "All of it, if it arrived with the headers; it need not be consumed then. None otherwise."
    )

    def startProducing(consumer: IConsumer) -> Deferred[None]:
        """Begin to write the body to `consumer`; fires when all of it has been written.

        Fails with PayloadTooLarge, BodyLost or BodyStalled. It does not register itself with the consumer, which
        pauses and resumes the body that it was made for.
        """


class IBufferConsumer(IConsumer):
    """A consumer that offers memory, so that bytes can be read into it without a copy."""

    def room() -> memoryview:
        """The memory for the next bytes; never empty."""

    def filled(count: int) -> None:
        """Take note that `count` bytes have been read into the memory that `room` returned."""


class ISpliceConsumer(IConsumer):
    """A consumer that can take bytes from a socket itself, without showing them to Python."""

    def take_from(source: socket, count: int) -> int | None:
        """Take up to `count` bytes from `source`; returns how many, 0 at the end of the stream, None if it cannot now.

        Raises OSError, as `socket.recv` does.
        """


class IObjectReader(Interface):
    """One object, open for reading. It stays what it was when opened, whatever is put under its key meanwhile."""

    info: ObjectInfo = Attribute("The object's ObjectInfo.")
    span: Span = Attribute("Which of its bytes `deliver` writes.")

    def deliver(consumer: IConsumer) -> Deferred[None]:
        """Write the bytes of `span` to `consumer`, as fast as it takes them, and close.

        Fails with BucketError when the bytes cannot be had, or are not those that were put (what was written until
        then is less than the whole span), and with ConsumerGone when the consumer stopped it.
        """

    def close() -> None:
        """Let go of the object without reading it."""


class IBucket(Interface):
    """A place for objects. Every call is awaited at once, and may fail with BucketError, whose text is for the log."""

    name: str = Attribute("What the configuration calls it.")

    def start() -> None:
        """Open it, blocking, before the reactor runs. Raises StartError."""

    def close() -> None:
        """Close it, blocking, where the daemon could not start after all: no request has been made yet."""

    def stop() -> Deferred[None]:
        """Close it, after the last request has ended."""

    def put(key: str, body: IRequestBody, max_length: int, options: PutOptions = NO_OPTIONS) -> Awaitable[ObjectInfo]:
        """Store `body`, which is at most `max_length` bytes, under `key`.

        Fires when the object is durable and visible, in the place of what had this key. On any failure, also one
        of the body, the old object stays and nothing is left of the new one; it fires after that is so.

        Fails with DigestMismatch, PreconditionFailed or WriteConflict; and with ConditionUnsupported where the
        condition and the write could not be one step.
        """

    def head(key: str) -> Awaitable[ObjectInfo]:
        """Look at an object. Fails with ObjectNotFound."""

    def get(key: str, wanted: ByteRange | None = None) -> Awaitable[IObjectReader]:
        """Open an object, to read it or a range of it. Fails with ObjectNotFound or RangeNotSatisfiable."""

    def list(query: ListQuery, token: str | None = None) -> Awaitable[ListPage]:
        """The page at `token` (None: the first) of a list."""

    def delete(key: str, condition: Condition | None = None) -> Awaitable[None]:
        """See to it that no object has `key`, whether or not one had.

        Fails as `put` does where a condition does not hold, or cannot be checked in the same step.
        """
