"""The log of a daemon as a process: its format, priorities for the journal, and logs that are full or not read."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.daemon import ROOT, TWISTD

SERVE = [sys.executable, "-m", "twisted_storaged", "serve"]
IN_FOREGROUND = [str(TWISTD), "-n", "--pidfile=", "storaged"]
SECONDS = 60
#: A secret as engines generate them, as the value of a parameter has it.
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Logging:
    """A daemon in a folder, whose log goes to a descriptor."""

    def __init__(self, folder: Path, config: str, command: list[str] = SERVE) -> None:
        self.address = str(folder / "socket")
        self.folder = folder
        (folder / "storaged.toml").write_text(f"[storaged]\n{config}")
        (folder / "secrets.toml").touch(0o600)
        options = {"--bind": f"unix:{self.address}", "--config": "storaged.toml"}
        self._command = [*command, *(word for pair in options.items() for word in pair), "--secrets", "secrets.toml"]

    @contextmanager
    def running(self, output: int, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        """The process, while it serves; it is stopped in the end."""
        process = subprocess.Popen(
            self._command,
            cwd=self.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PYTHONPATH": str(ROOT), "HOME": str(self.folder), **environ},
        )
        try:
            wait_for(lambda: self._answers(process))
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            process.wait()

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None
        try:
            return b"ok" in self.get("/health")
        except (OSError, http.client.HTTPException):
            return False

    def get(self, *targets: str) -> bytes:
        """Ask for these on one connection; the last answer."""
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.address)
        for target in targets:
            connection.request("GET", target, headers={"User-Agent": "test"})
            answer = connection.getresponse().read()
        connection.close()
        return answer

    def dropped(self, log: str) -> int:
        """How many lines of a log are lost, by the metrics."""
        found = re.search(
            rf'^storaged_log_lines_dropped_total{{log="{log}"}} (\d+)', self.get("/metrics").decode(), re.M
        )
        assert found
        return int(found[1])


def has(path: Path, text: str, count: int = 1) -> bool:
    """Whether a file is there, and has a text so often."""
    return path.exists() and path.read_text("utf-8").count(text) >= count


def objects(path: Path) -> list[dict[str, Any]]:
    """All lines of a log in JSON."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class JsonTests:
    """`log_format = "json"`: each line is an object."""

    @pytest.mark.parametrize(
        ("command", "workers"), [(SERVE, 1), (IN_FOREGROUND, 1), (SERVE, 2)], ids=["serve", "twistd", "workers"]
    )
    def test_in_the_foreground(self, tmp_path: Path, command: list[str], workers: int) -> None:
        """Events and requests are objects, also those of workers."""
        daemon = Logging(tmp_path, f'log_format = "json"\nworkers = {workers}\n', command)
        with open(tmp_path / "log", "wb") as output, daemon.running(output.fileno()):
            daemon.get("/objects/a%22b%20%C3%A9", "/health?x")
        found = objects(tmp_path / "log")
        assert all(set(one) >= {"time", "level", "namespace", "message"} for one in found)
        assert any("listens on" in one["message"] for one in found)
        assert "storaged has stopped" in found[-1]["message"] + found[-2]["message"] + found[-3]["message"]
        (one,) = (one for one in found if one.get("target") == "/objects/a%22b%20%C3%A9")
        assert (one["key"], one["status"], one["operation"], one["agent"]) == ('a"b é', 404, "get", "test")
        assert any(one.get("target") == "/health?x" for one in found)

    def test_in_the_background(self, tmp_path: Path) -> None:
        """The log file of twistd has objects, too."""
        daemon = Logging(tmp_path, 'log_format = "json"\n', [str(TWISTD), "storaged"])
        environ = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        subprocess.run(daemon._command, cwd=tmp_path, env=environ, timeout=SECONDS, check=True)
        pid = tmp_path / "twistd.pid"
        try:
            daemon.get("/health?x")
        finally:
            os.kill(int(pid.read_text()), signal.SIGTERM)
            wait_for(lambda: not pid.exists())
        found = objects(tmp_path / "twistd.log")
        assert any(one.get("target") == "/health?x" for one in found)

    def test_a_reload_of_workers(self, tmp_path: Path) -> None:
        """The log has the format with which the daemon was started: that of new workers is no other."""
        daemon = Logging(tmp_path, 'log_format = "json"\nworkers = 2\n')
        log = tmp_path / "log"
        with open(log, "wb") as output, daemon.running(output.fileno()) as process:
            (tmp_path / "storaged.toml").write_text("[storaged]\nworkers = 2\n")
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: "reloaded: 2 new workers serve" in log.read_text())
            daemon.get("/health?x")
        assert any(one.get("target") == "/health?x" for one in objects(log))


