"""Runs a real `twistd storaged` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from uuid import uuid4

ROOT = Path(__file__).parent.parent
TWISTD = Path(sys.executable).parent / "twistd"
START_SECONDS = 60
STOP_SECONDS = 30

_LISTENS = re.compile(r"listens on ([\d.]+):(\d+)")


class Daemon:
    """A daemon on a free port, and on the embedded bucket unless `config` names another; `with` starts and kills it.

    Attributes:
        COMMAND: the command to which the options are appended.
    """

    COMMAND: ClassVar = [str(TWISTD), "-n", "--pidfile=", "storaged"]

    def __init__(self, folder: Path, *options: str, config: str | None = None, launcher: Sequence[str] = ()) -> None:
        """Prepare the daemon; `launcher` is a command that runs the command which is appended to it."""
        self.folder = folder
        self.data = folder / "data"
        self.log_path = folder / "storaged.log"
        self._launcher = launcher
        secrets = folder / "secrets.toml"
        if not secrets.exists():
            secrets.touch(0o600)
        self._options = [*options, "--secrets", str(secrets)]
        if config is not None:
            path = folder / "lakehouse.toml"
            path.write_text(config, "utf-8")
            self._options += ["--config", str(path)]
        if config is None or ("[s3]" not in config and "[buckets.primary]" not in config):
            self._options += ["--data", str(self.data)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def log(self) -> str:
        """Its output since the last start."""
        return self.log_path.read_text("utf-8", "replace")

    @property
    def events(self) -> str:
        """The end of its output, without the access log."""
        lines = [line for line in self.log.splitlines() if "[storaged.access" not in line and "HTTP/1.1" not in line]
        return "\n".join(lines[-100:])

    @property
    def warnings(self) -> list[str]:
        """The warnings and errors of its output, without their times."""
        found = [line.partition(" ")[2] for line in self.log.splitlines()]
        return [line for line in found if any(f"#{level}]" in line for level in ("warn", "error", "critical"))]

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its process."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "XDG_DATA_HOME": str(self.folder / "home"),
        }

    def spawn(self, bind: str = "tcp:0:interface=127.0.0.1") -> subprocess.Popen[bytes]:
        """Start the process without waiting for it."""
        command = [*self._launcher, *self.COMMAND, "--bind", bind, *self._options]
        with self.log_path.open("wb") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=self.environ)

    def start(self) -> None:
        """Start the process and wait until it listens."""
        self.process = self.spawn()
        end = time.monotonic() + START_SECONDS
        while not (match := _LISTENS.search(self.log)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"storaged did not start:\n{self.log}")
            time.sleep(0.02)
        self.port = int(match[2])

    def settle(self) -> None:
        """Wait until the access log has all requests that were answered so far."""
        path = f"/health?{uuid4().hex}"
        with self.connect() as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            client.recv(1000)
        end = time.monotonic() + STOP_SECONDS
        while path not in self.log:
            assert time.monotonic() < end, "the access log is not written"
            time.sleep(0.02)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        self.process.kill()
        self.process.wait()

    def stop(self, *, skip_drain: bool = False) -> int:
        """Send SIGTERM and wait for the end of the process; returns its exit status.

        With `skip_drain`, send a second SIGTERM when the daemon has closed its port.
        """
        self.process.send_signal(signal.SIGTERM)
        if skip_drain:
            end = time.monotonic() + STOP_SECONDS
            while "Closed)" not in self.log.rpartition("listens on")[2]:
                assert time.monotonic() < end, "the port is not closed"
                time.sleep(0.02)
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def connect(self) -> socket.socket:
        """Open a TCP connection to the daemon."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def peak_rss(self) -> int:
        """The peak of its resident memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def open_files(self) -> int:
        """The number of its open files."""
        # Only root may list the folder of a process that cannot be dumped; its size is the number since Linux 6.2.
        folder = Path(f"/proc/{self.process.pid}/fd")
        return folder.stat().st_size or len(os.listdir(folder))
