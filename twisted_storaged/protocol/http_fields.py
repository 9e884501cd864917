"""Header fields and query parameters of requests: access with common checks, ranges, and digests.

No I/O. RFC 9110, and RFC 9530 for digests. Conditions are in `api.preconditions`, metadata in `metadata`.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import http_sf

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import NO_DIGESTS, ByteRange, Digests, Span

#: The values of header fields, by their names in lower case.
Fields = dict[str, list[str]]

#: Visible ASCII, spaces and tabs. RFC 9110, 5.5
_TEXT = re.compile(r"[\t\x20-\x7e]*")


def field(request: Any, name: str) -> str | None:
    """Return the value of a header field; None if it is missing.

    Raises:
        InvalidRequest: it is given twice, or is not ASCII.
    """
    values: list[str] | None = request.fields.get(name.lower())
    if values is None:
        return None
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given twice")
    if not _TEXT.fullmatch(values[0]):
        raise InvalidRequest(f"{name} is not ASCII")
    return values[0]


#: A string in quotes, and the weight of a media range. RFC 9110, 5.6.4 and 12.4.2. The end of a string may be missing,
#: as a search for one from each quote would take long.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.?)*+"?')
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


def preference(request: Any, offered: Sequence[str]) -> str:
    """Return which of the offered media types, in lower case, the client prefers. RFC 9110, 12.5.1.

    The first is for clients that do not ask for another: that must be named in Accept, as most clients add `*/*`, and
    with no lower weight than the first has there.
    """
    accept = ", ".join(request.fields.get("accept", ())).lower()
    first, *others = offered
    if not any(other in accept for other in others):
        return first
    weights: dict[str, float] = {}
    for element in _QUOTED.sub("", accept).split(","):
        name, *parameters = [part.strip(" \t") for part in element.split(";")]
        text = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        if _WEIGHT.fullmatch(text):
            weights[name] = max(weights.get(name, 0.0), float(text))
    # The most specific range that there is counts.
    ranges = (first, first.partition("/")[0] + "/*", "*/*")
    least = next((weights[name] for name in ranges if name in weights), 0.0)
    best = max(others, key=lambda other: weights.get(other, 0.0))
    weight = weights.get(best, 0.0)
    return best if weight > 0 and weight >= least else first


def parameter(request: Any, name: str) -> bytes | None:
    """Return the first value of a query parameter, decoded; None if it is missing."""
    return query_value(request.uri.partition(b"?")[2], name)


def query_value(query: bytes, name: str) -> bytes | None:
    """Return the first value of a name in a query or form, percent-decoded, with `+` for a space; None if missing."""
    wanted = name.encode("ascii")
    # Some clients separate parameters by semicolons, as HTML 4 recommended.
    for pair in re.split(b"[&;]", query):
        found, equals, value = pair.replace(b"+", b" ").partition(b"=")
        if equals and unquote_to_bytes(found) == wanted:
            return unquote_to_bytes(value)
    return None


def count(request: Any, name: str) -> int | None:
    """Return the value of a query parameter that is a positive integer; None if it is missing.

    Raises:
        InvalidRequest: it is anything else.
    """
    digits = parameter(request, name)
    if digits is None:
        return None
    if not re.fullmatch(b"[0-9]{1,18}", digits) or int(digits) == 0:
        raise InvalidRequest(f"{name} must be a positive integer")
    return int(digits)


#: A Range header field with one range of bytes. RFC 9110, 14.1.2 and 14.2.
_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*", re.IGNORECASE)

#: The value of all numbers in a range that have more than 18 digits. No object has so many bytes.
_HUGE = 10**18


def parse_range(text: str | None) -> ByteRange | None:
    """Parse the value of a Range field; None if there is no range, or if it is to be ignored.

    RFC 9110, 14.2 has a server ignore ranges that are malformed or of an unknown unit, and lets it send the whole
    object for several ranges.
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
    """Return the value of Content-Range for `span` of an object of `size` bytes. RFC 9110, 14.4."""
    return b"bytes %d-%d/%d" % (span.start, span.end - 1, size)


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= 18 else _HUGE  # int() refuses more than 4300 digits


