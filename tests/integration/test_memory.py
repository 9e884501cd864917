"""Memory is a promise: it does not grow with the objects. `benchmarks/memory.py` shows the same at full size, on S3."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.daemon import Daemon

MiB = 1 << 20
SIZE = 256 * MiB
BUDGET = 256 * MiB


def put(daemon: Daemon, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
    connection.putrequest("PUT", f"/storage/put/{key}")
    connection.putheader("Content-Length", str(SIZE))
    connection.endheaders()
    for _ in range(SIZE // MiB):
        connection.send(b"x" * MiB)
    return connection.getresponse().status


def get(daemon: Daemon, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
    connection.request("GET", f"/storage/get/{key}")
    response = connection.getresponse()
    size = 0
    while data := response.read(MiB):
        size += len(data)
    return size


class MemoryTests:
    """Four clients at once."""

    def test_stays_bounded(self, tmp_path: Path) -> None:
        """1 GiB in, 1 GiB out, in less than 256 MiB."""
        with Daemon(tmp_path) as daemon, ThreadPoolExecutor(4) as clients:
            assert list(clients.map(lambda key: put(daemon, key), "abcd")) == [200] * 4
            assert list(clients.map(lambda key: get(daemon, key), "abcd")) == [SIZE] * 4
            assert daemon.peak_rss() < BUDGET
