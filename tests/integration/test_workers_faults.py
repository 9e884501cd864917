"""Bad input for a daemon with workers, and for reloads, as processes: no object is lost and no slot stays taken.

What a plain `pytest` runs is with two workers; the marker `full` adds one worker, and what takes longer.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.activated import ActivatedDaemon, is_alive, wait_until
from tests.daemon import ROOT, START_SECONDS, STOP_SECONDS, TWISTD, Daemon
from tests.integration.test_daemon import ask, handles, head
from tests.integration.test_serve import ServedDaemon
from tests.test_check import certificate

SLOTS = 4
NOBODY = 65534


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.full), 2])
def workers(request: pytest.FixtureRequest) -> int:
    """How many workers a daemon has."""
    number: int = request.param
    return number


def config(workers: object, more: str = "") -> str:
    return f"[storaged]\nworkers = {workers}\n{more}"


def put_some(daemon: Daemon, *keys: str) -> None:
    """Put small and large objects."""
    for key in keys:
        assert ask(daemon, "PUT", f"/storage/put/{key}", content(key))[0] == 200


def content(key: str) -> bytes:
    return f"{key}/".encode() * (100_000 if key.startswith("large") else 1)


def assert_whole(daemon: Daemon, *keys: str) -> None:
    """The objects are there, all slots are free, and nothing unexpected is in the log."""
    for key in keys:
        assert ask(daemon, "GET", f"/storage/get/{key}") == (200, content(key))
    assert_slots_free(daemon)
    assert_clean(daemon)


def assert_slots_free(daemon: Daemon) -> None:
    """As many PUTs as there are slots are accepted at once, from one client after the other, and one more is not."""
    clients = []
    for number in range(SLOTS + 1):
        client = daemon.connect()
        client.sendall(head(f"slot/{number}", 5, expect=True))
        clients.append(client)
        assert client.recv(100).startswith(b"HTTP/1.1 503 " if number == SLOTS else b"HTTP/1.1 100 ")
    for client in clients[:SLOTS]:
        client.sendall(b"hello")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    for client in clients:
        client.close()


def assert_clean(daemon: Daemon) -> None:
    """The log has no traceback."""
    assert "Traceback" not in daemon.log, daemon.log
    assert "Unhandled" not in daemon.log, daemon.log


def are_gone(numbers: list[int]) -> bool:
    """Whether all these processes have ended."""
    return not any(map(is_alive, numbers))


def wait_for_log(daemon: Daemon, text: str, count: int = 1) -> None:
    wait_until(lambda: daemon.log.count(text) >= count, START_SECONDS)


class NotifySocketTests:
    """The service manager's socket and its watchdog."""

    def serves(self, tmp_path: Path, workers: int, *variables: str) -> ServedDaemon:
        """Start, reload and stop a daemon with these variables; returns it."""
        with ServedDaemon(tmp_path, config=config(workers), launcher=["env", *variables]) as daemon:
            put_some(daemon, "a")
            daemon.process.send_signal(signal.SIGHUP)
            wait_for_log(daemon, "storaged has stopped" if workers == 1 else "reloaded: ")
            if workers == 1:
                wait_for_log(daemon, "listens on", 2)
            assert_whole(daemon, "a")
            assert daemon.stop() == 0
        assert_clean(daemon)
        return daemon

    @pytest.mark.parametrize("kind", ["missing", pytest.param("file", marks=pytest.mark.full)])
    def test_a_broken_socket(self, tmp_path: Path, workers: int, kind: str) -> None:
        """A socket that cannot be sent to is logged once by each process, and the daemon serves."""
        if kind == "file":
            (tmp_path / "notify").touch()
        daemon = self.serves(tmp_path, workers, f"NOTIFY_SOCKET={tmp_path}/notify")
        # With one worker, the program that is run again logs it, too.
        assert daemon.log.count("cannot notify the service manager") == (2 if workers == 1 else 1)

    @pytest.mark.full
    def test_a_full_socket(self, tmp_path: Path, workers: int) -> None:
        """A service manager that does not read does not delay the daemon."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
                filling.setblocking(False)
                filling.connect(str(tmp_path / "notify"))
                with pytest.raises(BlockingIOError):
                    fill(filling)
            self.serves(tmp_path, workers, f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=1000000")

    @pytest.mark.full
    @pytest.mark.parametrize("interval", ["0", "x", "999999", "9" * 30])
    def test_a_watchdog_that_makes_no_sense(self, tmp_path: Path, interval: str) -> None:
        """An interval that cannot be kept is ignored, and logged."""
        daemon = self.serves(tmp_path, 2, f"NOTIFY_SOCKET={tmp_path}/notify", f"WATCHDOG_USEC={interval}")
        assert f"the watchdog interval '{interval}' is ignored" in daemon.log


def fill(sending: socket.socket) -> None:
    """Send until there is no more room."""
    while True:
        sending.send(b"x")


class HangupTests:
    """SIGHUP, whenever it comes."""

    @pytest.mark.full
    def test_in_mid_start(self, tmp_path: Path, workers: int) -> None:
        """While the daemon starts, it reloads when it serves."""
        for delay in (0, 0.2, 0.5):
            daemon = ServedDaemon(tmp_path, config=config(workers))
            daemon.process = daemon.spawn()
            wait_until(partial(handles, daemon.process.pid, signal.SIGHUP))
            time.sleep(delay)
            for _ in range(3):
                daemon.process.send_signal(signal.SIGHUP)
            wait_for_log(daemon, "reloads: " if workers == 1 else "reloaded: ")
            if workers == 1:
                wait_for_log(daemon, "listens on", 2)
            daemon.port = int(daemon.log.split("listens on 127.0.0.1:")[1].split()[0])
            put_some(daemon, "a", "large-a")
            assert_whole(daemon, "a", "large-a")
            assert daemon.stop() == 0

    def test_in_mid_drain(self, tmp_path: Path, workers: int) -> None:
        """While the daemon drains, it has no effect: the PUT under way completes, and the daemon ends."""
        with ActivatedDaemon(tmp_path, config=config(workers)) as daemon:
            client = daemon.connect()
            client.sendall(head("a", 2, expect=True))
            assert client.recv(100).startswith(b"HTTP/1.1 100 ")
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_until_told("STOPPING=1")
            for _ in range(3):
                daemon.process.send_signal(signal.SIGHUP)
            wait_for_log(daemon, "the reload is ignored: the daemon stops")
            client.sendall(b"a/")
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
            assert daemon.process.wait(STOP_SECONDS) == 0
            daemon.start()
            assert_whole(daemon, "a")

    @pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.full), 20])
    def test_in_a_row(self, tmp_path: Path, workers: int, count: int) -> None:
        """Many at once lead to one reload, or to one and another, and to no more processes than there are to be."""
        with ActivatedDaemon(tmp_path, config=config(workers)) as daemon:
            put_some(daemon, "a", "large-a")
            before = daemon.workers()
            since = len(daemon.told)
            for _ in range(count):
                daemon.process.send_signal(signal.SIGHUP)
                time.sleep(0.02)
            daemon.wait_until_told("READY=1", daemon.wait_until_told("RELOADING=1", since))
            if workers > 1:
                wait_until(partial(are_gone, before), START_SECONDS)
                wait_until(lambda: len(daemon.workers()) == workers, START_SECONDS)
            assert_whole(daemon, "a", "large-a")
            assert daemon.stop() == 0
            assert daemon.log.count("storaged has stopped") <= 1 + 4 * workers


class ReloadTests:
    """What is reloaded, and what is not."""

    def test_settings_that_cannot_be_used(self, tmp_path: Path, workers: int) -> None:
        """The daemon goes on as it was, the log says why, and it can be reloaded once that is mended."""
        with ActivatedDaemon(tmp_path, config=config(workers)) as daemon:
            put_some(daemon, "a", "large-a")
            before = daemon.workers()
            path, secrets = tmp_path / "lakehouse.toml", tmp_path / "secrets.toml"
            sound = path.read_text()

            def unreadable() -> None:
                path.unlink()
                path.mkdir()

            spoil: list[tuple[Callable[[], object], str]] = [
                (path.unlink, "cannot be read: No such file or directory"),
                (lambda: path.write_text("[storaged\n"), "lakehouse.toml: "),
                (lambda: path.write_text("[storaged]\nput_slots = 'four'\n"), "put_slots is 'four'"),
                (lambda: path.write_text("[storaged]\nworkers = 0\n"), "workers is 0"),
                (lambda: path.write_text("[storaged]\nworkers = 'two'\n"), "workers is 'two'"),
                (unreadable, "cannot be read: Is a directory"),
                (lambda: secrets.chmod(0o644), f"{secrets}: "),
                (lambda: secrets.write_text("[primary\n"), f"{secrets}: "),
            ]
            for count, (make, why) in enumerate(spoil, 1):
                make()
                daemon.reload()
                wait_for_log(daemon, "not reloaded, the settings cannot be used: ", count)
                last = daemon.log.rpartition("not reloaded, ")[2].splitlines()[0]
                assert why in last
                assert "/proc/" not in last
                assert_whole(daemon, "a", "large-a")
                if path.is_dir():
                    path.rmdir()
                path.write_text(sound)
                secrets.chmod(0o600)
                secrets.write_text("")
            assert daemon.workers() == before
            daemon.reload()
            assert_whole(daemon, "a", "large-a")
            assert "reloaded: " in daemon.log or "reloads: " in daemon.log

    def test_what_cannot_change(self, tmp_path: Path, workers: int) -> None:
        """The kind of the primary bucket is refused; another address is kept for a restart. The log names both."""
        with ActivatedDaemon(tmp_path, config=config(workers)) as daemon:
            put_some(daemon, "a", "large-a")
            path = tmp_path / "lakehouse.toml"
            options, daemon._options = daemon._options, []
            path.write_text(config(workers, 'bind = "127.0.0.1:9"\n'))
            daemon.reload()
            assert "the address to listen on has changed: this takes effect when the daemon is restarted" in daemon.log
            assert_whole(daemon, "a", "large-a")
            assert options[-2] == "--data"

    def test_another_kind_of_primary_bucket(self, tmp_path: Path, workers: int) -> None:
        """From a folder to S3 is refused, with both kinds in the log."""
        local = f'[buckets.primary]\nkind = "local"\npath = "{tmp_path}/primary"\n'
        with ActivatedDaemon(tmp_path, config=config(workers, local)) as daemon:
            put_some(daemon, "a", "large-a")
            s3 = '[s3]\nbucket = "b"\nendpoint = "http://127.0.0.1:9"\n'
            (tmp_path / "lakehouse.toml").write_text(config(workers, s3))
            daemon.reload()
            assert "the kind of the primary bucket has changed from local to s3: restart" in daemon.log
            assert_whole(daemon, "a", "large-a")

    @pytest.mark.full
    def test_another_folder(self, tmp_path: Path, workers: int) -> None:
        """A folder that is new is prepared and locked, as at a start."""
        local = '[buckets.primary]\nkind = "local"\npath = "{}"\n'
        old, new = f"{tmp_path}/old", f"{tmp_path}/new"
        with ActivatedDaemon(tmp_path, config=config(workers, local.format(old))) as daemon:
            put_some(daemon, "a")
            (tmp_path / "lakehouse.toml").write_text(config(workers, local.format(new)))
            daemon.reload()
            assert ask(daemon, "GET", "/storage/get/a")[0] == 404
            put_some(daemon, "b", "large-b")
            other = tmp_path / "other"
            other.mkdir()
            second = Daemon(other, config=config(1, local.format(new)))
            assert second.spawn().wait(60) == 1
            assert f"{new} is in use by another storaged" in second.log
            assert_whole(daemon, "b", "large-b")

    def test_the_number_of_workers(self, tmp_path: Path) -> None:
        """One worker becomes two, three and one again."""
        with ActivatedDaemon(tmp_path, config=config(1)) as daemon:
            put_some(daemon, "a", "large-a")
            for number in (2, 3, 1, 2):
                (tmp_path / "lakehouse.toml").write_text(config(number))
                before = daemon.workers()
                daemon.reload()
                wait_until(partial(are_gone, before), START_SECONDS)
                assert len(daemon.workers()) == number
                assert_whole(daemon, "a", "large-a")
            assert daemon.stop() == 0

    def test_a_program_that_cannot_start(self, tmp_path: Path, workers: int) -> None:
        """If the program was upgraded to one that cannot start, the old one goes on; the next one takes over."""
        site = tmp_path / "site"
        shutil.copytree(ROOT / "twisted_storaged", site / "twisted_storaged", ignore=shutil.ignore_patterns("__pyc*"))
        launcher = ["env", f"PYTHONPATH={site}", "PYTHONDONTWRITEBYTECODE=1"]
        with ActivatedDaemon(tmp_path, config=config(workers), launcher=launcher) as daemon:
            put_some(daemon, "a", "large-a")
            before = daemon.workers()
            names = ["__init__.py", "service.py", "worker.py", "tap.py"]
            for count, name in enumerate(names, 1):
                path = site / "twisted_storaged" / name
                sound = path.read_text()
                path.write_text("raise ImportError('half of it is installed')\n")
                daemon.reload()
                wait_for_log(daemon, "not reloaded, the settings cannot be used: its preparation ended with 1", count)
                path.write_text(sound)
                assert ask(daemon, "GET", "/storage/get/large-a") == (200, content("large-a"))
            assert daemon.workers() == before
            (site / "twisted_storaged" / "__init__.py").write_text('"""A newer one."""\n__version__ = "99.9"\n')
            daemon.reload()
            connection = daemon.connect()
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"Server: storaged/99.9\r\n" in connection.recv(1000)
            assert_slots_free(daemon)

    @pytest.mark.full
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_as_an_unprivileged_user(self, workers: int) -> None:
        """A user without privileges starts, reloads and stops it."""
        # It may read all files, as Python itself may be in the home of root.
        capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        launcher = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *capability]
        with TemporaryDirectory() as name:
            folder = Path(name)
            daemon = ActivatedDaemon(folder, config=config(workers), launcher=launcher)
            for path in [folder, *folder.iterdir()]:
                os.chown(path, NOBODY, NOBODY)
            with daemon:
                put_some(daemon, "a", "large-a")
                daemon.reload()
                daemon.reload()
                assert_whole(daemon, "a", "large-a")
                assert daemon.stop() == 0


class KillTests:
    """kill -9, at moments at which it hurts. Random ones are in `tests.faults.worker_kills`."""

    def test_while_they_start(self, tmp_path: Path) -> None:
        """Workers that are killed before they serve are started again, and the daemon does not end."""
        with ActivatedDaemon(tmp_path, config=config(2)) as daemon:
            put_some(daemon, "a", "large-a")
            for _ in range(4):
                seen = daemon.wait_for_workers(2)
                os.kill(seen[0], signal.SIGKILL)
                new = {*daemon.wait_for_workers(2, without=(seen[0],))} - {*seen}
                for worker in new:
                    os.kill(worker, signal.SIGKILL)
                daemon.wait_for_workers(2, without=tuple(new))
            assert_whole(daemon, "a", "large-a")
            assert daemon.stop() == 0

    def test_all_at_once(self, tmp_path: Path) -> None:
        """When all are killed in their PUTs, the buckets are prepared again, nothing is lost, and slots are free."""
        with ActivatedDaemon(tmp_path, config=config(2)) as daemon:
            put_some(daemon, "a", "large-a")
            clients = [daemon.connect() for _ in range(SLOTS)]
            for number, client in enumerate(clients):
                client.sendall(head(f"half/{number}", 10_000_000) + b"x" * 5_000_000)
            seen = daemon.workers()
            for worker in seen:
                os.kill(worker, signal.SIGKILL)
            daemon.wait_for_workers(2, without=tuple(seen))
            wait_until(lambda: ask(daemon, "GET", "/health")[0] == 200)
            assert_whole(daemon, "a", "large-a")
            assert ask(daemon, "GET", "/storage/get/half/0")[0] == 404
            # What was half written is removed: there are the files of large objects only.
            assert len(list((daemon.data / "objects").glob("*/*"))) == 1
            assert daemon.stop() == 0

    def test_the_supervisor(self, tmp_path: Path) -> None:
        """When it is killed, its workers complete what is under way; the next one starts with a clean house."""
        with ActivatedDaemon(tmp_path, config=config(2)) as daemon:
            put_some(daemon, "a", "large-a")
            client = daemon.connect()
            client.sendall(head("b", 2, expect=True))
            assert client.recv(100).startswith(b"HTTP/1.1 100 ")
            workers = daemon.workers()
            daemon.process.kill()
            daemon.process.wait()
            refused = daemon.spawn()
            assert refused.wait(60) == 1
            assert "is in use by another storaged" in daemon.log
            client.sendall(b"b/")
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
            client.close()
            wait_until(partial(are_gone, workers))
            daemon.start()
            assert_whole(daemon, "a", "b", "large-a")

    @pytest.mark.full
    def test_while_it_reloads(self, tmp_path: Path) -> None:
        """Workers that are killed while the daemon reloads, old ones and new ones, do not keep it from serving."""
        with ActivatedDaemon(tmp_path, config=config(2)) as daemon:
            put_some(daemon, "a", "large-a")
            for number in range(3):
                since = len(daemon.told)
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_until_told("RELOADING=1", since)
                time.sleep(0.3 * number)
                for worker in daemon.workers()[number % 2 :: 2]:
                    os.kill(worker, signal.SIGKILL)
                wait_until(lambda: len(daemon.workers()) == 2, START_SECONDS)
                daemon.wait_until_told("READY=1", since)
            wait_until(lambda: ask(daemon, "GET", "/health")[0] == 200)
            assert_whole(daemon, "a", "large-a")


class NumberTests:
    """How many workers there are."""

    @pytest.mark.parametrize(
        ("written", "count"), [pytest.param("8", 8, marks=pytest.mark.full), ('"auto"', len(os.sched_getaffinity(0)))]
    )
    def test_other_numbers(self, tmp_path: Path, written: str, count: int) -> None:
        """More workers than cores serve as well; "auto" is one for each core."""
        with ActivatedDaemon(tmp_path, config=config(written)) as daemon:
            assert len(daemon.workers()) == count
            put_some(daemon, "a", "large-a")
            assert_whole(daemon, "a", "large-a")
            assert daemon.stop() == 0

    @pytest.mark.parametrize("written", ["0", '"two"'])
    def test_that_are_none(self, tmp_path: Path, written: str) -> None:
        """What is no number of workers ends the start with one line."""
        daemon = ServedDaemon(tmp_path, config=config(written))
        assert daemon.spawn().wait(60) == 1
        assert f"[storaged] workers is {written.replace(chr(34), chr(39))}: expected " in daemon.log.splitlines()[-1]
        assert "Traceback" not in daemon.log


class FileLimitTests:
    """Too few files for all clients."""

    @pytest.mark.parametrize("limit", [pytest.param(64, marks=pytest.mark.full), 128])
    def test_more_clients(self, tmp_path: Path, workers: int, limit: int) -> None:
        """With more clients than files can be open, some wait or are dropped; then all is as before."""
        launcher = ["prlimit", f"--nofile={limit}"]
        with ActivatedDaemon(tmp_path, config=config(workers), launcher=launcher) as daemon:
            put_some(daemon, "a", "large-a")
            for _ in range(2):
                clients = [daemon.connect() for _ in range(3 * limit)]
                for number, client in enumerate(clients):
                    client.sendall(head(f"half/{number}", 100) + b"x")
                time.sleep(0.5)
                for client in clients:
                    client.close()
                wait_until(lambda: answers(daemon))
            assert_whole(daemon, "a", "large-a")
            daemon.reload()
            assert_whole(daemon, "a", "large-a")
            assert daemon.stop() == 0
            assert_clean(daemon)


def answers(daemon: Daemon) -> bool:
    """Whether a client that comes now is served."""
    try:
        return ask(daemon, "GET", "/storage/get/large-a") == (200, content("large-a"))
    except OSError:
        return False


class EndpointTests:
    """Kinds of endpoints that the daemon binds itself, over a reload."""

    @contextmanager
    def serving(self, folder: Path, workers: int, bind: str, connect: Callable[[], Any]) -> Iterator[ServedDaemon]:
        """A daemon on an endpoint, which serves before and after a reload."""
        daemon = ServedDaemon(folder, config=config(workers))
        daemon.process = daemon.spawn(bind)
        try:
            wait_for_log(daemon, "listens on")
            for count in (1, 2):
                wait_until(lambda: self.serves(connect))
                daemon.process.send_signal(signal.SIGHUP)
                wait_for_log(daemon, "listens on" if workers == 1 else "reloaded: ", count + (workers == 1))
            wait_until(lambda: self.serves(connect))
            yield daemon
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(STOP_SECONDS) == 0
        finally:
            daemon.process.kill()
            daemon.process.wait()
        assert_clean(daemon)

    def serves(self, connect: Callable[[], Any]) -> bool:
        try:
            with connect() as client:
                client.settimeout(30)
                client.sendall(b"PUT /storage/put/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
                return bool(client.recv(1000).startswith(b"HTTP/1.1 200 "))
        except ConnectionError:
            return False

    def test_unix(self, tmp_path: Path, workers: int) -> None:
        """The file of a unix socket is kept over a reload, and removed at the end, with that of its lock."""
        path = tmp_path / "http"

        def connect() -> socket.socket:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            return client

        with self.serving(tmp_path, workers, f"unix:{path}", connect):
            assert path.is_socket()
        assert {one.name for one in tmp_path.glob("http*")} == set()

    @pytest.mark.full
    def test_ipv6(self, tmp_path: Path, workers: int) -> None:
        """An address of IPv6."""
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
            port = free.getsockname()[1]
        with self.serving(tmp_path, workers, f"[::1]:{port}", lambda: socket.create_connection(("::1", port), 30)):
            pass

    @pytest.mark.full
    def test_tls(self, tmp_path: Path, workers: int) -> None:
        """TLS; a reload takes the certificate that there is then."""
        pem = tmp_path / "server.pem"
        pem.write_bytes(certificate(3650))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        seen: list[bytes] = []

        def connect() -> ssl.SSLSocket:
            client = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30))
            seen.append(client.getpeercert(binary_form=True) or b"")
            pem.write_bytes(certificate(3650))
            return client

        with self.serving(tmp_path, workers, f"ssl:{port}:interface=127.0.0.1:privateKey={pem}", connect):
            assert len(set(seen)) == 3


class BackgroundTests:
    """A plain `twistd storaged`, in the background."""

    def test_reload(self, tmp_path: Path, workers: int) -> None:
        """Its pid file is right after the start and after reloads, and its log has the lines of all processes."""
        (tmp_path / "secrets.toml").touch(0o600)
        (tmp_path / "storaged.toml").write_text(config(workers))
        bind = "tcp:0:interface=127.0.0.1"
        options = ["--bind", bind, "--config", "storaged.toml", "--data", "data", "--secrets", "secrets.toml"]
        environ = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        subprocess.run([str(TWISTD), "storaged", *options], cwd=tmp_path, env=environ, timeout=60, check=True)
        log, pid_file = tmp_path / "twistd.log", tmp_path / "twistd.pid"

        def pid() -> int:
            try:
                return int(pid_file.read_text())
            except (FileNotFoundError, ValueError):
                return 0

        daemon = Daemon(tmp_path)
        daemon.log_path = log
        numbers = [pid()]
        try:
            wait_until(lambda: "listens on" in log.read_text())
            daemon.port = int(log.read_text().split("listens on 127.0.0.1:")[1].split()[0])
            wait_until(lambda: ask(daemon, "GET", "/health")[0] == 200)
            put_some(daemon, "a", "large-a")
            for count in (1, 2):
                os.kill(pid(), signal.SIGHUP)
                wait_for_log(daemon, "listens on" if workers == 1 else "reloaded: ", count + (workers == 1))
                wait_until(lambda: pid() and is_alive(pid()))
                numbers.append(pid())
                assert_whole(daemon, "a", "large-a")
            wait_for_log(daemon, '"GET /storage/get/large-a HTTP/1.1" 200', 2)
        finally:
            os.kill(pid(), signal.SIGTERM)
            wait_until(lambda: not pid_file.exists())
        assert (
            "storaged has stopped" in log.read_text().splitlines()[-5:][0] or "storaged has stopped" in log.read_text()
        )
        wait_until(partial(are_gone, numbers))
        assert_clean(daemon)
