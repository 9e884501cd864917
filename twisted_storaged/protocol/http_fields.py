"""Header fields and query parameters: ranges, digests, and the checks that all fields have in common.

RFC 9110 and RFC 9530."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from typing import Any
from urllib.parse import unquote_to_bytes

import http_sf

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import NO_DIGESTS, ByteRange, Digests, Span

# Header fields and query parameters of a request, checked for what all of them have in common.

#: Header fields: their values, by their names in lower case.
Fields = dict[str, list[str]]

#: Visible ASCII, spaces and tabs. RFC 9110, 5.5
_TEXT = re.compile(r"[\t\x20-\x7e]*")


def field(request: Any, name: str) -> str | None:
    """The value of a header field.

    Raises:
        InvalidRequest: it is there twice, or is not ASCII.
    """
    values: list[str] | None = request.fields.get(name.lower())
    if values is None:
        return None
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given twice")
    if not _TEXT.fullmatch(values[0]):
        raise InvalidRequest(f"{name} is not ASCII")
    return values[0]


def parameter(request: Any, name: str) -> bytes | None:
    """The value of a query parameter, percent-decoded, with `+` for a space; the first of several."""
    wanted = name.encode("ascii")
    # Some clients separate parameters by semicolons, as HTML 4 recommended.
    for pair in re.split(b"[&;]", request.uri.partition(b"?")[2]):
        found, equals, value = pair.replace(b"+", b" ").partition(b"=")
        if equals and unquote_to_bytes(found) == wanted:
            return unquote_to_bytes(value)
    return None


def count(request: Any, name: str) -> int | None:
    """A query parameter that is a number from 1 on.

    Raises:
        InvalidRequest: it is anything else.
    """
    digits = parameter(request, name)
    if digits is None:
        return None
    if not re.fullmatch(b"[0-9]{1,18}", digits) or int(digits) == 0:
        raise InvalidRequest(f"{name} is not a number from 1 on")
    return int(digits)


# The Range header field. RFC 9110, 14.1.2 and 14.2.

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


# Digest fields: what the client says its body is, and what it wants to be told. RFC 9530, and RFC 1864 for MD5.

#: The algorithms that are not broken (RFC 9530, 5), with the lengths of their digests, in bytes.
_LENGTHS = {"sha-256": 32, "sha-512": 64}
_MD5_LENGTH = 16
_OF_BODIES = {"content-digest", "repr-digest", "content-md5"}


def expected_digests(request: Any) -> Digests:
    """The digests that the body must have. Nothing is encoded on the way, so that content and representation are one.

    Raises:
        InvalidRequest: one is malformed, or they contradict each other, or all are of unknown algorithms.
    """
    if _OF_BODIES.isdisjoint(request.fields):
        return NO_DIGESTS
    expected: dict[str, bytes] = {}
    for name in ("Content-Digest", "Repr-Digest"):
        for algorithm, digest in _dictionary(request, name).items():
            if expected.setdefault(algorithm, digest) != digest:
                raise InvalidRequest(f"Content-Digest and Repr-Digest have different {algorithm} digests")
    md5 = field(request, "Content-MD5")
    if md5 is not None:
        expected["md5"] = _md5(md5)
    return expected


def wanted_algorithm(request: Any) -> str | None:
    """The algorithm of the digest that the client wants most, of those we know.

    Raises:
        InvalidRequest: Want-Repr-Digest is malformed.
    """
    if "want-repr-digest" not in request.fields:
        return None
    wanted = _parsed(request, "Want-Repr-Digest")
    for algorithm, (weight, _) in wanted.items():
        if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= 10:
            raise InvalidRequest(f"Want-Repr-Digest has a weight for {algorithm} that is not a number from 0 to 10")
    known = {algorithm: weight for algorithm, (weight, _) in wanted.items() if algorithm in _LENGTHS and weight}
    return max(known, key=lambda algorithm: known[algorithm], default=None)


def repr_digest(algorithm: str, digests: Digests) -> list[tuple[bytes, bytes]]:
    """The header field that tells a digest, if it is known."""
    if algorithm not in digests:
        return []
    return [(b"Repr-Digest", b"%s=:%s:" % (algorithm.encode("ascii"), b64encode(digests[algorithm])))]


def _dictionary(request: Any, name: str) -> dict[str, bytes]:
    given = _parsed(request, name)
    known = {algorithm: value for algorithm, (value, _) in given.items() if algorithm in _LENGTHS}
    if given and not known:
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
