"""Pictures of the page for the docs, of a daemon under load: `python -m tests.integration.screenshots [SECONDS]`.

It serves ten minutes of load, so that the chart of them is full, and then takes `docs/page-WIDTH-SCHEME.png`.
"""

from __future__ import annotations

import http.client
import math
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from PIL import Image

from tests.daemon import ROOT, Daemon
from tests.integration.browser import Browser, eventually

_MIB: Final = 1 << 20
#: User agents and key prefixes of clients that other services of a data platform could be.
_CLIENTS: Final = {"ingest": "raw/2026/", "catalog": "tables/", "index": "_vectors/", "query": "results/"}


class _Load:
    """Clients of a daemon, each in a thread, until `ended` is set."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._random = random.Random(13)
        self.ended = threading.Event()

    def start(self) -> None:
        """Start all clients."""
        for serve in (self._mix, self._trickle, self._trickle, self._sip):
            threading.Thread(target=serve, daemon=True).start()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def _ask(self, method: str, path: str, name: str, body: bytes | None = None) -> None:
        connection = self._connect()
        connection.request(method, path, body, {"User-Agent": f"{name}/1.4"})
        connection.getresponse().read()
        connection.close()

    def _begin_put(self, key: str, size: int, name: str) -> http.client.HTTPConnection:
        """Send the head of a PUT."""
        connection = self._connect()
        connection.putrequest("PUT", f"/objects/{key}")
        connection.putheader("Content-Length", str(size))
        connection.putheader("User-Agent", f"{name}/1.4")
        connection.endheaders()
        return connection

    def _mix(self) -> None:
        """PUTs and GETs of all sizes, more and fewer of them in the course of minutes, and a few mistakes."""
        begun = time.monotonic()
        keys: list[str] = []
        while not self.ended.is_set():
            name, prefix = self._random.choice(list(_CLIENTS.items()))
            key = f"{prefix}part-{self._random.randrange(40):05}.parquet"
            self._ask("PUT", f"/objects/{key}", name, bytes(self._random.randrange(4096, 3 * _MIB)))
            keys.append(key)
            for _ in range(3):
                self._ask("GET", f"/objects/{self._random.choice(keys)}", "query")
            if self._random.random() < 0.02:
                self._ask("GET", "/objects/results/not-there", "query")
                self._ask("PUT", "/storage/put/a/../b", "ingest", b"x")
            self.ended.wait(0.8 + 0.7 * math.sin((time.monotonic() - begun) / 70))

    def _trickle(self) -> None:
        """A large PUT that comes slowly, again and again."""
        while not self.ended.is_set():
            size = self._random.randrange(96, 192) * _MIB
            connection = self._begin_put(f"_vectors/segment-{self._random.randrange(10**6):06}.bin", size, "index")
            for _ in range(size // _MIB):
                connection.send(bytes(_MIB))
                self.ended.wait(self._random.uniform(0.5, 1.0))
                if self.ended.is_set():
                    return
            connection.getresponse().read()
            connection.close()

    def _sip(self) -> None:
        """A large GET that is read slowly, again and again."""
        self._ask("PUT", "/objects/raw/2026/everything.arrow", "ingest", bytes(96 * _MIB))
        while not self.ended.is_set():
            connection = self._connect()
            connection.request("GET", "/objects/raw/2026/everything.arrow", headers={"User-Agent": "query/1.4"})
            response = connection.getresponse()
            while response.read(_MIB) and not self.ended.wait(1.0):
                pass
            connection.close()

    def refuse(self) -> None:
        """Begin more PUTs than there are slots, so that some are refused."""
        held = []
        for number in range(6):
            held.append(self._begin_put(f"raw/2026/late-{number}.parquet", _MIB, "ingest"))
            time.sleep(0.2)
        for connection in held:
            connection.close()


def _take(browser: Browser, url: str, path: Path, width: int, dark: bool) -> None:
    """Take a picture of the page, with few colours, as these compress well."""
    browser.show(width, dark)
    browser.open(url)
    eventually(lambda: len(browser.texts("main tr")) > 5)
    # So that the events of the page have come, too.
    time.sleep(3)
    browser.picture(path)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def main(seconds: float) -> None:
    """Serve the load for this long, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder, Daemon(Path(folder), config="[storaged]\nworkers = 2\n") as daemon:
        load = _Load(daemon.port)
        load.start()
        time.sleep(seconds)
        load.refuse()
        with Browser(Path(folder)) as browser:
            for width in (1280, 390):
                for dark in (False, True):
                    name = f"page-{width}-{'dark' if dark else 'light'}.png"
                    _take(browser, daemon.url, ROOT / "docs" / name, width, dark)
        load.ended.set()
        daemon.stop(skip_drain=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 620)