#: The algorithms that are not broken (RFC 9530, 5), with the lengths of their digests in bytes.
_LENGTHS = {"sha-256": 32, "sha-512": 64}
_MD5_LENGTH = 16
#: The fields with digests of a body. RFC 9530, and RFC 1864 for MD5.
_DIGEST_FIELDS = {"content-digest", "repr-digest", "content-md5"}


def expected_digests(request: Any) -> Digests:
    """Parse the digests that the body must have.

    Raises:
        InvalidRequest: one is malformed, or they contradict each other, or all are of unknown algorithms.
    """
    if _DIGEST_FIELDS.isdisjoint(request.fields):
        return NO_DIGESTS
    expected: dict[str, bytes] = {}
    # Content and representation are the same bytes, as storaged does not decode a Content-Encoding.
    for name in ("Content-Digest", "Repr-Digest"):
        for algorithm, digest in _dictionary(request, name).items():
            if expected.setdefault(algorithm, digest) != digest:
                raise InvalidRequest(f"Content-Digest and Repr-Digest have different {algorithm} digests")
    md5 = field(request, "Content-MD5")
    if md5 is not None:
        expected["md5"] = _md5(md5)
    return expected


def wanted_algorithm(request: Any) -> str | None:
    """Return the algorithm of the digest that the client prefers in the response, of those that are known.

    Raises:
        InvalidRequest: Want-Repr-Digest is malformed.
    """
    if "want-repr-digest" not in request.fields:
        return None
    wanted = _parsed(request, "Want-Repr-Digest")
    for algorithm, (weight, _) in wanted.items():
        # In Python, a boolean is an int.
        if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= 10:
            raise InvalidRequest(f"Want-Repr-Digest has a weight for {algorithm} that is not a number from 0 to 10")
    known = {algorithm: weight for algorithm, (weight, _) in wanted.items() if algorithm in _LENGTHS and weight}
    return max(known, key=lambda algorithm: known[algorithm], default=None)


def repr_digest(algorithm: str, digests: Digests) -> list[tuple[bytes, bytes]]:
    """Return a Repr-Digest header field, or none if the digest by `algorithm` is unknown."""
    if algorithm not in digests:
        return []
    return [(b"Repr-Digest", b"%s=:%s:" % (algorithm.encode("ascii"), b64encode(digests[algorithm])))]


def _dictionary(request: Any, name: str) -> dict[str, bytes]:
    given = _parsed(request, name)
    known = {algorithm: value for algorithm, (value, _) in given.items() if algorithm in _LENGTHS}
    if given and not known:
        # Ignored, the body would be stored unverified although the client asked for more.
        raise InvalidRequest(f"{name} has no digest of an algorithm that is known: sha-256, sha-512")
    for algorithm, digest in known.items():
        if not isinstance(digest, bytes) or len(digest) != _LENGTHS[algorithm]:
            raise InvalidRequest(f"{name} has a {algorithm} digest that is not {_LENGTHS[algorithm]} bytes in base64")
    return known


def _parsed(request: Any, name: str) -> dict[str, Any]:
    text = field(request, name)
    if text is None:
        return {}
    parsed: Any
    try:
        parsed = http_sf.parse(text.encode("ascii"), tltype="dictionary")
    except http_sf.StructuredFieldError:
        parsed = {}
    if not parsed:
        raise InvalidRequest(f"{name} is not a dictionary of algorithms, as RFC 9530 has it")
    return dict(parsed)


def _md5(text: str) -> bytes:
    try:
        digest = b64decode(text, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != _MD5_LENGTH:
        raise InvalidRequest(f"Content-MD5 is not {_MD5_LENGTH} bytes in base64")
    return digest
