"""Trace Context, which services pass on with requests, so that those of one trace are found. No I/O.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re

from twisted_storaged.model import TraceContext
from twisted_storaged.protocol.http_fields import Fields

#: Version, then trace id, parent id and flags, then what later versions may add.
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}")
#: Limits of tracestate: its members, and the characters that services should at least pass on.
_MOST_MEMBERS = 32
_MOST_CHARACTERS = 512


def trace_context(fields: Fields) -> TraceContext | None:
    """Parse the trace context of a request; None if it has none that is valid."""
    given = fields.get("traceparent", ())
    match = _PARENT.fullmatch(given[0]) if len(given) == 1 else None
    if match is None or (match[1] == "00" and match[3]):
        return None
    # What is passed on is of the version that is known here.
    return TraceContext(f"00{match[2]}", _state(",".join(fields.get("tracestate", ()))))


def _state(text: str) -> str:
    """The value of tracestate to pass on; empty if it is not valid, which does not make traceparent invalid."""
    members = [member for one in text.split(",") if (member := one.strip(" \t"))]
    if len(members) > _MOST_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return ""
    state = ",".join(members)
    return state if len(state) <= _MOST_CHARACTERS else ""
