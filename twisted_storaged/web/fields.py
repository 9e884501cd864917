"""Header fields and query parameters of a request, checked for what all of them have in common."""

from __future__ import annotations

import re
from typing import Any

from twisted.web.http import parse_qs
from twisted.web.http_headers import Headers

from twisted_storaged.errors import InvalidRequest

#: Header fields: their values, by their names in lower case.
Fields = dict[str, list[str]]

#: Visible ASCII, spaces and tabs. RFC 9110, 5.5
_TEXT = re.compile(r"[\t\x20-\x7e]*")


def fields_of(headers: Headers) -> Fields:
    """The same as Twisted has them."""
    given = headers.getAllRawHeaders()
    return {name.decode("ascii").lower(): [value.decode("latin-1") for value in values] for name, values in given}


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
    """The value of a query parameter, percent-decoded; the first, where there are several."""
    text = request.uri.partition(b"?")[2]
    if not text:
        return None
    values: list[bytes | None] = parse_qs(text, keep_blank_values=True).get(name.encode("ascii"), [None])
    return values[0]


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
