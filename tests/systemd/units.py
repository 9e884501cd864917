"""The units of etc/ in a system of the tests, and requests to the daemon that they run."""

from __future__ import annotations

import http.client
import shutil
import socket

from tests.daemon import ROOT
from tests.systemd import System, until
from tests.systemd.load import Load

LOCAL = "storaged-local.service"
SOCKET = "storaged.socket"
PORT = 3211


class Units:
    """The units in a system, and requests to the daemon that they run.

    Attributes:
        system: the system.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self._etc = system.folder / "etc"

    def install(self, *units: str) -> None:
        """Copy units of etc/, and start them as an operator does."""
        self.copy(*units)
        self.system.run("systemctl", "enable", "--now", *units)

    def copy(self, *units: str) -> None:
        """Copy units of etc/."""
        for unit in units:
            shutil.copy(ROOT / "etc" / unit, self._etc / "systemd" / "system")

    def drop_in(self, unit: str, text: str, section: str = "Service") -> None:
        """Add settings of a section to a unit."""
        folder = self._etc / "systemd" / "system" / f"{unit}.d"
        folder.mkdir(exist_ok=True)
        with (folder / "test.conf").open("a", encoding="utf-8") as file:
            file.write(f"[{section}]\n{text}\n")

    def configure(self, unit: str, text: str) -> None:
        """Let the service of an embedded bucket run by this configuration."""
        path = self._etc / "lakehouse" / "lakehouse.toml"
        path.write_text(text, "utf-8")
        command = f"/opt/storaged/bin/storaged serve --config /etc/lakehouse/{path.name}"
        self.drop_in(unit, f"ExecStart=\nExecStart={command}")

    def main_pid(self, unit: str) -> int:
        """The process id of the daemon; 0 if it does not run."""
        return int(self.system.show(unit, "MainPID"))

    def workers(self, unit: str) -> set[int]:
        """The process ids of the daemon's workers, if it has any."""
        listed = self.system.run("cat", f"/sys/fs/cgroup/system.slice/{unit}/cgroup.procs").split()
        return {int(word) for word in listed} - {self.main_pid(unit)}

    def wait_for_state(self, unit: str, state: str) -> None:
        """Wait until a unit is active, inactive, or in another state."""
        until(lambda: self.system.show(unit, "ActiveState") == state, f"{unit} is not {state}")

    def connect(self) -> socket.socket:
        """Open a connection to the daemon."""
        with self.system.network():
            return socket.create_connection(("127.0.0.1", PORT), timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send one request on a connection of its own; returns the status and the body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", PORT)
        connection.sock = self.connect()
        connection.request(method, path, body, {"Connection": "close"})
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def start_socket(self, workers: int) -> None:
        """Start the local-only service with so many workers, at its socket."""
        self.copy(LOCAL, SOCKET)
        self.configure(LOCAL, f"[storaged]\nworkers = {workers}\n")
        self.system.run("systemctl", "enable", LOCAL)
        self.system.run("systemctl", "enable", "--now", SOCKET)
        self.system.run("systemctl", "start", LOCAL)

    def replace(self, verb: str, load: Load) -> None:
        """Restart or reload the local-only service, and wait until some more requests of a load are answered."""
        self.system.run("systemctl", verb, LOCAL)
        self.wait_for_state(LOCAL, "active")
        load.wait_for(20)
