"""What remains of a request that has ended: a line of the access log, and numbers.

Both are made for all requests of half a second together. For each request alone they would cost more than a small GET.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import datetimeToLogString

from twisted_storaged.runtime.metering import Meters

#: Seconds that a request may wait for others.
WAIT = 0.5

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


class EndedRequests:
    """Logs a line for each request, in the Common Log Format with one more field: how the request ended.

    `complete`: the whole response was handed to the kernel. `client gone`: the client closed the connection before
    that. `cut: REASON`: storaged closed it. Without a response, the status is `-`.
    https://httpd.apache.org/docs/current/logs.html#common
    """

    def __init__(self, clock: IReactorTime, meters: Meters) -> None:
        self._clock = clock
        self._ended: list[EndedRequest] = []
        self._second = -1
        self._time = ""

    def add(self, request: EndedRequest) -> None:
        """Log and count a request, soon."""
        self._ended.append(request)
        # One timer for all that end until it is due.
        if len(self._ended) == 1:
            self._clock.callLater(WAIT, self.flush)

    def flush(self) -> None:
        """Log and count the requests that have ended since the last time."""
        ended, self._ended = self._ended, []
        if ended:
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
