"""Loads on a server, the samples that they give, and the two clients that make requests: bclient, and curl for TLS."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from processes import CannotMeasure, build, cpu_seconds, environment, peak_rss

MiB = 1 << 20
GiB = 1 << 30

BUCKET = "bench"

#: Seconds after which a client is stopped, as a peer may hang.
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Load:
    """What `connections` clients do concurrently, each making one request after the other.

    Attributes:
        verb: put, get or list.
        key: the key of the objects, or the prefix of the list; %d is the number of the connection, and %n that of the
            request, modulo `keys`.
        size: bytes of an object, or the number of listed keys.
        count: requests of each connection; if 0, as many as it can make in `seconds`.
    """

    verb: str
    key: str
    size: int
    connections: int = 1
    count: int = 1
    seconds: float = 0
    keys: int = 0

    def key_of(self, connection: int, request: int) -> str:
        """The key of one request."""
        number = request % self.keys if self.keys else request
        return self.key.replace("%d", str(connection)).replace("%n", str(number))

    def all_keys(self) -> Iterable[str]:
        """The keys of all requests."""
        count = self.keys or self.count
        return (self.key_of(connection, n) for connection in range(self.connections) for n in range(count))


@dataclass(frozen=True)
class Sample:
    """The result of one measurement.

    Attributes:
        seconds: duration by the wall clock.
        requests: the number of answered requests.
        bytes: bytes of the bodies that were transferred.
        p99: the 99th percentile of a request's time, in ms.
        cpu: CPU-seconds of the measured process alone; None if its cost is not measured.
        peak: the peak of its resident memory in bytes.
    """

    seconds: float
    requests: int
    bytes: int
    p99: float = 0
    cpu: float | None = None
    peak: int | None = None


@dataclass(frozen=True)
class Server:
    """A process that serves requests on a port of this host, and a function that gives the path of an object."""

    pid: int
    port: int
    path: Callable[[Load], str]
    tls: bool = False

    def measure(self, *loads: Load) -> Sample:
        """Run loads on it, one after the other, and measure its cost. Raises CannotMeasure if a request fails."""
        before = cpu_seconds(self.pid)
        done = [self.do(load) for load in loads]
        return Sample(
            seconds=sum(sample.seconds for sample in done),
            requests=sum(sample.requests for sample in done),
            bytes=sum(sample.bytes for sample in done),
            p99=max(sample.p99 for sample in done),
            cpu=cpu_seconds(self.pid) - before,
            peak=peak_rss(self.pid),
        )

    def do(self, load: Load) -> Sample:
        """Run a load on it; the sample has only what the clients see."""
        return curl(self.port, self.path(load), load) if self.tls else bclient(self.port, self.path(load), load)


def storaged_path(load: Load) -> str:
    """The path of a load's objects at storaged."""
    return f"/storage/list?prefix={load.key}" if load.verb == "list" else f"/storage/{load.verb}/{load.key}"


def s3_path(load: Load) -> str:
    """The path of a load's objects at S3, and at proxies of it."""
    return f"/{BUCKET}/{load.key}"


def bclient(port: int, path: str, load: Load) -> Sample:
    """Run a load with bclient.c."""
    # bclient checks the size of a response, unless it is 0: that of a list is not known.
    verb, size = ("get", 0) if load.verb == "list" else (load.verb, load.size)
    numbers = (size, load.connections, load.count, load.seconds, load.keys)
    seen = json.loads(_output([build("bclient"), verb, str(port), path, *map(str, numbers)]))
    return Sample(seen["secs"], seen["ok"], seen["bytes"], seen["p99"])


def curl(port: int, path: str, load: Load) -> Sample:
    """Make one request over TLS with curl, which accepts any certificate, as that of the benchmark is self-signed."""
    if load.connections * load.count != 1:
        raise CannotMeasure(f"{load}: curl makes one request")
    body = some_bytes(load.size)
    move = ["--upload-file", f"/proc/self/fd/{body}"] if load.verb == "put" else []
    report = ["--output", os.devnull, "--write-out", "%{time_total} %{size_upload} %{size_download}"]
    url = f"https://127.0.0.1:{port}{path.replace('%d', '0')}"
    command = ["curl", "--disable", "--silent", "--show-error", "--fail", "--insecure", "--http1.1"]
    seconds, up, down = _output([*command, *move, *report, url], body).split()
    moved = int(up) if load.verb == "put" else int(down)
    if moved != load.size:
        raise CannotMeasure(f"{load}: {moved} bytes were moved")
    return Sample(float(seconds), 1, moved, float(seconds) * 1e3)


@cache
def some_bytes(size: int) -> int:
    """The descriptor of a file in memory with so many random bytes, which do not compress."""
    body = os.memfd_create("body")
    block = os.urandom(min(size, 16 * MiB))
    for start in range(0, size, len(block)):
        os.pwrite(body, block[: size - start], start)
    return body


def _output(command: list[str], *descriptors: int) -> str:
    try:
        ended = subprocess.run(
            command,
            env=environment(),
            pass_fds=descriptors,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotMeasure(str(error)) from None
    if ended.returncode != 0:
        raise CannotMeasure(f"{' '.join(command)} failed: {ended.stdout}{ended.stderr}")
    return ended.stdout
