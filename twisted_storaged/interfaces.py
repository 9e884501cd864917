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
    """An object that is open for reading. A PUT or DELETE of its key meanwhile does not change what it reads."""

    info: ObjectInfo = Attribute("The object's ObjectInfo.")
    span: Span = Attribute("Which of its bytes `deliver` writes.")

    def deliver(consumer: IConsumer) -> Deferred[None]:
        """Write the bytes of `span` to `consumer`, as fast as it takes them, and close.

        Fails with BucketError when the bytes cannot be read or are not those that were put; less than the whole span
        has been written then. Fails with ConsumerGone when the consumer stopped it.
        """

    def close() -> None:
        """Release the object without reading it."""


class IBucket(Interface):
    """A place for objects. Every call is awaited at once, and may fail with BucketError, whose text is for the log."""

    name: str = Attribute("Its name in the configuration.")

    def start() -> None:
        """Open it, blocking, before the reactor runs. Raises StartError."""

    def close() -> None:
        """Close it, blocking, if the daemon fails to start later on: no request has been made yet."""

    def stop() -> Deferred[None]:
        """Close it, after the last request has ended."""

    def ping() -> Deferred[None]:
        """Make a call in one of its threads; fires when that has returned. It does not, if all threads hang."""

    def check() -> Deferred[None]:
        """Ask the storage whether objects can be read and written now, at little cost; fires within a few seconds.

        Fails with BucketError, whose class says why.
        """

    def put(key: str, body: IRequestBody, max_length: int, options: PutOptions = NO_OPTIONS) -> Awaitable[ObjectInfo]:
        """Store `body`, which is at most `max_length` bytes, under `key`.

        Fires when the object is durable and visible, in place of an older one. On any failure, also one of the body,
        the old object stays, and nothing of the new one is left when the failure is raised.

        Fails with DigestMismatch, PreconditionFailed or WriteConflict; and with ConditionUnsupported if the bucket
        cannot check the condition and write in one atomic step.
        """

    def head(key: str) -> Awaitable[ObjectInfo]:
        """Look up an object without its content. Fails with ObjectNotFound."""

    def get(key: str, wanted: ByteRange | None = None) -> Awaitable[IObjectReader]:
        """Open an object, or a range of it, for reading. Fails with ObjectNotFound or RangeNotSatisfiable."""

    def list(query: ListQuery, token: str | None = None) -> Awaitable[ListPage]:
        """Return the page at `token` (None: the first) of a list."""

    def delete(key: str, condition: Condition | None = None) -> Awaitable[None]:
        """Delete the object under `key`, if there is one.

        Fails as `put` does where a condition does not hold, or cannot be checked in the same step.
        """
