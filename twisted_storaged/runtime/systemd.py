"""What systemd is told of the daemon's state: sd_notify(3). Without a service manager, nothing is sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

#: Seconds of the shortest watchdog interval that is kept: pings for a shorter one would be a load.
SHORTEST = 1.0

_log = Logger()


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """The watchdog interval of this process. See sd_watchdog_enabled(3)."""
    text = environ.get("WATCHDOG_USEC")
    # The variables may be inherited from a parent that they were meant for.
    if text is None or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    seconds = int(text) / 1e6 if text.isascii() and text.isdecimal() and len(text) < 19 else 0.0
    if seconds < SHORTEST:
        _log.warn("the watchdog interval {text!r} is ignored: expected at least a second, in microseconds", text=text)
        return None
    return seconds


class ServiceManager:
    """The service manager that has started this process, if there is one.

    Attributes:
        exists: whether there is one.
        watchdog_seconds: the time after which the service manager kills a process that has sent no ping; None if it
            does not.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.exists = bool(self._address)
        self.watchdog_seconds = _watchdog_seconds(environ)
        self._warned = False

    def notify(self, *assignments: str) -> None:
        """Send assignments such as "READY=1". One that cannot be sent is logged, once."""
        if not self.exists:
            return
        # An @ stands for the NUL of the abstract namespace: unix(7).
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sending:
                sending.sendto("\n".join(assignments).encode("utf-8"), address)
        except (OSError, ValueError) as error:
            if not self._warned:
                self._warned = True
                _log.warn("cannot notify the service manager at {address}: {error}", address=self._address, error=error)


NO_MANAGER = ServiceManager({})


class Watchdog:
    """Pings the service manager for as long as the reactor runs and `probe` succeeds.

    A probe is something that a hung daemon cannot do, such as a call in a thread of its pool.
    """

    def __init__(self, manager: ServiceManager, probe: Callable[[], Deferred[Any]], clock: IReactorTime) -> None:
        self._manager = manager
        self._probe = probe
        # Returns the Deferred of a probe, so that the next ping waits for one that hangs.
        self._pinging = LoopingCall(self._ping)
        self._pinging.clock = clock

    def start(self) -> None:
        """Begin to ping, if the service manager waits for it."""
        if self._manager.watchdog_seconds is not None:
            # Half the interval, as sd_watchdog_enabled(3) recommends.
            self._pinging.start(self._manager.watchdog_seconds / 2).addErrback(_log_failure)

    def stop(self) -> None:
        """Ping no more."""
        if self._pinging.running:
            self._pinging.stop()

    def _ping(self) -> Deferred[None]:
        return self._probe().addCallback(lambda _: self._manager.notify("WATCHDOG=1"))


def _log_failure(failure: Failure) -> None:
    _log.failure("the service manager is not pinged any more", failure)
