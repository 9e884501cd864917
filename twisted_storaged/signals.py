"""SIGTERM and SIGINT: each ends the daemon with status 0, while it starts as well as while it serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from signal import SIGINT, SIGTERM, signal
from typing import Any

from twisted.application.service import IService


class StopSignals:
    """The handlers of the signals that stop the daemon.

    Attributes:
        service: what must be stopped before the process ends, once it runs; None while it is being made.
    """

    service: IService | None = None

    def __init__(self, reactor: Any, end: Callable[[int], object] = os._exit) -> None:
        """`end` ends the process at once, with a status."""
        self._reactor = reactor
        self._end = end
        self._stopping = False

    def install(self) -> None:
        """Handle the signals from now on.

        Twisted installs handlers of its own when its reactor starts; with those the process would die of the signal in
        the end, and a second signal would be a traceback.
        """
        self._reactor.callWhenRunning(self._set_handlers)
        self._set_handlers()

    def _set_handlers(self) -> None:
        for number in (SIGTERM, SIGINT):
            signal(number, self._received)

    def _received(self, *_: object) -> None:
        """Stop once; further signals change nothing, as the daemon takes a bounded time to stop."""
        if self._stopping:
            return
        if self.service is None or not self.service.running:
            # Whatever this interrupts might catch an exception (a Deferred does), and start after all. A start is as
            # safe against ending here as it is against kill -9, and twistd removes a pid file that is stale.
            self._end(0)
            return
        self._stopping = True
        # A reactor that does not run yet makes this call as soon as it does.
        self._reactor.callFromThread(self._reactor.stop)
