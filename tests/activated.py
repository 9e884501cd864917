"""Runs a real daemon as systemd does: at a socket that stays open when the daemon ends, and with a notify socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.daemon import Daemon

#: Seconds that anything may take: much else may run beside it.
SECONDS = 180
#: Moves the socket to the first descriptor that systemd passes, and tells the process that it is for it.
_PASS = '[ "$0" = 3 ] || exec 3<&"$0"-; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http; exec "$@"'


class ActivatedDaemon(Daemon):
    """A daemon whose listening socket is this process's, so that connections wait in it while the daemon restarts.

    Attributes:
        told: what the daemon has told its service manager, with the time of each message, on the monotonic clock.
    """

    COMMAND: ClassVar = [sys.executable, "-m", "twisted_storaged", "serve"]

    def __init__(
        self,
        folder: Path,
        *options: str,
        watchdog_seconds: float | None = None,
        own_port: bool = False,
        **arguments: Any,
    ) -> None:
        """Open the sockets. With `watchdog_seconds`, the service manager claims to kill a daemon that hangs so long.

        With `own_port`, the daemon has to bind the port itself: clients are refused while it restarts.
        """
        super().__init__(folder, *options, **arguments)
        self.told: list[tuple[float, str]] = []
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = self._listening.getsockname()[1]
        self._own_port = own_port
        if own_port:
            self._listening.close()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / "notify"
        address.unlink(missing_ok=True)
        self._manager.bind(str(address))
        self._variables = [f"NOTIFY_SOCKET={address}"]
        if watchdog_seconds is not None:
            self._variables.append(f"WATCHDOG_USEC={watchdog_seconds * 1e6:.0f}")
        threading.Thread(target=self._receive, daemon=True).start()

    def spawn(self, bind: str = "") -> subprocess.Popen[bytes]:
        """Start the process without waiting for it."""
        command = [*self.COMMAND, *self._options]
        passed = [] if self._own_port else [self._listening.fileno()]
        if self._own_port:
            command += ["--bind", f"127.0.0.1:{self.port}"]
        else:
            command = ["bash", "-c", _PASS, str(passed[0]), *command]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*self._launcher, "env", *self._variables, *command],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env=self.environ,
                pass_fds=passed,
            )

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        before = len(self.told)
        self.process = self.spawn()
        self.wait_until_told("READY=1", before)

    def stop(self, *, skip_drain: bool = False) -> int:
        """Send SIGTERM and wait for the end of the process; returns its exit status.

        With `skip_drain`, send a second SIGTERM as soon as the daemon stops.
        """
        before = len(self.told)
        self.process.send_signal(signal.SIGTERM)
        if skip_drain:
            self.wait_until_told("STOPPING=1", before)
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def restart(self) -> None:
        """Send SIGTERM, wait for the end of the process, and start it again. Raises RuntimeError if it fails."""
        status = self.stop()
        if status != 0:
            raise RuntimeError(f"storaged ended with {status}:\n{self.events}")
        self.start()

    def reload(self) -> None:
        """Send SIGHUP and wait until the daemon is ready again. Raises RuntimeError if it fails."""
        before = len(self.told)
        self.process.send_signal(signal.SIGHUP)
        self.wait_until_told("READY=1", self.wait_until_told("RELOADING=1", before))

    def replace_worker(self) -> None:
        """Send SIGTERM to a worker, and wait until another one has been started. Raises RuntimeError if it fails."""
        # The newest: after a reload, the others may be draining.
        before = self.workers()
        os.kill(before[-1], signal.SIGTERM)
        wait_until(lambda: not is_alive(before[-1]) and {*self.workers()} - {*before})

    def kill(self) -> None:
        """Send SIGKILL to all processes and wait for their end."""
        workers = self.workers()
        super().kill()
        for worker in workers:
            signal_worker(worker, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, workers)))

    def workers(self) -> list[int]:
        """The numbers of the worker processes that live, in the order of their start."""
        # Children of the main thread: the process that prepares a start or a reload is one of another thread.
        number = self.process.pid
        try:
            children = Path(f"/proc/{number}/task/{number}/children").read_text("ascii").split()
        except OSError:
            return []
        return [int(child) for child in children if b"serve" in _command(int(child)) and is_alive(int(child))]

    def wait_for_workers(self, count: int, without: tuple[int, ...] = ()) -> list[int]:
        """Wait until there are so many workers, none of which is one of `without`; returns their numbers."""
        wait_until(lambda: len(self.workers()) == count and not {*self.workers()} & {*without})
        return self.workers()

    def wait_until_told(self, assignment: str, since: int = 0) -> int:
        """Wait for a message with this assignment, from number `since` on; returns the number of the next one."""
        end = time.monotonic() + SECONDS
        while True:
            for number, (_, message) in enumerate(self.told[since:], since):
                if assignment in message.splitlines():
                    return number + 1
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"storaged has not told {assignment}:\n{self.events}")
            time.sleep(0.01)

    def _receive(self) -> None:
        while True:
            message = self._manager.recv(10_000).decode()
            self.told.append((time.monotonic(), message))


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until a condition holds. Raises RuntimeError after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"it has not happened within {seconds:g} s")
        time.sleep(0.01)


def is_alive(number: int) -> bool:
    """Whether a process exists and is no zombie. See proc_pid_stat(5)."""
    try:
        state = Path(f"/proc/{number}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def signal_worker(worker: int, number: int) -> bool:
    """Send a signal to a process; returns whether there was one."""
    try:
        os.kill(worker, number)
    except ProcessLookupError:
        return False
    return True


def _command(number: int) -> list[bytes]:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
