"""The units of etc/, as they are, run by a real systemd: under all restrictions, and through restarts.

`tests/systemd/boot.sh` boots it in namespaces of its own. `tests/test_units.py` tests what the units say.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import engines
from tests.daemon import ROOT
from tests.integration.test_daemon import head
from tests.systemd import PYTHON, booted, until
from tests.systemd.load import Load
from tests.systemd.units import LOCAL, SOCKET, Units
from twisted_storaged.config_file import DEFAULT_SECRETS

pytestmark = pytest.mark.full

S3 = "storaged.service"
#: An address of documentation networks (RFC 5737), which the tests give to the loopback interface.
OTHER_HOST = "192.0.2.1"
#: What goes wrong when the port is closed, and nothing else stands in the way.
CLOSED = "ECONNREFUSED"
#: How often a daemon is replaced.
ROUNDS = 5
LARGE = bytes(range(256)) * (80 << 10)


def assert_serves(units: Units) -> None:
    """Put, get, list and delete a small and a large object."""
    bodies = {"some/small": b"small", "some/large": LARGE}
    for key, body in bodies.items():
        assert units.ask("PUT", f"/objects/{key}", body)[0] in (200, 201)
        assert units.ask("GET", f"/objects/{key}") == (200, body)
    listed = units.ask("GET", "/storage/list?prefix=some/")[1]
    assert all(key.encode() in listed for key in bodies)
    for key in bodies:
        assert units.ask("DELETE", f"/objects/{key}")[0] in (200, 204)
        assert units.ask("GET", f"/objects/{key}")[0] == 404


def assert_restricted(units: Units, unit: str) -> None:
    """The daemon is no root, has no capabilities and a filter of system calls, and writes no core dumps."""
    for pid in {units.main_pid(unit)} | units.workers(unit):
        assert_restricted_process(units, pid)


def assert_restricted_process(units: Units, pid: int) -> None:
    """The same, for one process."""
    status = units.system.status(pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert "0" not in status["Uid"].split()
    limits = units.system.run("cat", f"/proc/{pid}/limits")
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
        assert local.system.show(LOCAL, "ActiveState") == "active"
        assert_serves(local)
        assert_restricted(local, LOCAL)
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
            local.wait_for_state(LOCAL, "deactivating")
            client.sendall(b"67890")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        local.wait_for_state(LOCAL, "inactive")
        assert local.system.show(LOCAL, "Result") == "success"
        local.system.run("systemctl", "start", LOCAL)
        assert local.ask("GET", "/objects/half") == (200, b"1234567890")

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("number", ["KILL", "STOP"])
    def test_a_daemon_that_dies_or_hangs(self, units: Units, number: str, workers: int) -> None:
        """A daemon that was killed, or that does not ping the watchdog, is started again, with its objects."""
        units.drop_in(LOCAL, "WatchdogSec=2")
        units.configure(LOCAL, f"[storaged]\nworkers = {workers}\n")
        units.install(LOCAL)
        assert units.ask("PUT", "/objects/kept", LARGE)[0] == 200
        pid = units.main_pid(LOCAL)
        units.system.run("kill", f"-{number}", str(pid))
        until(lambda: units.main_pid(LOCAL) not in (0, pid), "the daemon is not started again")
        units.wait_for_state(LOCAL, "active")
        assert units.ask("GET", "/objects/kept") == (200, LARGE)
        assert units.system.show(LOCAL, "NRestarts") == "1"
        assert ("Watchdog timeout" in units.system.journal()) == (number == "STOP")


class SocketTests:
    """The socket."""

    def test_a_connection_starts_the_daemon(self, units: Units) -> None:
        """The first connection starts the service, which listens at the socket's addresses only."""
        units.copy(LOCAL, SOCKET)
        path = "/run/storaged.sock"
        units.drop_in(SOCKET, f"ListenStream={path}", "Socket")
        units.system.run("systemctl", "enable", LOCAL)
        units.system.run("systemctl", "enable", "--now", SOCKET)
        assert units.main_pid(LOCAL) == 0
        assert units.ask("GET", "/health")[0] == 200
        assert units.main_pid(LOCAL) != 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(units.system.root / path[1:]))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("verb", ["restart", "reload"])
    def test_replaced_under_load(self, units: Units, verb: str, workers: int) -> None:
        """No request is refused and no object is torn, while the daemon is restarted or reloaded again and again."""
        units.start_socket(workers)
        with Load(units.connect) as load:
            for _ in range(ROUNDS):
                units.replace(verb, load)
        assert load.failures == {}, units.system.journal()
        # Idle connections are closed: at most that of the one client that has one, each time.
        assert load.retried <= ROUNDS
        # Those that drain have an end.
        until(lambda: len(units.workers(LOCAL)) == (workers if workers > 1 else 0), "the workers do not end")
        assert_restricted(units, LOCAL)

    @pytest.mark.parametrize("number", ["KILL", "STOP"])
    def test_a_worker_that_dies_or_hangs(self, units: Units, number: str) -> None:
        """A worker that is killed or hangs is replaced, by a process as restricted; the service goes on as it was."""
        units.configure(LOCAL, "[storaged]\nworkers = 2\n")
        units.install(LOCAL)
        pid = units.main_pid(LOCAL)
        workers = units.workers(LOCAL)
        assert len(workers) == 2
        units.system.run("kill", f"-{number}", str(min(workers)))
        until(lambda: len(units.workers(LOCAL) - workers) == 1, "no worker is started", 120)
        assert_serves(units)
        assert units.main_pid(LOCAL) == pid
        assert units.system.show(LOCAL, "ActiveState") == "active"
        for worker in units.workers(LOCAL):
            assert_restricted_process(units, worker)


