"""The program curl against a real daemon: uploads, refusals and deletes, as from a shell."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.integration.test_daemon import head

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl"),
]

CONFIG = '[storaged]\nput_slots = 1\n[[policy]]\nprefix = "small/"\nmax_put = "1 MiB"\n'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("curl"), config=CONFIG) as daemon:
        yield daemon


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(b"x" * (8 << 20))
    return path


def curl(daemon: Daemon, path: str, *options: str | Path) -> tuple[int, int, str]:
    """Run curl; returns the status, the number of uploaded bytes, and the body of the response."""
    command = ["curl", "-sS", "-m", "60", "-w", "\n%{http_code} %{size_upload}", *map(str, options), daemon.url + path]
    output = subprocess.run(command, capture_output=True, check=True, timeout=90).stdout.decode()
    body, _, figures = output.rpartition("\n")
    status, uploaded = figures.split()
    return int(status), int(uploaded), body


class UploadTests:
    """Uploads with `curl -T`."""

    def test_round_trip(self, daemon: Daemon, big: Path, tmp_path: Path) -> None:
        """A file that curl uploads, with the 100 Continue that it asks for, comes back byte for byte."""
        status, uploaded, body = curl(daemon, "/storage/put/big", "-T", big)
        assert (status, uploaded) == (200, 8 << 20)
        assert json.loads(body)["size"] == 8 << 20
        back = tmp_path / "back"
        assert curl(daemon, "/storage/get/big", "-o", back)[0] == 200
        assert back.read_bytes() == big.read_bytes()

    @pytest.mark.parametrize(
        ("path", "expected"),
        [("/storage/put/small/a", 413), ("/storage/put/a/../b", 400), ("/x", 404), ("/health", 405)],
    )
    def test_a_refusal_uploads_nothing(self, daemon: Daemon, big: Path, path: str, expected: int) -> None:
        """A PUT that is refused for its length uploads not one byte of its body."""
        status, uploaded, _ = curl(
            daemon, path, "--path-as-is", "-T", big, "-H", "Expect: 100-continue", "--expect100-timeout", "30"
        )
        assert (status, uploaded) == (expected, 0)

    def test_no_free_slot_uploads_nothing(self, daemon: Daemon, big: Path) -> None:
        """A PUT without a free slot is 503 at once, and uploads nothing."""
        holder = daemon.connect()
        holder.sendall(head("a", 10) + b"x")
        options = ("-T", big, "-H", "Expect: 100-continue", "--expect100-timeout", "30")
        status, uploaded, body = curl(daemon, "/storage/put/big", *options)
        assert (status, uploaded, body) == (503, 0, "storaged: put concurrency cap reached\n")
        holder.sendall(b"x" * 9)
        assert holder.recv(1000).startswith(b"HTTP/1.1 200")

    def test_a_chunked_body_over_the_cap(self, daemon: Daemon, big: Path) -> None:
        """A chunked upload over the limit is 413 and stores nothing."""
        for _ in range(10):
            status, _, body = curl(
                daemon, "/storage/put/small/a", "-T", big, "-H", "Transfer-Encoding: chunked", "-H", "Expect:"
            )
            assert (status, body) == (413, "payload too large\n")
        assert curl(daemon, "/storage/get/small/a")[0] == 404

    def test_a_chunked_body_under_the_cap(self, daemon: Daemon, big: Path) -> None:
        """A chunked upload under the limit is stored."""
        assert curl(daemon, "/storage/put/big", "-T", big, "-H", "Transfer-Encoding: chunked")[0] == 200

    def test_delete(self, daemon: Daemon, big: Path) -> None:
        """DELETE is 204, also when it is repeated."""
        curl(daemon, "/storage/put/gone", "-T", big)
        assert curl(daemon, "/storage/delete/gone", "-X", "DELETE")[0] == 204
        assert curl(daemon, "/storage/delete/gone", "-X", "DELETE")[0] == 204
        assert curl(daemon, "/storage/get/gone")[0] == 404
