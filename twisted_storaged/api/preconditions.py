"""Conditional requests: RFC 9110, 13.

The conditions of reads are evaluated here. Those of writes are only parsed: the bucket evaluates them, as only it can
check a condition and write in one step.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from twisted_storaged.errors import ConditionUnsupported, InvalidRequest, PreconditionFailed
from twisted_storaged.model import ByteRange, Condition, ObjectInfo
from twisted_storaged.protocol.http_fields import field, parse_range

# The fields that make a write conditional, and those that make a read conditional or partial. Most requests have none,
# so the parsers below look for them first.
_WRITE_FIELDS = {"if-match", "if-none-match", "if-unmodified-since"}
_READ_FIELDS = {"range", "if-modified-since", "if-range", *_WRITE_FIELDS}

# RFC 9110, 8.8.3 for a tag, and 5.6.1 for a list, whose empty elements are ignored.
_TAG = r'(?:W/)?"[\x21\x23-\x7e]*"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_ONE_TAG = re.compile(_TAG)

#: RFC 9110, 5.6.7: the preferred form, and two obsolete ones that must be accepted.
_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


class NotModified(Exception):
    """The client already has the current object."""

    def __init__(self, info: ObjectInfo) -> None:
        super().__init__()
        self.info = info


@dataclass(frozen=True)
class ETags:
    """The entity tags of a condition, with their quotes, and `W/` for weak ones; None stands for `*`."""

    tags: tuple[str, ...] | None

    def match(self, etag: str, weakly: bool = False) -> bool:
        """Whether one of them matches an object's ETag; a weak one only if compared weakly. RFC 9110, 8.8.3.2."""
        if self.tags is None:
            return True
        return any((tag.removeprefix("W/") if weakly else tag) == f'"{etag}"' for tag in self.tags)


@dataclass(frozen=True)
class ReadConditions:
    """The range and the conditions of a GET or HEAD. Dates are seconds since the epoch."""

    wanted: ByteRange | None
    if_match: ETags | None = None
    if_none_match: ETags | None = None
    if_modified_since: int | None = None
    if_unmodified_since: int | None = None
    if_range: ETags | None = None

    @property
    def depends(self) -> bool:
        """Whether the response depends on the current object."""
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
        """Evaluate the conditions in the order of RFC 9110, 13.2.2; returns the range to send, None for all of it.

        Raises:
            PreconditionFailed: the response is a 412.
            NotModified: the response is a 304.
        """
        modified = int(info.last_modified)  # HTTP dates have no fractions of seconds
        # Tags take precedence over dates, which are less accurate.
        if self.if_match is not None:
            _require(self.if_match.match(info.etag))
        elif self.if_unmodified_since is not None:
            _require(modified <= self.if_unmodified_since)
        if self.if_none_match is not None:
            if self.if_none_match.match(info.etag, weakly=True):
                raise NotModified(info)
        elif self.if_modified_since is not None and modified <= self.if_modified_since:
            raise NotModified(info)
        return self.wanted if self.if_range is None or self.if_range.match(info.etag) else None


def read_conditions(request: Any) -> ReadConditions | None:
    """Parse the conditions and the range of a GET or HEAD; None if there are none.

    Raises:
        InvalidRequest: one is malformed or given twice, and RFC 9110 does not require that it be ignored.
    """
    if _READ_FIELDS.isdisjoint(request.fields):
        return None
    return ReadConditions(
        # RFC 9110, 14.2: ranges are defined for GET only.
        wanted=parse_range(field(request, "Range")) if request.method == b"GET" else None,
        if_match=_etags(request, "If-Match"),
        if_none_match=_etags(request, "If-None-Match"),
        if_modified_since=_date_if_valid(request, "If-Modified-Since"),
        if_unmodified_since=_date_if_valid(request, "If-Unmodified-Since"),
        if_range=_if_range(request),
    )


def write_condition(request: Any) -> Condition | None:
    """Parse the condition of a PUT or DELETE; None if there is none.

    Raises:
        InvalidRequest: a field is malformed.
        PreconditionFailed: the condition can never hold.
        ConditionUnsupported: no bucket can check the condition and write in one step.
    """
    if _WRITE_FIELDS.isdisjoint(request.fields):
        return None
    if_match, if_none_match = _etags(request, "If-Match"), _etags(request, "If-None-Match")
    if _date(request, "If-Unmodified-Since") is not None:
        raise ConditionUnsupported("If-Unmodified-Since")
    if if_match is not None and if_none_match is not None:
        # One requires an object and the other none.
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
        # RFC 9110, 13.1.1: the comparison is strong.
        raise PreconditionFailed("a weak entity tag matches nothing")
    return etags.tags[0].strip('"')


def _require(holds: bool) -> None:
    if not holds:
        raise PreconditionFailed("the object is not the one that the condition requires")


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
    """Parse If-Modified-Since or If-Unmodified-Since; None if it is invalid or given twice.

    RFC 9110, 13.1.3 and 13.1.4: it is ignored then.
    """
    try:
        return _date(request, name)
    except InvalidRequest:
        return None


def _if_range(request: Any) -> ETags | None:
    """Parse If-Range; for a date, the result is an empty list of entity tags, which matches no object."""
    text = field(request, "If-Range")
    if text is None:
        return None
    if _ONE_TAG.fullmatch(text):
        return ETags((text,))
    _parse_date(text, "If-Range")
    # A date is a strong validator only if the server knows that the object did not change twice within that second
    # (RFC 9110, 8.8.2.2). No bucket does: two objects of one second have the same Last-Modified, and an object that was
    # uploaded to S3 in parts has the time at which the upload began. So a date never proves that the range belongs to
    # the object that the client has (13.1.5), and the whole object is sent. Clients can use the ETag instead.
    return ETags(())


def _parse_date(text: str, name: str) -> int:
    for form in _DATES:
        with suppress(ValueError):
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())
    raise InvalidRequest(f"{name} is not a date like Sun, 06 Nov 1994 08:49:37 GMT")
