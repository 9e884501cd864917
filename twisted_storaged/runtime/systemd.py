"""What systemd is told of the daemon's state, and the sockets that it passes: sd_notify(3), sd_listen_fds(3).

Without a service manager, nothing is sent, and there are no sockets.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from ipaddress import ip_address
from itertools import repeat
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged.errors import StartError

#: Seconds of the shortest watchdog interval that is kept: pings for a shorter one would be a load.
SHORTEST = 1.0
#: Variables of ours, which tell a supervisor how many put slots are held, and how many requests are under way. Service
#: managers ignore variables that they do not know.
SLOTS, TRANSFERS = "X_STORAGED_SLOTS", "X_STORAGED_TRANSFERS"
#: Asks the service manager to wait for at least 30 s more. A start that waits for something else sends it again and
#: again, so that only one that hangs runs into TimeoutStartSec=.
MORE_TIME = "EXTEND_TIMEOUT_USEC=30000000"
#: The first descriptor that is passed: SD_LISTEN_FDS_START of sd_listen_fds(3).
FIRST_DESCRIPTOR = 3
#: The name of a socket that was passed without one, as sd_listen_fds_with_names(3) has it.
UNNAMED = "unknown"

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


class ListenSocket(NamedTuple):
    """A listening socket that the service manager has passed.

    Attributes:
        name: its FileDescriptorName=; see systemd.socket(5). Several sockets may have the same.
        descriptor: its number; child processes do not inherit it.
    """

    name: str
    descriptor: int


def listen_sockets(environ: MutableMapping[str, str], first: int = FIRST_DESCRIPTOR) -> list[ListenSocket]:
    """The listening sockets that the service manager has passed to this process, in its order. See sd_listen_fds(3).

    They are the descriptors from `first` on. The variables that tell of them are removed from `environ`, so that child
    processes do not take them for theirs. The import of `twisted.internet.endpoints` removes them from `os.environ`,
    too: call this earlier. What makes no sense is ignored, and logged.
    """
    pid, count, names = (environ.pop(f"LISTEN_{name}", None) for name in ("PID", "FDS", "FDNAMES"))
    if names is not None and pid is None and count is None:
        _log.warn(
            "the sockets {names!r} of the service manager are lost: twistd cannot write its list of plugins, and so "
            "has imported one that takes the sockets; run `storaged serve` instead",
            names=names,
        )
    # The variables may be inherited from a parent that they were meant for.
    if pid is None or count is None or pid != str(os.getpid()):
        return []
    # Ten digits are more than any system has descriptors.
    if not (count.isascii() and count.isdecimal() and len(count) <= 10):
        _log.warn("LISTEN_FDS={count!r} is ignored: expected the number of sockets", count=count)
        return []
    number = int(count)
    found = list[ListenSocket]()
    for descriptor, name in enumerate(_listen_names(names, number), first):
        try:
            os.set_inheritable(descriptor, False)
        except (OSError, OverflowError) as error:
            # The count may be anything up to ten digits: the first that is not open ends it.
            _log.warn(
                "LISTEN_FDS={count}: descriptor {number} and later ones are ignored: {error}",
                count=count,
                number=descriptor,
                error=error,
            )
            break
        if _is_listening(descriptor):
            found.append(ListenSocket(name, descriptor))
        else:
            _log.warn(
                "descriptor {number} ({name}) is ignored: expected a listening stream socket",
                number=descriptor,
                name=name,
            )
    return found


def check_local(sockets: Sequence[ListenSocket]) -> None:
    """Check that sockets can be reached from this host only. Raises StartError."""
    for name, descriptor in sockets:
        with socket.socket(fileno=os.dup(descriptor)) as listening:
            address = listening.getsockname()
            if listening.family != socket.AF_UNIX and not ip_address(address[0]).is_loopback:
                raise StartError(
                    f"the socket {name} listens on {address[0]}: expected a loopback address or a unix socket: there "
                    "is no authentication, so that any other needs [storaged] allow_network = true"
                )


def pass_sockets(sockets: Sequence[ListenSocket], environ: MutableMapping[str, str]) -> None:
    """Pass listening sockets to the program that this process is about to execute, as a service manager passes them."""
    # First out of the way of the numbers that they are to have.
    above = FIRST_DESCRIPTOR + len(sockets)
    copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for _, descriptor in sockets]
    for number, copy in enumerate(copies, FIRST_DESCRIPTOR):
        os.dup2(copy, number, inheritable=True)
    environ["LISTEN_PID"] = str(os.getpid())
    environ["LISTEN_FDS"] = str(len(sockets))
    environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in sockets)


def _listen_names(text: str | None, count: int) -> Iterable[str]:
    """The names of `count` sockets, by LISTEN_FDNAMES."""
    if text is not None:
        names = text.split(":")
        if len(names) == count:
            return names
        _log.warn(
            "LISTEN_FDNAMES={text!r} is ignored: expected as many names as there are sockets, {count}",
            text=text,
            count=count,
        )
    return repeat(UNNAMED, count)


def _is_listening(descriptor: int) -> bool:
    try:
        held = socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        is_stream = held.type == socket.SOCK_STREAM
        return is_stream and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    finally:
        # The descriptor stays open: it is the caller's.
        held.detach()


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
            self._pinging.start(self._manager.watchdog_seconds / 2).addErrback(log_failure)

    def stop(self) -> None:
        """Ping no more."""
        if self._pinging.running:
            self._pinging.stop()

    def _ping(self) -> Deferred[None]:
        return self._probe().addCallback(lambda _: self._manager.notify("WATCHDOG=1"))


def log_failure(failure: Failure) -> None:
    """Log why a periodic call has ended."""
    _log.failure("the service manager is told no more", failure)
