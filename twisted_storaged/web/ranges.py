"""The Range header field. RFC 9110, 14.1.2 and 14.2."""

from __future__ import annotations

import re

from twisted_storaged.buckets.objects import ByteRange, Span

_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*", re.IGNORECASE)

#: What a number in a range stands for from here on, as no object has so many bytes.
_HUGE = 10**18


def parse_range(text: str | None) -> ByteRange | None:
    """The one range that is asked for.

    None where there is none, and where it is to be ignored: because it is malformed or of an unknown unit, as the RFC
    says; and where there are several, which a server may answer with the whole.
    """
    match = _RANGE.fullmatch(text or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return ByteRange(None, _number(suffix))
    if last and _number(last) < _number(first):
        return None
    return ByteRange(_number(first), _number(last) if last else None)


def content_range(span: Span, size: int) -> bytes:
    """The value of Content-Range: which bytes of how many an answer has. RFC 9110, 14.4."""
    return b"bytes %d-%d/%d" % (span.start, span.end - 1, size)


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= 18 else _HUGE  # Python reads no numbers of more than 4300 digits
