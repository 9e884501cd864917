"""A real systemd in namespaces of its own, with storaged's units: `boot.sh` says what it has, and what it needs."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.daemon import ROOT

BOOT_SECONDS = 60
COMMAND_SECONDS = 120
#: Of the kernel: see setns(2).
CLONE_NEWNET = 0x40000000
#: The Python of the units, with everything that storaged needs.
PYTHON = "/opt/storaged/bin/python"


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until a condition holds; `what` says what has not happened if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}, in {seconds} s"
        time.sleep(0.02)


class System:
    """A system that systemd has booted.

    Attributes:
        folder: what it has on the disk; `etc` is its /etc, `var` its /var/lib.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "boot.log"

    def boot(self) -> None:
        """Start it, and wait until it is up.

        Raises:
            RuntimeError: it cannot run here.
        """
        if os.geteuid() != 0 or not shutil.which("systemctl") or not shutil.which("unshare"):
            raise RuntimeError("the tests under systemd need root, and apt-get install systemd util-linux")
        packages = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
        command = [
            str(ROOT / "tests" / "systemd" / "boot.sh"),
            str(self.folder),
            sys.base_prefix,
            f"python{sys.version_info.major}.{sys.version_info.minor}",
            ":".join(packages),
            str(ROOT),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            until(self._is_up, "systemd is not up", BOOT_SECONDS)
        except AssertionError as error:
            self.end()
            raise RuntimeError(f"no systemd can be booted here: {error}\n{self._log.read_text('utf-8')}") from error

    def end(self) -> None:
        """Kill it, with all that runs in it."""
        self._process.terminate()
        self._process.wait(COMMAND_SECONDS)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in it, as root; returns what it writes."""
        entering = ["nsenter", "--all", "--target", str(self._pid), *command]
        done = subprocess.run(entering, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}\n{self.journal()}"
        return done.stdout + done.stderr

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, such as MainPID."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self) -> str:
        """Everything that was logged so far, by systemd and by the units."""
        # Whatever a process has written before it ended must be there.
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "--no-pager", "--output=cat", check=False)

    def status(self, pid: int) -> Mapping[str, str]:
        """The fields of a process's /proc/PID/status; see proc(5)."""
        lines = self.run("cat", f"/proc/{pid}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @contextmanager
    def network(self) -> Iterator[None]:
        """Let this thread, and those that it starts, be in its network: sockets stay where they were made."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open("rb") as outside, self._network().open("rb") as inside:
            _enter(libc, inside.fileno())
            try:
                yield
            finally:
                _enter(libc, outside.fileno())

    @property
    def root(self) -> Path:
        """Its root folder, as this system sees it."""
        return Path(f"/proc/{self._pid}/root")

    @property
    def _pid(self) -> int:
        return int((self.folder / "pid").read_text("ascii"))

    def _network(self) -> Path:
        return Path(f"/proc/{self._pid}/ns/net")

    def _is_up(self) -> bool:
        assert self._process.poll() is None, "it has ended"
        path = self.folder / "pid"
        # The script has not made all of its mounts before it becomes systemd.
        if not path.exists() or not path.read_text("ascii").endswith("\n"):
            return False
        if Path(f"/proc/{self._pid}/comm").read_text("ascii").strip() != "systemd":
            return False
        return self.run("systemctl", "is-system-running", check=False).strip() == "running"


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def booted(folder: Path) -> Iterator[System]:
    """Boot a system, and end it."""
    system = System(folder)
    system.boot()
    try:
        yield system
    finally:
        system.end()
