"""What a bucket promises to the rest of the house: `IBucket`, and the values that cross it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import IBodyProducer
from zope.interface import Attribute, Interface


class ObjectInfo(NamedTuple):
    """What is known of an object without reading it.

    `etag` is opaque text without quotes that changes with the content; `size` is in bytes; `last_modified` in
    seconds since the epoch.
    """

    key: str
    size: int
    etag: str
    last_modified: float


@dataclass(frozen=True)
class ListPage:
    """Some objects of a list, in key order (bytes of UTF-8), and the token of the next page; None after the last."""

    objects: list[ObjectInfo]
    token: str | None


class IObjectReader(Interface):
    """One object, open for reading. It stays what it was when opened, whatever is put under its key meanwhile."""

    info: ObjectInfo = Attribute("The object's ObjectInfo.")

    def deliver(consumer: IConsumer) -> Deferred[None]:
        """Write all bytes to `consumer`, as fast as it takes them, and close.

        Fails with BucketError when the bytes cannot be had, or are not `info.size` many (what was written until
        then is part of the object and nothing else), and with ConsumerGone when the consumer stopped it.
        """

    def close() -> None:
        """Let go of the object without reading it."""


class IBucket(Interface):
    """A place for objects. Every Deferred may fail with BucketError, whose text is for the log."""

    name: str = Attribute("What the configuration calls it.")

    def start() -> None:
        """Open it, blocking, before the reactor runs. Raises StartError."""

    def stop() -> Deferred[None]:
        """Close it, after the last request has ended."""

    def put(key: str, body: IBodyProducer, max_length: int) -> Deferred[ObjectInfo]:
        """Store `body`, which is at most `max_length` bytes, under `key`.

        Fires when the object is durable and visible, in the place of what had this key. On any failure, also one
        of the body, the old object stays and nothing is left of the new one; it fires after that is so.
        """

    def get(key: str) -> Deferred[IObjectReader]:
        """Open an object. Fails with ObjectNotFound."""

    def list(prefix: str, token: str | None = None) -> Deferred[ListPage]:
        """The page at `token` (None: the first) of the objects whose keys start with `prefix`."""

    def delete(key: str) -> Deferred[None]:
        """See to it that no object has `key`, whether or not one had."""
