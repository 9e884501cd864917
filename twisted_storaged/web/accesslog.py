"""The access log: a line for each request, written to the daemon's log a few times a second.

A line is in the Common Log Format, and one field follows, up to the end of the line: how the request ended. `complete`:
all of its answer was handed to the system to send. `client gone`: the client closed the connection before. `cut: ` and
a reason: storaged did. Where no answer had begun, there is no status, but a `-`.

A log event of its own for each line would cost more than a small GET.
https://httpd.apache.org/docs/current/logs.html#common
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import datetimeToLogString

from twisted_storaged.web.request import StreamingRequest

#: Seconds that a line may wait for others.
WAIT = 0.5

_log = Logger(namespace="storaged.access")


class AccessLog:
    """Collects lines, and writes them together."""

    def __init__(self, clock: IReactorTime, wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._lines: list[str] = []
        self._second = -1
        self._time = ""

    def add(self, request: StreamingRequest) -> None:
        """Note that a request has ended."""
        # The repr of bytes has no control characters, and its quotes are not ours.
        what = repr(b" ".join((request.method, request.uri, request.clientproto)))[2:-1].replace('"', "%22")
        status = request.code if request.startedWriting else "-"
        self._add(request.client, what, f"{status} {request.sentLength or '-'} {request.outcome}")

    def add_refused(self, client: object, status: int) -> None:
        """Note that something came from a client that is no request, or none that is read to its end."""
        self._add(client, "-", f"{status} - cut: no request")

    def _add(self, client: object, what: str, how: str) -> None:
        self._tick()
        self._lines.append(f'{getattr(client, "host", "-")} - - {self._time} "{what}" {how}')
        if len(self._lines) == 1:
            self._clock.callLater(WAIT, self.flush)

    def flush(self) -> None:
        """Write what there is."""
        lines, self._lines = self._lines, []
        if lines:
            _log.info("{lines}", lines="\n".join(lines))

    def _tick(self) -> None:
        second = int(self._wall_clock())
        if second != self._second:
            self._second = second
            self._time = datetimeToLogString(second)
