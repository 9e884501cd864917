"""The reactor of `twistd storaged`: Twisted's for epoll, but it does not tell the log, before each event, whose it is.

That is for lines written by `twisted.python.log`, of which there are hardly any, and takes a fifteenth of the CPU of a
small request.
"""

from __future__ import annotations

import sys

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

_log = Logger()


class Reactor(EPollReactor):
    """Twisted's, with a `doPoll` of its own."""

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
