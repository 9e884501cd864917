"""The reactor of `twistd storaged`: Twisted's for epoll, on the monotonic clock, and without a log context per event.

Twisted's reactors go by the wall clock. When that is set back (by NTP, or in a virtual machine that was suspended),
every `callLater`, with a delay of 0 too, waits for as long as the step was; and when it is set forward, all timeouts
that are under way are over at once. So what is waited for goes by the monotonic clock here. A date is asked of
`time.time()`, never of `reactor.seconds()`.

The log context, which names the connection of each event, is for lines written by `twisted.python.log`, of which there
are hardly any, and takes a fifteenth of the CPU of a small request.
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
    """Twisted's, with a clock and a `doPoll` of its own."""

    #: Seconds since some moment in the past: what `callLater`, and all timeouts, go by. It is never set.
    seconds = staticmethod(time.monotonic)

    def doPoll(self, timeout: float | None) -> None:
        """Do what there is to do for each connection that is ready; wait up to `timeout` seconds for one."""
        for descriptor, event in self._poller.poll(-1 if timeout is None else timeout, len(self._selectables)):
            selectable = self._selectables.get(descriptor)
            if selectable is not None:
                try:
                    self._doReadOrWrite(selectable, descriptor, event)
                except Exception:  # noqa: BLE001 (one defect must not keep the others from being served)
                    _log.failure("a defect in a connection")

    doIteration = doPoll


def install() -> None:
    """Install it, unless `twistd --reactor` or somebody else has chosen one."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(Reactor())


def warn_of_wall_clock(reactor: Any) -> None:
    """Log a warning if a reactor, which `twistd --reactor` has chosen, goes by a clock that can be set."""
    if abs(reactor.seconds() - time.monotonic()) > 1:
        name = type(reactor).__name__
        _log.warn("{name} goes by the wall clock: when that is set back, all answers wait for as long", name=name)
