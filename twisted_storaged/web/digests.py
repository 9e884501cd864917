"""Digest fields: what the client says its body is, and what it wants to be told. RFC 9530, and RFC 1864 for MD5."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import Any

import http_sf

from twisted_storaged.buckets.objects import NO_DIGESTS, Digests
from twisted_storaged.errors import InvalidRequest
from twisted_storaged.web.fields import field

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
