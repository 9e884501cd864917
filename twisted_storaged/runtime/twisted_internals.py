"""What storaged changes in Twisted's reactor, and what it needs of the internals of Twisted's HTTP channel.

Both need names that Twisted keeps private, or does not document; `private_names` lists them. Nothing is imported from
`twisted.web`, as this floor knows nothing of HTTP.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

_log = Logger()


class Reactor(EPollReactor):
    """Twisted's reactor for epoll, on the monotonic clock, and without a log context for each event."""

    # Twisted's reactors use the wall clock. When that is set back (by NTP, or in a virtual machine that was suspended),
    # every `callLater`, with a delay of 0 too, waits for as long as the step was; when it is set forward, all timeouts
    # that are under way expire at once. A date is asked of `time.time()`, never of `reactor.seconds()`.
    #: Seconds since some moment in the past: the clock of `callLater` and all timeouts.
    seconds = staticmethod(time.monotonic)

    def doPoll(self, timeout: float | None) -> None:
        """Handle each connection that is ready; wait up to `timeout` seconds for one."""
        # Twisted's own sets a log context, which names the connection, for lines written by `twisted.python.log`. There
        # are hardly any, and it takes a fifteenth of the CPU of a small request.
        for descriptor, event in self._poller.poll(-1 if timeout is None else timeout, len(self._selectables)):
            selectable = self._selectables.get(descriptor)
            if selectable is not None:
                try:
                    self._doReadOrWrite(selectable, descriptor, event)
                except Exception:  # noqa: BLE001 (an error of one connection must not end the others)
                    _log.failure("unexpected error in a connection")

    doIteration = doPoll


def install() -> None:
    """Install our reactor, unless another one is installed, such as by `twistd --reactor`."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(Reactor())


def warn_of_wall_clock(reactor: Any) -> None:
    """Log a warning if a reactor, chosen by `twistd --reactor`, uses the wall clock."""
    if abs(reactor.seconds() - time.monotonic()) > 1:
        name = type(reactor).__name__
        _log.warn("{name} uses the wall clock: when that is set back, all responses wait for as long", name=name)


class ChannelInternals:
    """A mixin for a subclass of HTTPChannel that gives its private names plain ones."""

    @property
    def transport_is_full(self: Any) -> bool:
        """Whether the transport has paused the channel, as it has enough to send."""
        return bool(self._waitingForTransport)

    @property
    def is_handling_request(self: Any) -> bool:
        """Whether a request is complete and its response is not."""
        return bool(self._handlingRequest)

    @property
    def has_unparsed(self: Any) -> bool:
        """Whether bytes have been received that are not parsed yet."""
        return bool(self._buffer)

    @property
    def has_postponed(self: Any) -> bool:
        """Whether bytes have been received that are to be parsed after the request that is being handled."""
        return bool(self._dataBuffer)

    @property
    def eager_read_size(self: Any) -> int:
        """How many bytes of later requests are read while one is handled."""
        return int(self._optimisticEagerReadSize)

    @property
    def received_head_size(self: Any) -> int:
        """How many bytes of the head of the present request have been received."""
        return int(self._receivedHeaderSize)

    @property
    def received_fields(self: Any) -> int:
        """How many header fields of the present request have been received."""
        return int(self._receivedHeaderCount)

    @property
    def request_line(self: Any) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the present request."""
        return self._command, self._path, self._version

    @request_line.setter
    def request_line(self: Any, line: tuple[bytes, bytes, bytes]) -> None:
        self._command, self._path, self._version = line

    @property
    def has_producer(self: Any) -> bool:
        """Whether the body of the response has a producer, which can be paused."""
        return self._requestProducer is not None

    def _respondToBadRequestAndDisconnect(self: Any) -> None:
        self.malformed_request_received()
