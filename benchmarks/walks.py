"""Counts the files of twisted_storaged that typical requests enter, and lists them.

A complete storaged runs in this process, with a client on a plain socket. From the first byte of a request until its
response has been read, the file of each function that is called is recorded, in all threads. The same request is made
before, so that what happens only once is not counted.

Each request is counted several times. Whether a send is complete at once, or a batch has one member, depends on timing;
so the largest count is printed, and files that were not entered each time are marked.
"""

from __future__ import annotations

import socket
import sys
import threading
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from bare import make_client
from loads import BUCKET, MiB
from place import Place, s3_sink
from processes import HERE, CannotMeasure, stop_on_signals
from servers import embedded_options, s3_options
from twisted.application.service import Service
from twisted.internet.task import deferLater
from twisted.internet.threads import blockingCallFromThread

sys.path.insert(0, str(HERE.parent))

from twisted_storaged.tap import Options, makeService

PACKAGE = f"{HERE.parent / 'twisted_storaged'}/"

#: How many times a request is made before it is counted, and how many times it is counted.
WARM_UPS, COUNTS = 3, 7
#: Functions that timers call, or that go on with what a timer began.
TIMERS = {
    "HeapTrimmer._look",
    "LocalBucket._check",
    "LocalBucket.check",
    "Readiness._answered",
    "Readiness.check",
    "ReactorLag._check",
    "S3Bucket.check",
    "StorageSite.flush_log",
    "UnderWay.sample",
}
#: Reactor iterations after a response in which the daemon completes what is left to do for the request.
ITERATIONS = 5
#: Bytes of the body of a large PUT, whose parts take the same path as the many of 1 GiB.
LARGE_PUT = 64 * MiB
#: Bytes of a spliced GET, too few to be fetched in several concurrent ranges.
LARGE_GET = 16 * MiB


@dataclass(frozen=True)
class Walk:
    """A request whose files are counted.

    Attributes:
        name: its name in the table.
        at_most: the number of files that it may enter.
        options: a function that gives the options of the storaged that serves it.
        request: its request line and headers.
        body: bytes of its body.
        status: the expected status.
        closes: whether the response ends the connection, so that each request takes a new one.
        held: the headers of another request, which is sent before and whose body is never sent.
    """

    name: str
    at_most: int
    options: Callable[[Place], list[str]]
    request: bytes
    body: int = 0
    status: int = 200
    closes: bool = False
    held: bytes = b""


def put(key: str, size: int) -> bytes:
    """The request line and headers of a PUT."""
    return b"PUT /storage/put/%s HTTP/1.1\r\nHost: storaged\r\nContent-Length: %d\r\n\r\n" % (key.encode(), size)


def get(key: str) -> bytes:
    """A GET."""
    return b"GET /storage/get/%s HTTP/1.1\r\nHost: storaged\r\n\r\n" % key.encode()


WALKS = (
    Walk("PUT of 4 KiB, embedded bucket", 20, embedded_options, put("small", 4096), 4096),
    Walk("PUT of 1 GiB, S3", 28, s3_options, put("large", LARGE_PUT), LARGE_PUT),
    # The sink has an object of each size.
    Walk(
        "GET, spliced from S3",
        22,
        partial(s3_options, settings="verify_reads = false\n"),
        get(f"size-{LARGE_GET}"),
    ),
    Walk(
        "PUT, refused with 503",
        15,
        embedded_options,
        put("refused", 4096),
        4096,
        503,
        closes=True,
        held=put("held", 4096),
    ),
)


