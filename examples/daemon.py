"""Runs a storaged in a process of its own, which an example can kill and restart."""

from __future__ import annotations

import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater

#: Seconds between two checks of the process.
INTERVAL = 0.05
#: Seconds that the start may take; and the stop, in which requests under way are completed.
START_LIMIT = 30
STOP_LIMIT = 30


class DaemonFailed(Exception):
    """The daemon did not start, or did not stop with status 0. str() has the end of its log."""


class Daemon:
    """A process of `twistd -n storaged` on `port` of this machine with `options`; it logs to the file `log`."""

    def __init__(self, reactor: Any, port: int, options: Sequence[str], log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._reactor = reactor
        self._log = log
        twistd = Path(sysconfig.get_path("scripts"), "twistd")
        bind = f"--bind=127.0.0.1:{port}"
        self._command = [sys.executable, str(twistd), "--nodaemon", "--pidfile=", "storaged", bind, *options]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the daemon, unless it runs, and wait until it answers.

        Raises:
            DaemonFailed: it ended, or did not answer in time; or another server answers on the port.
        """
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = await self._spawn()
        give_up = self._reactor.seconds() + START_LIMIT
        while not await self._answers():
            if process.poll() is not None or self._reactor.seconds() > give_up:
                raise self.failed("did not start")
            await self.sleep(INTERVAL)

    async def kill(self) -> None:
        """End the daemon with SIGKILL: no handler runs, and nothing is flushed."""
        process = self._process
        assert process is not None
        process.kill()
        await self._ended(process)

    async def stop(self) -> None:
        """End the daemon with SIGTERM, if it runs.

        Raises:
            DaemonFailed: its exit status was not 0, or it had to be killed.
        """
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        if await self._ended(process) != 0:
            raise self.failed("did not stop with status 0")

    def peak_rss(self) -> int:
        """The peak of its resident memory since the last start, in bytes. See proc_pid_status(5)."""
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    def sleep(self, seconds: float) -> Deferred[None]:
        """Let the reactor run for a while."""
        return deferLater(self._reactor, seconds, lambda: None)

    def failed(self, what: str) -> DaemonFailed:
        """An error with a description and the end of the log."""
        log = self._log.read_text("utf-8", "replace").splitlines()
        return DaemonFailed("\n".join([f"{' '.join(self._command)} {what}:", *log[-20:]]))

    async def _spawn(self) -> subprocess.Popen[bytes]:
        # The daemon could not listen, and the example would talk to another server.
        if await self._answers():
            raise DaemonFailed(f"{self.url} answers already: expected a free port")
        return self._popen()

    def _popen(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            # A session of its own, so that Ctrl-C interrupts only the example, which then needs the daemon to clean up.
            return subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def _answers(self) -> bool:
        try:
            response = await treq.get(self.url + "/health", persistent=False, timeout=START_LIMIT)
        except ConnectError:
            return False
        await treq.content(response)
        return bool(response.code == 200)

    async def _ended(self, process: subprocess.Popen[bytes]) -> int:
        give_up = self._reactor.seconds() + STOP_LIMIT
        while process.poll() is None:
            if self._reactor.seconds() > give_up:
                process.kill()
            await self.sleep(INTERVAL)
        return process.wait()


def free_port() -> int:
    """A free TCP port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
