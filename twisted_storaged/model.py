"""The values that cross a bucket's border: object keys and prefixes, what is known of an object, and what is asked of a
put, a get and a list. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from twisted_storaged.errors import InvalidKey, RangeNotSatisfiable

# What an object key may be. Keys arrive as percent-decoded bytes and leave as text.

#: S3's own limit, in bytes of UTF-8.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
MAX_KEY_BYTES = 1024

#: What breaks no rule, nor could: most keys.
_PLAIN = re.compile(rb"(?!/)[\x20-\x7e]{1,%d}" % MAX_KEY_BYTES)
_CONTROL = bytes([*range(0x20), 0x7F])


def parse_key(raw: bytes) -> str:
    """The key that these bytes spell.

    Raises:
        InvalidKey: it is empty, or breaks a rule that prefixes share.
    """
    if not raw:
        raise InvalidKey("empty key")
    return parse_prefix(raw)


def parse_prefix(raw: bytes) -> str:
    """The prefix that these bytes spell: as a key, but it may be empty.

    Raises:
        InvalidKey: the first rule that is broken, in the order of the wire contract.
    """
    if _PLAIN.fullmatch(raw) and b".." not in raw:
        return raw.decode("ascii")
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


# The values that cross a bucket's border: what is known of an object, and what is asked of a put, a get, a list.

#: An object's metadata, as S3 has it: names in lower case, `content-type` and its like and `x-amz-meta-*`, with values.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
Metadata = tuple[tuple[str, str], ...]

#: Digests of all bytes of an object, by algorithm: "md5", "sha-256", "sha-512".
Digests = Mapping[str, bytes]
NO_DIGESTS: Digests = MappingProxyType({})


class ObjectInfo(NamedTuple):
    """What is known of an object without reading it.

    `etag` is opaque text without quotes that changes with the content; `size` is in bytes; `last_modified` in
    seconds since the epoch. `metadata` is what was given with the put, and `digests` those that are known; lists
    have neither.
    """

    key: str
    size: int
    etag: str
    last_modified: float
    metadata: Metadata = ()
    digests: Digests = NO_DIGESTS


@dataclass(frozen=True)
class Condition:
    """What a key must have for a write to happen: the object of this ETag; or, for None, no object."""

    etag: str | None = None


class PutOptions(NamedTuple):
    """What comes with a body.

    Attributes:
        metadata: kept with the object.
        condition: checked in the same step that makes the object visible.
        expected: digests that the body must have.
        wanted: algorithms whose digests the result must know, beside those of `expected`.
    """

    metadata: Metadata = ()
    condition: Condition | None = None
    expected: Digests = NO_DIGESTS
    wanted: frozenset[str] = frozenset()


NO_OPTIONS = PutOptions()


class Span(NamedTuple):
    """The bytes from offset `start` to before `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class ByteRange:
    """A range of bytes that a client asks for, in one of the three forms of RFC 9110, 14.1.2.

    `first` to `last`, both included; from `first` on, where `last` is None; the last `last` bytes, where `first` is.
    """

    first: int | None
    last: int | None

    def within(self, size: int) -> Span:
        """What it means for an object of `size` bytes.

        Raises:
            RangeNotSatisfiable: none of them are there.
        """
        if self.first is None:
            start, end = max(0, size - (self.last or 0)), size
        else:
            start, end = self.first, size if self.last is None else min(self.last + 1, size)
        if start >= end:
            raise RangeNotSatisfiable(size)
        return Span(start, end)

    def __str__(self) -> str:
        first, last = ("" if end is None else end for end in (self.first, self.last))
        return f"bytes={first}-{last}"


@dataclass(frozen=True)
class ListQuery:
    """What to list: entries whose names start with `prefix` and sort after `after`, by the bytes of their UTF-8.

    An entry is an object, by its key; with a `delimiter`, the keys that have it after the prefix are one entry
    together, a common prefix, up to and with the delimiter. A page has at most `page_limit` entries; and of all pages
    together, nobody looks at more than `limit` entries (None: at all of them).
    """

    prefix: str = ""
    delimiter: str | None = None
    after: str | None = None
    page_limit: int = 1000
    limit: int | None = None


@dataclass(frozen=True)
class ListPage:
    """Some entries of a list, and the token of the next page; None after the last.

    Those of each kind are in order, and come after those of the page before, unless it is not `ordered`: there are
    engines of S3 that promise no order.
    """

    objects: list[ObjectInfo]
    token: str | None
    prefixes: tuple[str, ...] = ()
    ordered: bool = True

    def names(self) -> list[str]:
        """All its entries, in order."""
        return sorted([*(info.key for info in self.objects), *self.prefixes], key=str.encode)

    def up_to(self, last: str) -> ListPage:
        """The entries up to this one."""
        end = last.encode("utf-8")
        objects = [info for info in self.objects if info.key.encode("utf-8") <= end]
        prefixes = tuple(prefix for prefix in self.prefixes if prefix.encode("utf-8") <= end)
        return ListPage(objects, None, prefixes, self.ordered)