class Recorder:
    """Records the files of the package whose functions are called, in all threads."""

    def __init__(self) -> None:
        self._files: set[str] | None = None

    def install(self) -> None:
        """Trace all calls in this thread and in those that are started later."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    @contextmanager
    def recording(self) -> Iterator[set[str]]:
        """Yield a set that collects files, relative to the package, until the end of the block."""
        files: set[str] = set()
        self._files = files
        yield files
        self._files = None

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        files = self._files
        if event == "call" and files is not None:
            name = frame.f_code.co_filename
            if name.startswith(PACKAGE) and not _is_of_timer(frame):
                files.add(name.removeprefix(PACKAGE))


def _is_of_timer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_qualname in TIMERS:
            return True
        frame = frame.f_back
    return False


class Client:
    """A client with one connection, for use in another thread than the reactor's."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, head: bytes, body: int = 0) -> None:
        """Send a request, its headers and the first bytes of its body together."""
        piece = bytes(min(body, MiB))
        self._socket.sendall(head + piece)
        for _ in range(body // MiB - 1):
            self._socket.sendall(piece)

    def receive(self) -> int:
        """Read a response completely; returns its status."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._some()
        head, _, body = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        left = int(fields[b"content-length"]) - len(body)
        while left:
            left -= len(self._some())
        return int(head.split(b" ")[1])

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _some(self) -> bytes:
        data = self._socket.recv(MiB)
        if not data:
            raise CannotMeasure("storaged closed the connection before the end of its response")
        return data


def main() -> None:
    """Count and print; the exit status is 1 if a request entered too many files."""
    stop_on_signals()
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=21000, help="the first of as many free ports as there are walks")
    options = parser.parse_args()
    recorder = Recorder()
    recorder.install()
    with TemporaryDirectory(prefix="storaged-bench-") as folder, s3_sink(options.port) as s3:
        make_client(s3).create_bucket(Bucket=BUCKET)
        places = [Place(Path(folder) / str(n), options.port + n, s3, 1) for n in range(1, len(WALKS) + 1)]
        counts = _count_all(places, recorder)
    print("\n".join([*_table(counts), *_lists(counts)]))
    sys.exit(any(max(map(len, counted)) > walk.at_most for walk, counted in zip(WALKS, counts, strict=True)))


def _count_all(places: list[Place], recorder: Recorder) -> list[list[set[str]]]:
    """The files of each walk, for each time it was counted."""
    counts: list[list[set[str]]] = []
    services = []
    for walk, place in zip(WALKS, places, strict=True):
        place.folder.mkdir()
        services.append(_service(walk, place))
    # Imported only now, as makeService has installed the daemon's own reactor.
    from twisted.internet import reactor as installed  # noqa: PLC0415

    reactor: Any = installed

    def count() -> None:
        try:
            for walk, place, service in zip(WALKS, places, services, strict=True):
                blockingCallFromThread(reactor, service.startService)
                counts.append(_count(walk, place.port, recorder, reactor))
                blockingCallFromThread(reactor, service.stopService)
        finally:
            reactor.callFromThread(reactor.stop)

    reactor.callWhenRunning(lambda: threading.Thread(target=count).start())
    reactor.run()
    if len(counts) < len(WALKS):
        raise CannotMeasure("not all requests could be counted")
    return counts


def _service(walk: Walk, place: Place) -> Service:
    options = Options()
    options.parseOptions([f"--bind=127.0.0.1:{place.port}", *walk.options(place)])
    return makeService(options)


def _count(walk: Walk, port: int, recorder: Recorder, reactor: Any) -> list[set[str]]:
    """Make a request repeatedly, in another thread than the reactor's; returns the files of each counted time."""
    counted = []
    with closing(Client(port)) as holder, closing(Client(port)) as kept:
        holder.send(walk.held)
        for _ in range(WARM_UPS + COUNTS):
            client = Client(port) if walk.closes else kept
            _iterate(reactor)
            with recorder.recording() as files:
                client.send(walk.request, walk.body)
                status = client.receive()
                if walk.closes:
                    client.close()
                _iterate(reactor)
            if status != walk.status:
                raise CannotMeasure(f"{walk.name}: the status was {status}")
            counted.append(files)
    return counted[WARM_UPS:]


def _iterate(reactor: Any) -> None:
    for _ in range(ITERATIONS):
        blockingCallFromThread(reactor, deferLater, reactor, 0)


def _table(counts: list[list[set[str]]]) -> Iterator[str]:
    yield f"{'files that a request enters':<32}{'counted':>8}{'at most':>9}"
    for walk, counted in zip(WALKS, counts, strict=True):
        yield f"{walk.name:<32}{max(map(len, counted)):>8}{walk.at_most:>9}"


def _lists(counts: list[list[set[str]]]) -> Iterator[str]:
    for walk, counted in zip(WALKS, counts, strict=True):
        times = Counter(name for files in counted for name in files)
        yield f"\n{walk.name}:"
        for name in sorted(times):
            yield f"    {name}" + ("" if times[name] == COUNTS else f"  ({times[name]} of {COUNTS} times)")


if __name__ == "__main__":
    main()
