"""A full disk: a tmpfs in a mount namespace of the daemon's own, which ends with the daemon."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon

#: Mounts a tmpfs of 8 MiB at the first argument, and executes the rest. unshare(1) makes that possible without root.
SMALL_DISK = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose data folder is on a disk of 8 MiB."""
    (tmp_path / "data").mkdir()
    launcher = ["unshare", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, str(tmp_path / "data")]
    with Daemon(tmp_path, launcher=launcher) as daemon:
        yield daemon


def ask(daemon: Daemon, method: str, key: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    connection.request(method, f"/storage/{method.lower()}/{key}", body)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


class FullDiskTests:
    """Writes to a full disk."""

    @pytest.mark.parametrize("size", [10_000, 60_000, 1_000_000])
    def test_refuses_and_lives(self, daemon: Daemon, size: int) -> None:
        """On a full disk PUTs fail and acknowledged objects stay; when there is space again, PUTs succeed."""
        others = Path(f"/proc/{daemon.process.pid}/root") / daemon.data.relative_to("/") / "of others"
        others.write_bytes(b"x" * (4 << 20))
        there = {}
        for number in range(1000):
            key, body = f"{number}", bytes([number % 256]) * size
            status, _ = ask(daemon, "PUT", key, body)
            if status != 200:
                break
            there[key] = body
        assert status >= 500
        assert "OutOfSpace" in daemon.log
        assert len(there) > 2
        assert ask(daemon, "GET", key)[0] == 404
        assert all(ask(daemon, "GET", name) == (200, body) for name, body in there.items())
        others.unlink()
        assert ask(daemon, "PUT", key, b"x" * size)[0] == 200
        assert ask(daemon, "GET", key) == (200, b"x" * size)
        assert daemon.stop() == 0