class ReloadTests:
    """Reloads, which are replacements."""

    @pytest.mark.parametrize("workers", [1, 2])
    def test_settings(self, units: Units, workers: int) -> None:
        """New settings have effect; with settings that are wrong, the daemon goes on as it was, and says why."""
        body = LARGE[: 2 << 20]
        first = f"[storaged]\nworkers = {workers}\n"
        units.configure(LOCAL, first)
        units.install(LOCAL)
        assert units.ask("PUT", "/objects/some", body)[0] == 200
        units.configure(LOCAL, f'{first}[[policy]]\nprefix = ""\nmax_put = "1 MiB"\n')
        units.system.run("systemctl", "reload", LOCAL)
        until(lambda: units.ask("PUT", "/objects/some", body)[0] == 413, "the settings have no effect")
        units.wait_for_state(LOCAL, "active")
        pid = units.main_pid(LOCAL)
        units.configure(LOCAL, f'{first}[[policy]]\nprefix = ""\nmax_put = "many"\n')
        units.system.run("systemctl", "reload", LOCAL)
        until(lambda: "max_put" in units.system.journal(), "nobody says what is wrong")
        units.wait_for_state(LOCAL, "active")
        assert units.ask("PUT", "/objects/some", body)[0] == 413
        assert units.ask("GET", "/objects/some") == (200, body)
        assert units.main_pid(LOCAL) == pid


class S3Tests:
    """The service for S3, on moto."""

    def configure(self, units: Units, moto: engines.Engine, bucket: str, workers: int = 1) -> None:
        """Write the configuration, and the secrets, which only root can read."""
        lines = moto.toml(bucket).splitlines()
        keys = [line for line in lines if "access_key" in line]
        others = [f"[storaged]\nworkers = {workers}", *(line for line in lines if line not in keys)]
        lakehouse = units.system.folder / "etc" / "lakehouse"
        (lakehouse / "lakehouse.toml").write_text("\n".join(others), "utf-8")
        secrets = lakehouse / DEFAULT_SECRETS.name
        secrets.touch(0o600)
        secrets.write_text("\n".join(["[s3]", *keys]), "utf-8")

    @pytest.mark.parametrize("workers", [1, 2])
    def test_waits_for_s3(self, units: Units, workers: int) -> None:
        """While the bucket is not there, the service says that it waits for it, and is not started again."""
        bucket = f"later-{workers}"
        units.drop_in(S3, "TimeoutStartSec=10")
        units.copy(S3)
        with units.system.network(), engines.moto() as moto:
            self.configure(units, moto, bucket, workers)
            units.system.run("systemctl", "start", "--no-block", S3)
            late = time.monotonic() + 13
            until(lambda: time.monotonic() > late, "it is not late")
            assert "the primary bucket" in units.system.show(S3, "StatusText")
            assert units.system.show(S3, "ActiveState") == "activating"
            moto.client().create_bucket(Bucket=bucket)
            units.wait_for_state(S3, "active")
        assert units.system.show(S3, "NRestarts") == "0"

    def test_serves_objects(self, units: Units) -> None:
        """It serves objects from S3, with credentials that only root can read, and is as restricted."""
        with units.system.network(), engines.moto() as moto:
            self.configure(units, moto, moto.new_bucket())
            units.install(S3)
            assert_serves(units)
            assert_restricted(units, S3)
            units.system.run("systemctl", "stop", S3)
            assert units.system.show(S3, "Result") == "success"
