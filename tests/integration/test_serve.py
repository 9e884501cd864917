"""`storaged serve`: the daemon in the foreground, without twistd."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import ClassVar

import pytest

from tests.daemon import ROOT, Daemon


class ServedDaemon(Daemon):
    """A daemon that `storaged serve` runs."""

    COMMAND: ClassVar = [sys.executable, "-m", "twisted_storaged", "serve"]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `storaged serve` with options with which it ends by itself."""
    (folder / "secrets.toml").touch(0o600)
    command = [*ServedDaemon.COMMAND, "--secrets", str(folder / "secrets.toml"), *options]
    environ = {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environ, timeout=60, capture_output=True, text=True, check=False)


class ServeTests:
    """`storaged serve` does what `twistd --nodaemon --pidfile= storaged` does."""

    @pytest.mark.parametrize("number", [SIGTERM, SIGINT])
    def test_serves_until_a_signal(self, tmp_path: Path, number: int) -> None:
        """The daemon serves objects, and SIGTERM or SIGINT ends it cleanly with status 0."""
        with ServedDaemon(tmp_path) as daemon:
            put = urllib.request.Request(f"{daemon.url}/storage/put/a", b"hello", method="PUT")
            assert urllib.request.urlopen(put, timeout=30).status == 200
            with urllib.request.urlopen(f"{daemon.url}/storage/get/a", timeout=30) as answer:
                assert answer.read() == b"hello"
            daemon.process.send_signal(number)
            assert daemon.process.wait(30) == 0
            assert "storaged has stopped" in daemon.log
            assert "Traceback" not in daemon.log

    def test_is_alone_in_its_folder(self, tmp_path: Path) -> None:
        """It stays in the foreground: neither a pid file nor a log file is written where it runs."""
        with ServedDaemon(tmp_path) as daemon:
            assert {path.name for path in tmp_path.iterdir()} == {"data", "secrets.toml", "storaged.log"}
            # Reactors other than storaged's cause this warning.
            assert "uses the wall clock" not in daemon.log

    def test_a_taken_port(self, tmp_path: Path) -> None:
        """A port that is taken ends it with status 1, one line on stderr, and the same line in the log, on stdout."""
        with ServedDaemon(tmp_path) as daemon:
            ended = run(tmp_path, "--data", str(tmp_path / "second"), "--bind", f"127.0.0.1:{daemon.port}")
        assert ended.returncode == 1
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"cannot listen on tcp:{daemon.port}:interface=127.0.0.1: ")
        assert "Address already in use" in line
        assert ended.stdout.splitlines()[-1].endswith(f"#critical] {line}")

    def test_invalid_configuration(self, tmp_path: Path) -> None:
        """A configuration with a mistake ends it with status 1 and one line on stderr that names the place."""
        (tmp_path / "storaged.toml").write_text("[storaged]\nput_slots = 'four'\n")
        ended = run(tmp_path, "--config", "storaged.toml")
        assert (ended.returncode, ended.stdout) == (1, "")
        (line,) = ended.stderr.splitlines()
        assert line.startswith("storaged.toml: [storaged] put_slots is 'four': ")

    def test_scrub(self, tmp_path: Path) -> None:
        """`storaged serve --scrub` verifies the embedded bucket, logs the report on stdout, and ends with status 0."""
        with ServedDaemon(tmp_path):
            ended = run(tmp_path, "--data", str(tmp_path / "data"), "--scrub")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "0 objects with 0 bytes are sound" in ended.stdout
