"""Conditional requests: RFC 9110, 13. For reads, decided here; for writes, handed to the bucket, which alone can check
a condition and write in one step."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from twisted_storaged.errors import ConditionUnsupported, InvalidRequest, PreconditionFailed
from twisted_storaged.model import ByteRange, Condition, ObjectInfo
from twisted_storaged.protocol.http_fields import field, parse_range

#: The fields that make a write conditional, and those that make a read conditional or partial. Most requests have none,
#: so that callers look for them first.
WRITE_FIELDS = {"if-match", "if-none-match", "if-unmodified-since"}
READ_FIELDS = {"range", "if-modified-since", "if-range", *WRITE_FIELDS}

_TAG = r'(?:W/)?"[\x21\x23-\x7e]*"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_ONE_TAG = re.compile(_TAG)

#: RFC 9110, 5.6.7: one form to send, three to understand.
_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


class NotModified(Exception):
    """The client has the object as it is."""

    def __init__(self, info: ObjectInfo) -> None:
        super().__init__()
        self.info = info


@dataclass(frozen=True)
class ETags:
    """The entity tags of a condition, each with its quotes, and `W/` where it is weak; None stands for `*`."""

    tags: tuple[str, ...] | None

    def match(self, etag: str, weakly: bool = False) -> bool:
        """Whether one of them is an object's. RFC 9110, 8.8.3.2: a weak one is never, unless compared weakly."""
        if self.tags is None:
            return True
        return any((tag.removeprefix("W/") if weakly else tag) == f'"{etag}"' for tag in self.tags)


@dataclass(frozen=True)
class ReadConditions:
    """What a GET or HEAD asks for, and under which conditions. Dates are seconds since the epoch."""

    wanted: ByteRange | None
    if_match: ETags | None = None
    if_none_match: ETags | None = None
    if_modified_since: int | None = None
    if_unmodified_since: int | None = None
    if_range: ETags | None = None

    @property
    def depends(self) -> bool:
        """Whether the answer depends on which object it is that is there."""
        return any(
            condition is not None
            for condition in (
                self.if_match,
                self.if_none_match,
                self.if_modified_since,
                self.if_unmodified_since,
                self.if_range,
            )
        )

    def apply(self, info: ObjectInfo) -> ByteRange | None:
        """The range to send of this object, or None for all of it. In the order of RFC 9110, 13.2.2.

        Raises:
            PreconditionFailed: nothing is to be sent.
            NotModified: the client has it.
        """
        modified = int(info.last_modified)
        if self.if_match is not None:
            _require(self.if_match.match(info.etag))
        elif self.if_unmodified_since is not None:
            _require(modified <= self.if_unmodified_since)
        if self.if_none_match is not None:
            if self.if_none_match.match(info.etag, weakly=True):
                raise NotModified(info)
        elif self.if_modified_since is not None and modified <= self.if_modified_since:
            raise NotModified(info)
        return self.wanted if self._range_holds(info) else None

    def _range_holds(self, info: ObjectInfo) -> bool:
        return self.if_range is None or self.if_range.match(info.etag)


def read_conditions(request: Any) -> ReadConditions:
    """Parse the fields in READ_FIELDS of a GET or HEAD.

    Raises:
        InvalidRequest: one is malformed, or there twice, and RFC 9110 does not say that it is to be ignored.
    """
    return ReadConditions(
        # RFC 9110, 14.2: a range means something to GET alone.
        wanted=parse_range(field(request, "Range")) if request.method == b"GET" else None,
        if_match=_etags(request, "If-Match"),
        if_none_match=_etags(request, "If-None-Match"),
        if_modified_since=_date_if_valid(request, "If-Modified-Since"),
        if_unmodified_since=_date_if_valid(request, "If-Unmodified-Since"),
        if_range=_if_range(request),
    )


def write_condition(request: Any) -> Condition | None:
    """Parse the fields in WRITE_FIELDS of a PUT or DELETE; None if they require nothing.

    Raises:
        InvalidRequest: it is malformed.
        PreconditionFailed: it can never hold.
        ConditionUnsupported: it is none that a bucket could check while it writes.
    """
    if_match, if_none_match = _etags(request, "If-Match"), _etags(request, "If-None-Match")
    if _date(request, "If-Unmodified-Since") is not None:
        raise ConditionUnsupported("If-Unmodified-Since")
    if if_match is not None and if_none_match is not None:
        raise InvalidRequest("If-Match and If-None-Match are both given")
    if if_none_match is not None:
        if if_none_match.tags is not None or request.method != b"PUT":
            raise ConditionUnsupported("If-None-Match")
        return Condition()
    return None if if_match is None else Condition(_only_tag(if_match))


def _only_tag(etags: ETags) -> str:
    if etags.tags is None or len(etags.tags) > 1:
        raise ConditionUnsupported("If-Match")
    if etags.tags[0].startswith("W/"):
        raise PreconditionFailed("a weak entity tag matches nothing")
    return etags.tags[0].strip('"')


def _require(holds: bool) -> None:
    if not holds:
        raise PreconditionFailed("the object is another")


def _etags(request: Any, name: str) -> ETags | None:
    text = field(request, name)
    if text is None:
        return None
    if text == "*":
        return ETags(None)
    if not _TAGS.fullmatch(text):
        raise InvalidRequest(f'{name} is not * and not a list of entity tags like "abc"')
    return ETags(tuple(_ONE_TAG.findall(text)))


def _date(request: Any, name: str) -> int | None:
    text = field(request, name)
    return None if text is None else _parse_date(text, name)


def _date_if_valid(request: Any, name: str) -> int | None:
    """A date of If-Modified-Since or If-Unmodified-Since, to be ignored if it is none: RFC 9110, 13.1.3 and 13.1.4.

    Two of them are none, too.
    """
    try:
        return _date(request, name)
    except InvalidRequest:
        return None


def _if_range(request: Any) -> ETags | None:
    """The entity tag of If-Range; none that could match, where it is a date.

    A date is a strong validator only for a server that knows that the object did not change twice within that second
    (RFC 9110, 8.8.2.2). No bucket does: two objects of one second have the same Last-Modified, and what S3 was sent in
    parts has the time at which its upload began. So a date never proves that a range goes with what the client has
    (13.1.5), and the whole object is sent. Every object has an ETag, and a client that knows it must use that.
    """
    text = field(request, "If-Range")
    if text is None:
        return None
    if _ONE_TAG.fullmatch(text):
        return ETags((text,))
    _parse_date(text, "If-Range")
    return ETags(())


def _parse_date(text: str, name: str) -> int:
    for form in _DATES:
        with suppress(ValueError):
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())
    raise InvalidRequest(f"{name} is not a date like Sun, 06 Nov 1994 08:49:37 GMT")
