"""The head of a request, read in one step where it is plain. Line by line, as Twisted does, takes three times as long.

Plain is what clients send: a request line of HTTP/1.1, fields of visible characters, and no more said of how the body
is framed than one Content-Length. Whatever else comes, Twisted reads, and refuses. RFC 9112, 2 to 6.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from twisted_storaged.web.fields import Fields

#: Bytes, and fields, that a plain head may have.
MAX_BYTES = 8192
_MAX_FIELDS = 100

_HEAD = re.compile(
    rb"([A-Z]+) (/[\x21-\x7e]*) HTTP/1\.1\r\n((?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n){0,%d})\r\n"
    % _MAX_FIELDS
)
#: A Content-Length that is a number of bytes any store could have; longer ones see `bounded_length`.
_PLAIN_LENGTH = re.compile(r"[0-9]{1,18}")
#: What says how the rest is to be read, or answered, and is Twisted's to understand.
_NOT_PLAIN = {"transfer-encoding", "expect", "te", "trailer", "upgrade"}


class Head(NamedTuple):
    """A head that is plain; `length` is that of the body, and `size` that of the head itself, in bytes."""

    method: bytes
    target: bytes
    fields: Fields
    length: int
    size: int


def bounded_length(line: bytes) -> bytes:
    """A field line; if it is a Content-Length of more than 18 digits, the same without leading zeros, and at most
    the largest number of 18 digits: that is over every cap, and int() refuses more than 4,300 digits. RFC 9110, 8.6.
    """
    name, _, value = line.partition(b":")
    digits = value.strip(b" \t")
    if name.lower() != b"content-length" or len(digits) <= 18 or not digits.isdigit():
        return line
    number = digits.lstrip(b"0") or b"0"
    return name + b": " + (number if len(number) <= 18 else b"9" * 18)


def read_head(data: bytes) -> Head | None:
    """The head that `data` begins with; None where it is not there as a whole, or not plain."""
    match = _HEAD.match(data, 0, MAX_BYTES)
    if match is None:
        return None
    method, target, lines = match.groups()
    fields: Fields = {}
    for line in lines.decode("ascii").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.lower(), []).append(value.strip())
    lengths = fields.get("content-length", ["0"])
    if len(lengths) > 1 or not _PLAIN_LENGTH.fullmatch(lengths[0]) or not _NOT_PLAIN.isdisjoint(fields):
        return None
    return Head(method, target, fields, int(lengths[0]), match.end())
