"""Values that buckets take and return: object keys and prefixes, object information, options of puts, ranges and lists.

No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from twisted_storaged.errors import InvalidKey, RangeNotSatisfiable

#: S3's limit for a key, in bytes of UTF-8.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
MAX_KEY_BYTES = 1024

# Most keys: printable ASCII that can break no rule but the one on "..".
_PLAIN = re.compile(rb"(?!/)[\x20-\x7e]{1,%d}" % MAX_KEY_BYTES)
_CONTROL = bytes([*range(0x20), 0x7F])


def parse_key(raw: bytes) -> str:
    """Decode a key, which is percent-decoded already.

    Raises:
        InvalidKey: it is empty, or not valid as a prefix either.
    """
    if not raw:
        raise InvalidKey("empty key")
    return parse_prefix(raw)


def parse_prefix(raw: bytes) -> str:
    """Decode a prefix. The rules are those of a key, but it may be empty.

    Raises:
        InvalidKey: it breaks a rule; the text says which.
    """
    # Most keys need only this.
    if _PLAIN.fullmatch(raw) and b".." not in raw:
        return raw.decode("ascii")
    # In this order, which is that of the wire contract: of several broken rules, the first one is named.
    if len(raw) > MAX_KEY_BYTES:
        raise InvalidKey("key too long (>1024 bytes)")
    if b"\0" in raw:
        raise InvalidKey("key contains NUL byte")
    if raw.startswith(b"/"):
        raise InvalidKey("key starts with /")
    if b".." in raw.split(b"/"):
        raise InvalidKey("key contains .. component")
    if raw.translate(None, _CONTROL) != raw:
        raise InvalidKey("key contains control char")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidKey("key is not UTF-8") from None


#: An object's metadata: names in lower case (`content-type` and other system metadata, `x-amz-meta-*`) with values.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
Metadata = tuple[tuple[str, str], ...]

#: Digests of all bytes of an object, by algorithm: "md5", "sha-256", "sha-512".
Digests = Mapping[str, bytes]
NO_DIGESTS: Digests = MappingProxyType({})


class ObjectInfo(NamedTuple):
    """Everything about an object but its content.

    Attributes:
        size: in bytes.
        etag: opaque text without quotes, which changes with the content.
        last_modified: in seconds since the epoch.
        metadata: as given with the put; not in lists.
        digests: those that are known; not in lists.
    """

    key: str
    size: int
    etag: str
    last_modified: float
    metadata: Metadata = ()
    digests: Digests = NO_DIGESTS


@dataclass(frozen=True)
class Condition:
    """A precondition of a write: the key has an object with this ETag, or, where it is None, no object."""

    etag: str | None = None


class PutOptions(NamedTuple):
    """Options of a put.

    Attributes:
        metadata: kept with the object.
        condition: checked atomically with the step that makes the object visible.
        expected: digests that the body must have, else the put fails with DigestMismatch.
        wanted: algorithms whose digests the result has, in addition to those of `expected`.
    """

    metadata: Metadata = ()
    condition: Condition | None = None
    expected: Digests = NO_DIGESTS
    wanted: frozenset[str] = frozenset()


NO_OPTIONS = PutOptions()


class Span(NamedTuple):
    """The bytes from offset `start` up to, but not including, offset `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class ByteRange:
    """A range of bytes in one of the three forms of RFC 9110, 14.1.2.

    `first` to `last`, both inclusive; from `first` to the end, where `last` is None; the last `last` bytes, where
    `first` is None.
    """

    first: int | None
    last: int | None

    def within(self, size: int) -> Span:
        """Resolve the range for an object of `size` bytes.

        Raises:
            RangeNotSatisfiable: the object has none of these bytes.
        """
        if self.first is None:
            start, end = max(0, size - (self.last or 0)), size
        else:
            start, end = self.first, size if self.last is None else min(self.last + 1, size)
        # A suffix of 0 bytes as well, and any range of an empty object. RFC 9110, 14.1.2.
        if start >= end:
            raise RangeNotSatisfiable(size)
        return Span(start, end)

    def __str__(self) -> str:
        first, last = ("" if end is None else end for end in (self.first, self.last))
        return f"bytes={first}-{last}"


@dataclass(frozen=True)
class ListQuery:
    """A list request: entries whose names start with `prefix` and sort after `after`, by the bytes of their UTF-8.

    An entry is an object, named by its key. With a `delimiter`, all keys that contain it after the prefix are grouped
    into one entry, a common prefix, which ends with the delimiter.

    Attributes:
        page_limit: entries of one page, at most.
        limit: entries of all pages together that the caller reads, at most; None for all.
    """

    prefix: str = ""
    delimiter: str | None = None
    after: str | None = None
    page_limit: int = 1000
    limit: int | None = None


@dataclass(frozen=True)
class ListPage:
    """One page of a list.

    Attributes:
        token: the token of the next page; None if this is the last one.
        ordered: whether the entries of each kind are in order, and follow those of the page before. Some engines of S3
            promise no order.
    """

    objects: list[ObjectInfo]
    token: str | None
    prefixes: tuple[str, ...] = ()
    ordered: bool = True

    def names(self) -> list[str]:
        """Return the names of all entries, in order."""
        return sorted([*(info.key for info in self.objects), *self.prefixes], key=str.encode)

    def up_to(self, last: str) -> ListPage:
        """Return the page with its entries up to `last`, inclusive."""
        end = last.encode("utf-8")
        objects = [info for info in self.objects if info.key.encode("utf-8") <= end]
        prefixes = tuple(prefix for prefix in self.prefixes if prefix.encode("utf-8") <= end)
        return ListPage(objects, None, prefixes, self.ordered)


class TraceContext(NamedTuple):
    """The place of a request in a trace through several services.

    https://www.w3.org/TR/trace-context/

    Attributes:
        parent: the value of traceparent.
        state: the value of tracestate; may be empty.
    """

    parent: str
    state: str = ""

    @property
    def trace_id(self) -> str:
        """The id of the trace."""
        return self.parent[3:35]


class Origin(Protocol):
    """The request of a client for which a bucket is called.

    Attributes:
        id: its id, of printable ASCII without spaces and parentheses.
        trace: its place in a trace, if it is part of one.
    """

    id: str
    trace: TraceContext | None


#: The request that the running code works for, for what the bucket tells its own service; None if it is for no client.
ORIGIN: ContextVar[Origin | None] = ContextVar("ORIGIN", default=None)
