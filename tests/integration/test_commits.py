"""Commits of the embedded bucket that fail in a real daemon: the responses, and what is stored afterwards."""

from __future__ import annotations

import http.client
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.activated import wait_until
from tests.daemon import Daemon
from tests.faults.preload import Preload, needs_compiler

LARGE = b"x" * 200_000


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon


def ask(daemon: Daemon, method: str, path: str, body: bytes | None = None) -> tuple[int, str | None, bytes]:
    """Send a request on a connection of its own; returns the status, Retry-After, and the body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request(method, path, body)
    response = connection.getresponse()
    answer = response.status, response.headers["Retry-After"], response.read()
    connection.close()
    return answer


def put(daemon: Daemon, body: bytes) -> int:
    return ask(daemon, "PUT", "/objects/a", body)[0]


def contents(daemon: Daemon) -> int:
    return len(list(daemon.data.glob("objects/*/*")))


@pytest.mark.full
@needs_compiler
class FailedFsyncTests:
    """The fsync of the write-ahead log fails."""

    @pytest.fixture
    def fault(self, tmp_path: Path) -> Preload:
        return Preload("fsync", tmp_path)

    @pytest.fixture
    def daemon(self, tmp_path: Path, fault: Preload) -> Iterator[Daemon]:
        with Daemon(tmp_path, launcher=fault.launcher) as daemon:
            yield daemon

    @pytest.mark.parametrize("lasting", [b"", b"always"])
    @pytest.mark.parametrize("new", [b"new", LARGE])
    def test_what_was_answered_as_failed_stays_so(
        self, daemon: Daemon, fault: Preload, lasting: bytes, new: bytes
    ) -> None:
        """A write that failed is not visible, not even after a kill -9."""
        assert put(daemon, b"old") == 200
        fault.file.write_bytes(lasting)
        assert put(daemon, new) == (503 if lasting else 500)
        assert ask(daemon, "GET", "/objects/a")[2] == b"old"
        daemon.kill()
        fault.file.unlink(missing_ok=True)
        daemon.start()
        assert ask(daemon, "GET", "/objects/a")[2] == b"old"

    def test_writes_are_taken_again(self, daemon: Daemon, fault: Preload) -> None:
        """Writes are refused until the log can be truncated, then accepted again; reads are served all the time."""
        assert put(daemon, b"old") == 200
        fault.file.write_bytes(b"always")
        for _ in range(3):
            status, retry_after, _ = ask(daemon, "PUT", "/objects/a", b"new")
            assert (status, retry_after) == (503, "5")
        assert put(daemon, LARGE) == 503
        assert contents(daemon) == 0
        assert ask(daemon, "DELETE", "/objects/a")[0] == 503
        assert ask(daemon, "GET", "/objects/a")[2] == b"old"
        fault.file.unlink()
        assert put(daemon, b"new") == 200
        daemon.kill()
        daemon.start()
        assert ask(daemon, "GET", "/objects/a")[2] == b"new"


class LockedIndexTests:
    """Another program holds SQLite's write lock."""

    def test_is_refused_and_leaves_nothing(self, daemon: Daemon) -> None:
        """A PUT while the index is locked is 503; reads are not delayed, and the next PUT is stored."""
        assert put(daemon, b"old") == 200
        with closing(sqlite3.connect(daemon.data / "index.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            status, retry_after, _ = ask(daemon, "PUT", "/objects/a", LARGE)
            assert (status, retry_after) == (503, "5")
            assert ask(daemon, "GET", "/objects/a")[2] == b"old"
            assert contents(daemon) == 0
            other.execute("ROLLBACK")
        assert put(daemon, LARGE) == 200


class LostFolderTests:
    """The data folder, or a part of it, is removed or replaced while the daemon runs."""

    @pytest.mark.parametrize("what", ["", "objects", "index.sqlite", "index.sqlite-wal"])
    @pytest.mark.parametrize("replaced", [False, True])
    @pytest.mark.parametrize("body", [b"small", LARGE])
    def test_no_put_is_acknowledged(self, daemon: Daemon, what: str, replaced: bool, body: bytes) -> None:
        """A PUT into a data folder that was removed or replaced is not answered with 200."""
        assert put(daemon, b"old") == 200
        path, moved = daemon.data / what, daemon.folder / "moved"
        path.rename(moved)
        if replaced:
            (shutil.copytree if moved.is_dir() else shutil.copy)(moved, path)
        assert put(daemon, body) >= 500
        assert ask(daemon, "DELETE", "/objects/a")[0] == 503

    @pytest.mark.full
    def test_is_not_ready(self, daemon: Daemon) -> None:
        """The bucket is not ready while its folder is replaced by another one, and its metrics go on afterwards."""
        assert put(daemon, b"old") == 200
        wait_until(lambda: ask(daemon, "GET", "/ready")[0] == 200)
        moved = daemon.folder / "moved"
        daemon.data.rename(moved)
        shutil.copytree(moved, daemon.data)
        wait_until(lambda: ask(daemon, "GET", "/ready")[0] == 503)
        assert b"writes suspended" in ask(daemon, "GET", "/ready")[2]
        shutil.rmtree(daemon.data)
        moved.rename(daemon.data)
        wait_until(lambda: ask(daemon, "GET", "/ready")[0] == 200)
        assert put(daemon, b"newer") == 200
        wait_until(lambda: b'storaged_embedded_object_bytes{bucket="primary"} 5' in ask(daemon, "GET", "/metrics")[2])


class ReadOnlyTests:
    """The data folder is mounted read-only while the daemon runs, in a mount namespace of its own."""

    @pytest.fixture
    def daemon(self, tmp_path: Path) -> Iterator[Daemon]:
        with Daemon(tmp_path, launcher=["unshare", "--map-root-user", "--mount"]) as daemon:
            yield daemon

    def mount(self, daemon: Daemon, command: str) -> None:
        """Run a command in the namespace; `$0` is the data folder."""
        place = ["nsenter", f"--target={daemon.process.pid}", "--user", "--mount", "--preserve-credentials"]
        subprocess.run([*place, "sh", "-c", command, str(daemon.data)], check=True)

    @pytest.mark.parametrize("body", [b"small", LARGE])
    def test_no_put_is_acknowledged(self, daemon: Daemon, body: bytes) -> None:
        """While the folder is read-only, PUTs are refused and GETs are served; afterwards PUTs are stored again."""
        assert put(daemon, b"old") == 200
        self.mount(daemon, 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"')
        assert put(daemon, body) >= 500
        assert ask(daemon, "DELETE", "/objects/a")[0] == 503
        assert ask(daemon, "GET", "/objects/a")[2] == b"old"
        self.mount(daemon, 'umount "$0"')
        assert put(daemon, body) == 200
        assert ask(daemon, "GET", "/objects/a")[2] == body
