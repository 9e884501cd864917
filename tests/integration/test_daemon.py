"""The daemon as a process: how it starts, how it stops, and with which configurations it refuses to start."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from tests.daemon import ROOT, STOP_SECONDS, TWISTD, Daemon
from tests.engines.scripted import scripted


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon


def ask(daemon: Daemon, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request on a connection of its own; returns the status and the body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request(method, path, body)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def head(key: str, length: int, *, expect: bool = False) -> bytes:
    """The head of a PUT; with `expect`, of a client that waits for the response 100 before it sends the body."""
    more = "Expect: 100-continue\r\n" if expect else ""
    return f"PUT /storage/put/{key} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {length}\r\n\r\n".encode()


def bodies(number: int) -> list[tuple[str, bytes]]:
    """A small object, which the embedded bucket keeps in its index, and a large one, which it keeps in a file."""
    return [(f"{number}", b"%d" % number), (f"{number}-large", b"%d" % number * 100_000)]


def wait_for(condition: object, seconds: float = 30) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class LifeTests:
    """The life of a daemon, from start to stop."""

    def test_serves_objects(self, daemon: Daemon) -> None:
        """A daemon without configuration serves all verb paths, on storaged's reactor."""
        assert "reactor class: twisted_storaged.runtime.twisted_internals.Reactor" in daemon.log
        status, body = ask(daemon, "PUT", "/storage/put/a/b%20c", b"hello")
        assert (status, json.loads(body)["size"]) == (200, 5)
        assert ask(daemon, "GET", "/storage/get/a/b%20c") == (200, b"hello")
        assert [item["key"] for item in json.loads(ask(daemon, "GET", "/storage/list?prefix=a")[1])["objects"]] == [
            "a/b c"
        ]
        assert ask(daemon, "DELETE", "/storage/delete/a/b%20c") == (204, b"")
        assert ask(daemon, "GET", "/storage/get/a/b%20c") == (404, b"not found\n")
        assert ask(daemon, "GET", "/health")[0] == 200

    @pytest.mark.parametrize("access_log", [True, False])
    def test_access_log(self, tmp_path: Path, access_log: bool) -> None:
        """A request has one line in the log, with its id and its ending; without the access log, it has none."""
        with Daemon(tmp_path, config=f"[storaged]\naccess_log = {str(access_log).lower()}\n") as daemon:
            assert ask(daemon, "PUT", "/objects/k", b"hello")[0] == 200
            daemon.stop()
            lines = [line for line in daemon.log.splitlines() if "PUT /objects/k" in line]
        assert len(lines) == access_log
        assert all(" complete id=" in line and ' key="k" received=5 ' in line for line in lines)

    def test_status_page(self, daemon: Daemon, tmp_path: Path) -> None:
        """`GET /` is a page, unless it is turned off."""
        status, body = ask(daemon, "GET", "/")
        assert (status, body[:15]) == (200, b"<!DOCTYPE html>")
        (tmp_path / "off").mkdir()
        with Daemon(tmp_path / "off", config="[storaged]\nstatus_page = false\n") as off:
            for path in ("/", "/page/page.js", "/page/events", "/page/delete?key=k"):
                assert ask(off, "GET", path) == (404, b"not found\n")

    def test_a_hundred_pages(self, daemon: Daemon) -> None:
        """A hundred pages that do not read their events delay neither a transfer nor a stop; the next gets 503."""
        pages = [daemon.connect() for _ in range(101)]
        for page in pages:
            page.sendall(b"GET /page/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers = [page.recv(200, socket.MSG_WAITALL) for page in pages]
        assert [answer[9:12] for answer in answers] == [b"200"] * 100 + [b"503"]
        body = bytes(16 << 20)
        assert ask(daemon, "PUT", "/objects/k", body)[0] == 200
        assert ask(daemon, "GET", "/objects/k") == (200, body)
        assert b"storaged_pages_open 100.0" in ask(daemon, "GET", "/metrics")[1]
        start = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - start < 10
        for page in pages:
            page.close()

    def test_a_second_sigterm_ends_it_at_once(self, daemon: Daemon) -> None:
        """A second SIGTERM ends the daemon with status 0, despite an idle connection and a PUT under way."""
        idle, busy = daemon.connect(), daemon.connect()
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        busy.sendall(head("a", 100) + b"x")
        start = time.monotonic()
        assert daemon.stop(skip_drain=True) == 0
        assert time.monotonic() - start < 15
        assert "stops without waiting for requests: a second signal came" in daemon.log
        assert "storaged has stopped" in daemon.log
        assert list((daemon.data / "objects").glob("*/*")) == []

    def test_the_drain_ends(self, tmp_path: Path) -> None:
        """When `drain` has passed after SIGTERM, a PUT under way is dropped without a response, and leaves nothing."""
        with Daemon(tmp_path, config='[storaged]\ndrain = "1 s"\n') as daemon:
            busy = daemon.connect()
            busy.sendall(head("a", 100) + b"x")
            wait_for(lambda: ask(daemon, "GET", "/health")[0] == 200)
            assert daemon.stop() == 0
            with suppress(ConnectionResetError):
                assert busy.recv(100) == b""
            assert "storaged has stopped" in daemon.log
            assert list((daemon.data / "objects").glob("*/*")) == []

    def test_a_put_under_way_is_finished_first(self, daemon: Daemon) -> None:
        """A PUT that is under way at SIGTERM is completed, and its object is there after the next start."""
        client = daemon.connect()
        client.sendall(head("a", 5) + b"he")
        wait_for(lambda: ask(daemon, "GET", "/health")[0] == 200)
        with ThreadPoolExecutor() as pool:
            stopped = pool.submit(daemon.stop)
            wait_for(lambda: "Port" in daemon.log.partition("listens on")[2])
            client.sendall(b"llo")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
            assert stopped.result() == 0
        daemon.start()
        assert ask(daemon, "GET", "/storage/get/a") == (200, b"hello")

    def test_what_was_answered_survives_kill_9(self, daemon: Daemon) -> None:
        """Objects whose PUTs were answered survive kill -9; incomplete ones are not visible and leave no file."""
        for number in range(5):
            half = daemon.connect()
            half.sendall(head("half", 10_000_000) + b"x" * 5_000_000)
            for key, body in bodies(number):
                assert ask(daemon, "PUT", f"/storage/put/{key}", body)[0] == 200
            daemon.kill()
            daemon.start()
            half.close()
        keys = [item["key"] for item in json.loads(ask(daemon, "GET", "/storage/list")[1])["objects"]]
        stored = dict(item for number in range(5) for item in bodies(number))
        assert keys == sorted(stored)
        assert {key: ask(daemon, "GET", f"/storage/get/{key}")[1] for key in keys} == stored
        assert len(list((daemon.data / "objects").glob("*/*"))) == 5

    def test_no_traceback_and_no_credential_leaves_it(self, tmp_path: Path) -> None:
        """Without a connection to S3, the client gets 502, and the log has the key and the cause, but no secret."""
        config = (
            '[s3]\nendpoint = "http://127.0.0.1:9"\nregion = "r"\nbucket = "b"\nuse_path_style = true\n'
            'access_key_id = "AKIAID"\nsecret_access_key = "hunter2"\n'
        )
        with Daemon(tmp_path, config=config) as daemon:
            assert ask(daemon, "GET", "/storage/get/some/key") == (502, b"bucket unreachable\n")
            assert ask(daemon, "PUT", "/storage/put/some/key", b"x") == (502, b"bucket unreachable\n")
            assert "/storage/get/some/key" in daemon.log
            assert "no connection to S3" in daemon.log
            assert "hunter2" not in daemon.log
            assert "Traceback" not in daemon.log


def handles(pid: int, number: int) -> bool:
    """Whether a process handles both SIGTERM and a signal; Python itself handles SIGINT. See proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (SIGTERM - 1) & 1) and bool(caught >> (number - 1) & 1)


class ServiceManagerTests:
    """systemd's protocol, as a process."""

    def test_ready_watchdog_and_stopping(self, tmp_path: Path) -> None:
        """The daemon says that it is ready when it serves, pings the watchdog, and says that it stops."""
        address = tmp_path / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            manager.settimeout(30)
            environment = [f"NOTIFY_SOCKET={address}", "WATCHDOG_USEC=1000000"]
            with Daemon(tmp_path, launcher=["env", *environment]) as daemon:
                assert manager.recv(1000) == b"READY=1\nSTATUS=ready"
                assert ask(daemon, "GET", "/health")[0] == 200
                told = [manager.recv(1000) for _ in range(6)]
                assert told.count(b"WATCHDOG=1") > 3
                assert daemon.stop() == 0
                while told[-1] == b"WATCHDOG=1" or told[-1].startswith(b"STATUS="):
                    told.append(manager.recv(1000))
                assert told[-1].startswith(b"STOPPING=1\nSTATUS=drains\nEXTEND_TIMEOUT_USEC=")


class LimitTests:
    """The limits of the process."""

    def test_core_dumps_and_open_files(self, tmp_path: Path) -> None:
        """The daemon leaves no core dump, and may open as many files as only root could change."""
        with Daemon(tmp_path, launcher=["prlimit", "--core=unlimited", "--nofile=256:2048"]) as daemon:
            limits = Path(f"/proc/{daemon.process.pid}/limits").read_text("ascii").splitlines()
            assert ask(daemon, "GET", "/health")[0] == 200
        found = [line.split()[-3:-1] for line in limits if line.startswith(("Max core file size", "Max open files"))]
        assert found == [["0", "0"], ["2048", "2048"]]


class StopSignalTests:
    """SIGTERM and SIGINT end the daemon with status 0, whenever they come."""

    @pytest.mark.parametrize("number", [SIGTERM, SIGINT])
    def test_before_the_reactor_runs(self, tmp_path: Path, number: int) -> None:
        """A signal between the parsing of the command line and the start of the reactor ends the start."""
        for delay in (0, 0.01, 0.02, 0.04, 0.08):
            daemon = Daemon(tmp_path)
            process = daemon.spawn()
            wait_for(lambda process=process: handles(process.pid, number))
            time.sleep(delay)
            process.send_signal(number)
            assert process.wait(STOP_SECONDS) == 0, daemon.log
            assert "Traceback" not in daemon.log

    @pytest.mark.parametrize("number", [SIGTERM, SIGINT])
    def test_further_ones(self, daemon: Daemon, number: int) -> None:
        """Further signals end the wait for a PUT that is under way, which gets no response, and nothing else."""
        with daemon.connect() as client:
            client.sendall(head("half", 10) + b"12345")
            wait_for(lambda: ask(daemon, "GET", "/health")[0] == 200)
            daemon.process.send_signal(number)
            wait_for(lambda: "Port" in daemon.log or daemon.process.poll() is not None)
            for _ in range(3):
                daemon.process.send_signal(number)
            with suppress(ConnectionResetError):
                assert client.recv(1000) == b""
        assert daemon.process.wait(STOP_SECONDS) == 0
        assert "Traceback" not in daemon.log
        assert "ReactorNotRunning" not in daemon.log


class RefusalToStartTests:
    """Starts that end with status 1 and a line that says why, before the daemon listens."""

    def refused(self, daemon: Daemon, bind: str = "tcp:0:interface=127.0.0.1") -> str:
        process = daemon.spawn(bind)
        assert process.wait(60) == 1
        assert "listens on" not in daemon.log
        return daemon.log

    def test_a_directory_in_use(self, daemon: Daemon, tmp_path: Path) -> None:
        """A data folder that another daemon uses is refused."""
        folder = tmp_path / "second"
        folder.mkdir()
        second = Daemon(folder)
        second._options = daemon._options
        assert f"{daemon.data} is in use by another storaged" in self.refused(second)
        assert ask(daemon, "GET", "/health")[0] == 200

    def test_a_taken_port(self, daemon: Daemon, tmp_path: Path) -> None:
        """A port that is taken ends the daemon, instead of letting it run without listening."""
        folder = tmp_path / "second"
        folder.mkdir()
        log = self.refused(Daemon(folder), f"127.0.0.1:{daemon.port}")
        assert f"cannot listen on tcp:{daemon.port}:interface=127.0.0.1" in log
        assert "Address already in use" in log

    def test_a_start_after_one_that_failed(self, daemon: Daemon, tmp_path: Path) -> None:
        """A start that fails on a taken port closes the embedded bucket, so that the next start can open it."""
        folder = tmp_path / "second"
        folder.mkdir()
        second = Daemon(folder)
        for _ in range(2):
            assert "Address already in use" in self.refused(second, f"127.0.0.1:{daemon.port}")
        with second:
            assert ask(second, "PUT", "/storage/put/a", b"hello")[0] == 200

    def test_a_bad_config(self, tmp_path: Path) -> None:
        """A mistake in the configuration is the last line of the output, with its place and without a traceback."""
        log = self.refused(Daemon(tmp_path, config="[storaged]\nput_slots = 'four'\n"))
        expected = f"{tmp_path}/lakehouse.toml: [storaged] put_slots is 'four': expected a positive integer"
        assert log.splitlines()[-1] == expected
        assert "Traceback" not in log

    def test_the_network(self, tmp_path: Path) -> None:
        """An address that other hosts can reach is refused by default, as clients are not authenticated."""
        log = self.refused(Daemon(tmp_path), "0.0.0.0:0")
        assert "expected a loopback address or a unix socket" in log

    def test_daemonized_it_says_so_too(self, daemon: Daemon, tmp_path: Path) -> None:
        """Without -n, twistd forks; the parent still exits with status 1, and no pid file is left."""
        command = [str(TWISTD), "--logfile", "log", "--pidfile", "pid", "storaged", *daemon._options]
        environ = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        ended = subprocess.run(command, cwd=tmp_path, env=environ, timeout=60, capture_output=True, check=False)
        assert ended.returncode == 1
        assert b"StartError" in ended.stderr
        # The parent ends when the child has reported the failure, before the child has written its log and cleaned up.
        wait_for(lambda: "is in use by another storaged" in (tmp_path / "log").read_text())
        wait_for(lambda: not (tmp_path / "pid").exists())


class AdmissionTests:
    """Put slots and early responses, in a real daemon."""

    def test_five_puts_at_once(self, daemon: Daemon) -> None:
        """Of five concurrent PUTs, four are 200 and the fifth is 503."""
        clients = [daemon.connect() for _ in range(5)]
        for number, client in enumerate(clients):
            client.sendall(head(f"a{number}", 10) + b"x")
            # Requests are served in order, so that this PUT has been admitted or refused before the next is sent.
            wait_for(lambda: ask(daemon, "GET", "/health")[0] == 200)
        refusal = clients[4].recv(1000)
        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 5\r\n" in refusal
        assert refusal.endswith(b"\r\n\r\nstoraged: put concurrency cap reached\n")
        for client in clients[:4]:
            client.sendall(b"x" * 9)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert ask(daemon, "PUT", "/storage/put/b", b"x")[0] == 200

    def test_an_early_answer_is_always_seen(self, daemon: Daemon) -> None:
        """A 413 is seen by a client that sends 8 MB before it reads, 50 times of 50."""
        seen = 0
        for _ in range(50):
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
            connection.putrequest("PUT", "/storage/put/a")
            connection.putheader("Content-Length", str((256 << 20) + 1))
            connection.endheaders()
            for _ in range(8):
                connection.send(b"x" * 1_000_000)
            seen += connection.getresponse().status == 413
            connection.close()
        assert seen == 50

    def test_the_peer_dies_in_mid_body(self, daemon: Daemon) -> None:
        """A PUT whose client disconnects, with a FIN or a reset, leaves no object and no file, and frees its slot."""
        for reset in (False, True):
            for _ in range(4):
                client = daemon.connect()
                client.sendall(head("a", 20_000_000) + b"x" * 10_000_000)
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
            wait_for(lambda: ask(daemon, "PUT", "/storage/put/b", b"x" * 100_000)[0] == 200)
        wait_for(lambda: len(list((daemon.data / "objects").glob("*/*"))) == 1)
        assert ask(daemon, "GET", "/storage/get/a")[0] == 404


class OriginTests:
    """What S3 and the log say of one request."""

    def test_request_and_trace(self, tmp_path: Path) -> None:
        """The ids of a request and of its trace are in the calls of S3 that it causes, and in its line of the log."""
        trace = "0af7651916cd43dd8448eb211c80319c"
        parent = f"00-{trace}-b7ad6b7169203331-01"
        with scripted() as (endpoint, engine), Daemon(tmp_path, config=engine.toml("bucket")) as daemon:
            endpoint.objects["k"] = b"hello", "etag"
            url = f"{daemon.url}/objects/k"
            traced = urllib.request.Request(
                url, headers={"X-Request-Id": "mine", "traceparent": parent, "If-Match": '"etag"'}
            )
            with urllib.request.urlopen(traced) as response:
                assert (response.read(), response.headers["X-Request-Id"]) == (b"hello", "mine")
            # A condition makes it two calls, between which the daemon does other work, such as to see if S3 is there.
            told = {
                call.name: (call.headers["user-agent"].partition(" ")[2], call.headers.get("traceparent"))
                for call in endpoint.calls
            }
            assert told.pop("ListObjectsV2") == ("", None)
            assert told == dict.fromkeys(["HeadObject", "GetObject"], ("(request mine)", parent))
            daemon.settle()
            assert f" trace={trace} " in next(line for line in daemon.log.splitlines() if " id=mine " in line)
