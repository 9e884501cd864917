"""The units of etc/, as they are, run by a real systemd: under all restrictions, and through restarts.

`tests/systemd/boot.sh` boots it in namespaces of its own. `tests/test_units.py` tests what the units say.
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import engines
from tests.daemon import ROOT
from tests.integration.test_daemon import head
from tests.systemd import PYTHON, System, booted, until
from twisted_storaged.config_file import DEFAULT_SECRETS

pytestmark = pytest.mark.full

LOCAL = "storaged-local.service"
S3 = "storaged.service"
PORT = 3211
#: An address of documentation networks (RFC 5737), which the tests give to the loopback interface.
OTHER_HOST = "192.0.2.1"
#: What goes wrong when the port is closed, and nothing else stands in the way.
CLOSED = "ECONNREFUSED"
LARGE = bytes(range(256)) * (80 << 10)


class Units:
    """The units in a system, and requests to the daemon that they run."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._etc = system.folder / "etc"

    def install(self, *units: str) -> None:
        """Copy units of etc/, and start them as an operator does."""
        for unit in units:
            shutil.copy(ROOT / "etc" / unit, self._etc / "systemd" / "system")
        self.system.run("systemctl", "enable", "--now", *units)

    def drop_in(self, unit: str, text: str) -> None:
        """Add settings of the section [Service] to a unit."""
        folder = self._etc / "systemd" / "system" / f"{unit}.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(f"[Service]\n{text}\n", "utf-8")

    def main_pid(self, unit: str) -> int:
        """The process id of the daemon; 0 if it does not run."""
        return int(self.system.show(unit, "MainPID"))

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

    def serves_objects(self) -> None:
        """Put, get, list and delete a small and a large object."""
        bodies = {"some/small": b"small", "some/large": LARGE}
        for key, body in bodies.items():
            assert self.ask("PUT", f"/objects/{key}", body)[0] in (200, 201)
            assert self.ask("GET", f"/objects/{key}") == (200, body)
        listed = self.ask("GET", "/storage/list?prefix=some/")[1]
        assert all(key.encode() in listed for key in bodies)
        for key in bodies:
            assert self.ask("DELETE", f"/objects/{key}")[0] in (200, 204)
            assert self.ask("GET", f"/objects/{key}")[0] == 404

    def is_restricted(self, unit: str) -> None:
        """The daemon is no root, has no capabilities and a filter of system calls, and writes no core dumps."""
        pid = self.main_pid(unit)
        status = self.system.status(pid)
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert "0" not in status["Uid"].split()
        limits = self.system.run("cat", f"/proc/{pid}/limits")
        (core,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[-3:-1] == ["0", "0"]


@pytest.fixture
def units(tmp_path: Path) -> Iterator[Units]:
    """A system without storaged."""
    with booted(tmp_path) as system:
        yield Units(system)


@pytest.fixture
def local(units: Units) -> Units:
    """A system with the local-only service."""
    units.install(LOCAL)
    return units


class LocalTests:
    """The local-only service, as it is shipped."""

    def test_works_without_any_file(self, local: Units) -> None:
        """It starts, serves objects, and has nothing but what it needs; systemd has applied all of its settings."""
        assert local.system.show(LOCAL, "StatusText") == "ready"
        local.serves_objects()
        local.is_restricted(LOCAL)
        assert {path.name for path in (local.system.folder / "var" / "private").iterdir()} == {"storaged"}
        # What systemd cannot apply here, or does not know, it says and goes on.
        lines = local.system.run("journalctl", "--no-pager", "--output=cat", "--priority=warning", "_PID=1")
        assert lines.strip() in ("", "-- No entries --")

    def test_has_no_more_rights(self, units: Units) -> None:
        """Under the service's settings, all else that a program may try fails; what the daemon needs does not."""
        shutil.copy(ROOT / "tests" / "systemd" / "probe.py", units.system.folder / "opt")
        with units.system.network(), socket.socket() as any_socket:
            # SIOCSIFADDR of netdevice(7): an address to which a service that is not restricted could connect.
            address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(OTHER_HOST))
            fcntl.ioctl(any_socket, 0x8916, address)
            assert errno.errorcode[any_socket.connect_ex((OTHER_HOST, 9))] == CLOSED
        units.drop_in(LOCAL, f"ExecStartPre={PYTHON} /opt/probe.py {OTHER_HOST}")
        units.install(LOCAL)
        path = units.system.folder / "var" / "private" / "storaged" / "probe.json"
        outcomes = json.loads(path.read_text("utf-8"))
        assert outcomes.pop("connect to this host") == CLOSED
        needed = ("the boot id", "memory files", "unix sockets", "a child process")
        assert [outcomes.pop(name) for name in needed] == ["allowed"] * len(needed)
        assert outcomes == {
            "connect to another host": "no answer",
            "netlink": "EAFNOSUPPORT",
            "packets": "EAFNOSUPPORT",
            "writable code": "EPERM",
            "write /etc": "EROFS",
            "write the program": "EROFS",
            "write /proc/sys": "EROFS",
            "read a home": "EACCES",
            "new namespace": "EPERM",
            "personality": "EPERM",
            "set-user-id": "EPERM",
            "chown": "EPERM",
            "nice": "EPERM",
            "real time": "EPERM",
            "ptrace": "EPERM",
            "hostname": "EPERM",
            "kernel log": "ENOENT",
            "see other processes": "ENOENT",
            "raise the core limit": "not allowed",
        }

    def test_a_stop_waits_for_a_put(self, local: Units) -> None:
        """A PUT that is under way when the service is stopped is answered 200, and its object is kept."""
        with local.connect() as client:
            client.sendall(head("half", 10) + b"12345")
            local.ask("GET", "/health")
            local.system.run("systemctl", "stop", "--no-block", LOCAL)
            until(lambda: local.system.show(LOCAL, "ActiveState") == "deactivating", "the service does not stop")
            client.sendall(b"67890")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        until(lambda: local.system.show(LOCAL, "ActiveState") == "inactive", "the service has not stopped")
        assert local.system.show(LOCAL, "Result") == "success"
        local.system.run("systemctl", "start", LOCAL)
        assert local.ask("GET", "/objects/half") == (200, b"1234567890")

    @pytest.mark.parametrize("number", ["KILL", "STOP"])
    def test_a_daemon_that_dies_or_hangs(self, units: Units, number: str) -> None:
        """A daemon that was killed, or that does not ping the watchdog, is started again, with its objects."""
        units.drop_in(LOCAL, "WatchdogSec=2")
        units.install(LOCAL)
        assert units.ask("PUT", "/objects/kept", LARGE)[0] == 200
        pid = units.main_pid(LOCAL)
        units.system.run("kill", f"-{number}", str(pid))
        until(lambda: units.main_pid(LOCAL) not in (0, pid), "the daemon is not started again")
        until(lambda: units.system.show(LOCAL, "ActiveState") == "active", "the daemon does not get ready")
        assert units.ask("GET", "/objects/kept") == (200, LARGE)
        assert units.system.show(LOCAL, "NRestarts") == "1"
        assert ("Watchdog timeout" in units.system.journal()) == (number == "STOP")


class S3Tests:
    """The service for S3, on moto."""

    def test_serves_objects(self, units: Units) -> None:
        """It serves objects from S3, with credentials that only root can read, and is as restricted."""
        with units.system.network(), engines.moto() as moto:
            text = moto.toml(moto.new_bucket())
            keys = [line for line in text.splitlines() if "access_key" in line]
            lakehouse = units.system.folder / "etc" / "lakehouse"
            (lakehouse / "lakehouse.toml").write_text(
                "\n".join(line for line in text.splitlines() if line not in keys), "utf-8"
            )
            secrets = lakehouse / DEFAULT_SECRETS.name
            secrets.touch(0o600)
            secrets.write_text("\n".join(["[s3]", *keys]), "utf-8")
            units.install(S3)
            units.serves_objects()
            units.is_restricted(S3)
            units.system.run("systemctl", "stop", S3)
            assert units.system.show(S3, "Result") == "success"