class JournalTests:
    """A log that is the journal of systemd."""

    @pytest.mark.parametrize(("log_format", "workers"), [("text", 2), ("json", 1)])
    def test_priorities(self, tmp_path: Path, log_format: str, workers: int) -> None:
        """Each line has a priority, also those of workers."""
        daemon = Logging(tmp_path, f'log_format = "{log_format}"\nworkers = {workers}\n')
        ours, theirs = socket.socketpair()
        with ours, theirs:
            status = os.fstat(theirs.fileno())
            with daemon.running(theirs.fileno(), JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}"):
                daemon.get("/health?x")
            theirs.close()
            with ours.makefile("r") as stream:
                lines = stream.read().splitlines()
        assert [line for line in lines if not re.match(r"<[2-7]>[^<]", line)] == []
        assert any(line.startswith("<6>") and "/health?x" in line for line in lines)


class AccessLogFileTests:
    """`access_log` with a path: the lines of requests are in a file of their own."""

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_has_the_requests(self, tmp_path: Path, log_format: str) -> None:
        """It has them in the format of the log, which has all else."""
        path = tmp_path / "access.log"
        daemon = Logging(tmp_path, f'log_format = "{log_format}"\naccess_log = "{path}"\n')
        with open(tmp_path / "log", "wb") as output, daemon.running(output.fileno()):
            daemon.get("/health?x")
        written = path.read_text()
        assert written.count("/health?x HTTP/1.1") == 1
        assert "/health?x" not in (tmp_path / "log").read_text()
        if log_format == "json":
            assert {one["namespace"] for one in objects(path)} == {"storaged.access"}
        else:
            assert all(re.fullmatch(r'- - - \[.*\] ".*" \d+ .* agent=".*"', line) for line in written.splitlines())

    def test_is_renamed(self, tmp_path: Path) -> None:
        """With workers, each request has one whole line in one of the files, while these are renamed."""
        path = tmp_path / "access.log"
        daemon = Logging(tmp_path, f'log_format = "json"\nworkers = 2\naccess_log = "{path}"\n')
        renamed = 0
        with open(tmp_path / "log", "wb") as output, daemon.running(output.fileno()), ThreadPoolExecutor(4) as pool:
            asked = [f"/health?{worker}-{number}" for worker in range(4) for number in range(700)]
            done = [pool.submit(daemon.get, *asked[start : start + 700]) for start in range(0, len(asked), 700)]
            while not all(one.done() for one in done):
                if path.exists():
                    path.rename(f"{path}.{renamed}")
                    renamed += 1
                time.sleep(0.1)
            assert all(b"ok" in one.result() for one in done)
        assert renamed > 2
        found = [one["target"] for file in tmp_path.glob("access.log*") for one in objects(file)]
        assert sorted(target for target in found if target != "/health") == sorted(asked)

    @pytest.mark.full
    @pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed: apt-get install logrotate")
    def test_logrotate(self, tmp_path: Path) -> None:
        """Logrotate rotates it by the configuration in etc/."""
        path = tmp_path / "access.log"
        daemon = Logging(tmp_path, f'access_log = "{path}"\n')
        example = (ROOT / "etc" / "storaged.logrotate").read_text("utf-8")
        config = tmp_path / "logrotate.conf"
        config.write_text(example.replace("/var/log/storaged/access.log", str(path)))
        config.chmod(0o600)
        rotate = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(config)]
        with open(tmp_path / "log", "wb") as output, daemon.running(output.fileno()):
            for number in range(3):
                daemon.get(f"/health?{number}")
                wait_for(partial(has, path, f"/health?{number} "))
                subprocess.run(rotate, check=True, timeout=SECONDS)
        zipped = [gzip.decompress((tmp_path / f"access.log.{number}.gz").read_bytes()).decode() for number in (3, 2)]
        for number, text in enumerate([*zipped, (tmp_path / "access.log.1").read_text()]):
            assert f"/health?{number} " in text
        assert "lost lines" not in (tmp_path / "log").read_text()

    def test_a_reload(self, tmp_path: Path) -> None:
        """A file that cannot be opened makes a reload fail, and nothing changes."""
        daemon = Logging(tmp_path, "")
        log = tmp_path / "log"
        with open(log, "wb") as output, daemon.running(output.fileno()) as process:
            (tmp_path / "storaged.toml").write_text('[storaged]\naccess_log = "none/access.log"\n')
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: "not reloaded, the settings cannot be used: none/access.log: cannot be" in log.read_text())
            assert b"ok" in daemon.get("/health")


