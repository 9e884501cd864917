"""What remains of a request that has ended, and the line that the access log has of it.

Lines are written, and requests counted, for all requests of half a second together (see `StorageSite.log`): for each
alone, that would cost more than a small GET.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from twisted.logger import Logger
from twisted.web.http import datetimeToLogString

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


class AccessLog:
    """Logs a line for each request, in the Common Log Format with one more field: how the request ended.

    `complete`: the whole response was handed to the kernel. `client gone`: the client closed the connection before
    that. `cut: REASON`: storaged closed it. Without a response, the status is `-`.
    https://httpd.apache.org/docs/current/logs.html#common
    """

    def __init__(self) -> None:
        self._second = -1
        self._time = ""

    def add(self, ended: Sequence[EndedRequest]) -> None:
        """Log requests that have ended."""
        # In one log event: an event for each line would cost more than a small GET.
        _log.info("{lines}", lines="\n".join(map(self._line, ended)))

    def _line(self, request: EndedRequest) -> str:
        second = int(request.at)
        if second != self._second:
            self._second = second
            self._time = datetimeToLogString(second)
        what = "-"
        if request.uri:
            # The repr of bytes has no control characters, and its quotes are not ours.
            what = repr(b" ".join((request.method, request.uri, request.version)))[2:-1].replace('"', "%22")
        status = "-" if request.status is None else request.status
        client = getattr(request.client, "host", "-")
        return f'{client} - - {self._time} "{what}" {status} {request.sent or "-"} {request.outcome}'
