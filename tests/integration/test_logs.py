"""The log of a daemon as a process: its format, priorities for the journal, and logs that are full or not read."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import ROOT, TWISTD

SERVE = [sys.executable, "-m", "twisted_storaged", "serve"]
IN_FOREGROUND = [str(TWISTD), "-n", "--pidfile=", "storaged"]
SECONDS = 60


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
        options = {"--bind": f"unix:{self.address}", "--config": "storaged.toml", "--data": "data"}
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