class SecretTests:
    """Secrets of the configuration, and those that clients send."""

    #: Mistakes of an operator, in what follows the section of the daemon.
    MISTAKES = (
        f'[s3]\nbucket = "b"\nendpoint = "http://user:{SECRET}@127.0.0.1:9"\n',
        f'[s3]\nbucket = ["{SECRET}"]\n',
        f'[s3]\nbucket = "b"\n{SECRET.replace("/", "")} = "secret_access_key"\n',
        f'[s3]\nbucket = "b"\nsecret_access_key = "{SECRET}"\n',
        f'[s3]\nbucket = "b"\naccess_key_id = "x"\nsecret_access_key = ["{SECRET}"]\n',
        f'[s3]\nbucket = "b"\nsecret_access_key = "{SECRET}\n',
        f'[buckets.secret]\nkind = "{SECRET}"\n',
    )

    @pytest.mark.parametrize(("log_format", "workers"), [("text", 1), ("json", 2)])
    def test_are_not_logged(self, tmp_path: Path, log_format: str, workers: int) -> None:
        """They are in no line, whatever S3, a client or the operator does."""
        storaged = f'log_format = "{log_format}"\nworkers = {workers}\n'
        section = (
            '[s3]\nbucket = "b"\nregion = "r"\nendpoint = "http://127.0.0.1:9"\nuse_path_style = true\n'
            f'access_key_id = "AKIAID"\nsecret_access_key = "{SECRET}"\n'
        )
        daemon = Logging(tmp_path, storaged + section)
        log, config = tmp_path / "log", tmp_path / "storaged.toml"
        password = SECRET.replace("/", "")
        query = f"X-Amz-Signature={SECRET}&X-Amz-Security-Token={SECRET}"
        with open(log, "wb") as output, daemon.running(output.fileno(), AWS_SESSION_TOKEN=SECRET) as process:
            daemon.get(f"/objects/k?{query}", f"/objects/k%3F{quote(query)}", f"/objects/http:%2F%2Fu:{password}%40h/k")
            for count, mistake in enumerate(self.MISTAKES, 1):
                config.write_text(f"[storaged]\n{storaged}{mistake}")
                process.send_signal(signal.SIGHUP)
                wait_for(partial(has, log, "not reloaded, the settings cannot be used", count))
        text = log.read_text()
        assert text.count("bucket unreachable") + text.count("no connection to S3") > 0
        assert text.count("[redacted]") >= 6
        assert SECRET not in text
        assert password not in text


class LostTests:
    """A log that cannot be written: requests are answered, and lost lines are counted."""

    LONG = ["/health?" + "x" * 4000] * 400

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """A disk without room costs nothing but lines, also those of workers."""
        daemon = Logging(tmp_path, "workers = 2\n")
        with open("/dev/full", "wb") as output, daemon.running(output.fileno()):
            daemon.get(*self.LONG)
            wait_for(lambda: daemon.get(*self.LONG[:50]) and daemon.dropped("main") > 0)

    def test_a_collector_that_hangs(self, tmp_path: Path) -> None:
        """Nor does a pipe that nobody reads."""
        daemon = Logging(tmp_path, "")
        reading, writing = os.pipe()
        with daemon.running(writing):
            os.close(writing)
            daemon.get(*self.LONG)
            wait_for(lambda: daemon.get(*self.LONG[:50]) and daemon.dropped("main") > 0)
        os.close(reading)

    def test_a_full_disk_of_the_access_log(self, tmp_path: Path) -> None:
        """A file for requests without room costs nothing but lines, and the log says so."""
        daemon = Logging(tmp_path, 'access_log = "/dev/full"\n')
        log = tmp_path / "log"
        with open(log, "wb") as output, daemon.running(output.fileno()):
            wait_for(lambda: daemon.dropped("access") > 0)
            wait_for(partial(has, log, "(No space left on device)"))

    def test_an_access_log_that_hangs(self, tmp_path: Path) -> None:
        """So does a disk that hangs, for which stands a pipe that nobody reads; the daemon stops nevertheless."""
        path = tmp_path / "access.log"
        os.mkfifo(path)
        daemon = Logging(tmp_path, f'access_log = "{path}"\n')
        log = tmp_path / "log"
        with open(log, "wb") as output, daemon.running(output.fileno()):
            daemon.get(*self.LONG)
            wait_for(lambda: daemon.get(*self.LONG[:100]) and daemon.dropped("access") > 0)
        assert "stops without waiting for the access log: 1 s have passed" in log.read_text()
