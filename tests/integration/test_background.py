"""A daemon in the background, without --nodaemon: its log file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemon import ROOT, TWISTD
from twisted_storaged.runtime.log_file import ROTATE_AT, ROTATED_FILES

SECONDS = 60


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextmanager
def in_background(folder: Path) -> Iterator[int]:
    """A plain `twistd storaged` with this working folder; its process id. It is stopped in the end."""
    (folder / "secrets.toml").touch(0o600)
    bind = "tcp:0:interface=127.0.0.1"
    command = [str(TWISTD), "storaged", "--bind", bind, "--data", "data", "--secrets", "secrets.toml"]
    environ = {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
    # The umask of most shells, with which other users could read the log.
    started = subprocess.run(command, cwd=folder, env=environ, umask=0o022, timeout=SECONDS, check=False)
    assert started.returncode == 0, (folder / "twistd.log").read_text()
    pid = int((folder / "twistd.pid").read_text())
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGTERM)
        # twistd removes the file last.
        wait_for(lambda: not (folder / "twistd.pid").exists())


class LogFileTests:
    """The log of a plain `twistd storaged`."""

    def test_is_bounded_and_private(self, tmp_path: Path) -> None:
        """A full log is rotated, what exceeds the number of rotated files is removed, and only the user can read it."""
        log = tmp_path / "twistd.log"
        with log.open("wb") as file:
            file.truncate(ROTATE_AT)
        log.chmod(0o600)
        for number in range(1, ROTATED_FILES + 5):
            (tmp_path / f"twistd.log.{number}").write_text(str(number))
        with in_background(tmp_path):
            wait_for(lambda: "listens on" in log.read_text())
            names = {path.name for path in tmp_path.glob("twistd.log*")}
            assert names == {"twistd.log", *(f"twistd.log.{number}" for number in range(1, ROTATED_FILES + 1))}
            assert (tmp_path / "twistd.log.1").stat().st_size == ROTATE_AT
            assert (tmp_path / "twistd.log.2").read_text() == "1"
        assert "storaged has stopped" in log.read_text()

    def test_is_rotated_by_sigusr1(self, tmp_path: Path) -> None:
        """SIGUSR1 rotates the log, as it does for any twistd; a new log has mode 0600."""
        log = tmp_path / "twistd.log"
        with in_background(tmp_path) as pid:
            wait_for(lambda: "listens on" in log.read_text())
            os.kill(pid, signal.SIGUSR1)
            wait_for((tmp_path / "twistd.log.1").exists)
            assert "listens on" in (tmp_path / "twistd.log.1").read_text()
        assert "storaged has stopped" in log.read_text()
        assert "listens on" not in log.read_text()
        assert [path.stat().st_mode & 0o777 for path in tmp_path.glob("twistd.log*")] == [0o600, 0o600]
