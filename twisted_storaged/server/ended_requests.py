"""What remains of a request that has ended, and the line that the access log has of it.

Lines are written, and requests counted, for all requests of half a second together (see `StorageSite.log`): for each
alone, that would cost more than a small GET.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from twisted.logger import Logger
from twisted.web.http import datetimeToLogString

from twisted_storaged.model import TraceContext
from twisted_storaged.runtime.log_format import LogFormat, quoted, redacted, rfc3339

#: Characters of a header field, and of a method, that a line has at most; and of a target.
LONGEST_FIELD = 256
LONGEST_TARGET = 2048

_log = Logger(namespace="storaged.access")


class EndedRequest(Struct, gc=False):
    """A request that has ended.

    Attributes:
        at: when it ended, in seconds since the epoch.
        client: the address of the client.
        operation: what was asked for, such as `put`.
        bucket: the name of the bucket; empty if it never came to that, as is `key`.
        status: as it was sent; None without a response.
        outcome: how it ended: `complete`, `client gone`, or `cut: ` and a reason.
        reason: the name of the error that it failed with, if any.
        received, sent: bytes of the two bodies.
        seconds: from the end of its head to its end; `first_byte`: to the beginning of the response, if any.
        fields: the header fields of the request.
        id: the id of the request, as in its response.
        trace: its place in a trace, if it is part of one, and `span`, the span that is made of it, if any.
    """

    at: float
    client: Any
    method: bytes = b"-"
    uri: bytes = b""
    version: bytes = b""
    operation: str = "none"
    bucket: str = ""
    key: str = ""
    status: int | None = None
    outcome: str = ""
    reason: str = ""
    received: int = 0
    sent: int = 0
    seconds: float = 0.0
    first_byte: float | None = None
    fields: Mapping[str, Sequence[str]] = {}
    id: str = ""
    trace: TraceContext | None = None
    span: Any = None


def _first_line(request: EndedRequest) -> str:
    """The request line, as a text that is printable and has no quotes."""
    line = b" ".join((request.method, request.uri, request.version))
    # The repr of bytes has no control characters, and its quotes are not ours.
    shown = redacted(repr(line)[2:-1].replace('"', "%22"))
    if len(shown) > LONGEST_TARGET:
        # Not before: what is cut off may be what tells that the rest is a password.
        method, _, rest = shown.partition(" ")
        target, _, version = rest.rpartition(" ")
        shown = f"{method[:LONGEST_FIELD]} {target[:LONGEST_TARGET]} {version}"
    return shown


class AccessLog:
    """Logs a line for each request.

    In text, it is in the Common Log Format, followed by how the request ended, and by fields of the form NAME=VALUE.
    Without a response, the status is `-`, and so is every field that is empty. In JSON, these are null.
    https://httpd.apache.org/docs/current/logs.html#common

    `complete`: the whole response was handed to the kernel. `client gone`: the client closed the connection before
    that. `cut: REASON`: storaged closed it.
    """

    def __init__(self, log_format: LogFormat = "text", write: Callable[[str], object] | None = None) -> None:
        """Give the lines to `write`, several at once; by default, they go to the log of the daemon."""
        self._write = write
        self._is_json = log_format == "json"
        self.line = self._as_json if self._is_json else self._as_text
        self._second = -1
        self._time = ""

    def add(self, ended: Sequence[EndedRequest]) -> None:
        """Log requests that have ended."""
        lines = "\n".join(map(self.line, ended))
        if self._write is None:
            # In one log event: an event for each line would cost more than a small GET.
            _log.info("{lines}", lines=lines, is_json=self._is_json)
        else:
            self._write(f"{lines}\n")

    def _as_text(self, request: EndedRequest) -> str:
        second = int(request.at)
        if second != self._second:
            self._second = second
            self._time = datetimeToLogString(second)
        what = _first_line(request) if request.uri else "-"
        status = "-" if request.status is None else request.status
        client = getattr(request.client, "host", "-")
        key = quoted(redacted(request.key)) if request.key else "-"
        agent = request.fields.get("user-agent")
        first_byte = "-" if request.first_byte is None else f"{request.first_byte:.6f}"
        return (
            f'{client} - - {self._time} "{what}" {status} {request.sent or "-"} {quoted(request.outcome)[1:-1]}'
            f" id={request.id or '-'} operation={request.operation} bucket={request.bucket or '-'} key={key}"
            f" received={request.received} seconds={request.seconds:.6f} first_byte={first_byte}"
            f" reason={request.reason or '-'} trace={request.trace.trace_id if request.trace else '-'}"
            f" agent={quoted(redacted(agent[0])[:LONGEST_FIELD]) if agent else '-'}"
        )

    def _as_json(self, request: EndedRequest) -> str:
        second = int(request.at)
        if second != self._second:
            self._second = second
            self._time = rfc3339(second)[: len("2026-11-30T01:08:00")]
        what, method, target, version = quoted(request.outcome)[1:-1], "null", "null", "null"
        if request.uri:
            what = quoted(_first_line(request))[1:-1]
            method, _, rest = what.partition(" ")
            target, _, version = rest.rpartition(" ")
            method, target, version = f'"{method}"', f'"{target}"', f'"{version}"'
        client = getattr(request.client, "host", None)
        agent = request.fields.get("user-agent")
        return (
            f'{{"time":"{self._time}.{int((request.at - second) * 1e6):06}Z","level":"info","namespace":'
            f'"storaged.access","message":"{what}","client":{quoted(client) if client else "null"},"method":{method},'
            f'"target":{target},"version":{version},"status":{request.status or "null"},"sent":{request.sent},'
            f'"outcome":{quoted(request.outcome)},"id":{quoted(request.id) if request.id else "null"},'
            f'"operation":"{request.operation}","bucket":{quoted(request.bucket) if request.bucket else "null"},'
            f'"key":{quoted(redacted(request.key)) if request.key else "null"},"received":{request.received},'
            f'"seconds":{request.seconds:.6f},'
            f'"first_byte":{"null" if request.first_byte is None else f"{request.first_byte:.6f}"},'
            f'"reason":{quoted(request.reason) if request.reason else "null"},'
            f'"trace":{quoted(request.trace.trace_id) if request.trace else "null"},'
            f'"agent":{quoted(redacted(agent[0])[:LONGEST_FIELD]) if agent else "null"}}}'
        )
