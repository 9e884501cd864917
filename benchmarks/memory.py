"""Measures that the memory of storaged is bounded: its peak under load, in front of S3 and with the embedded bucket.

It measures two sizes of objects, the larger four times the smaller, to show that the peak does not depend on the size.
A daemon with WORKERS workers gets the larger ones, and many slow readers. Then come the loads of `crowds`: the peak is
measured during each, and the memory that is left after it. The exit status is 1 if a limit is exceeded.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from crowds import CROWDS, KEY, Crowd, slow_readers
from loads import Load, MiB, Server, bclient
from place import S3, Place, s3_sink
from processes import build, children, memory, peak_rss, rss, running, stop_on_signals
from servers import storaged, storaged_embedded

#: Limit of each peak, in bytes.
LIMIT = 256 * MiB
#: Limit of the growth that is left when all clients have disconnected, in bytes; and the seconds after which it counts.
LEFT = 48 * MiB
SETTLE_SECONDS = 15
#: The number of workers of a daemon with several; and the limits of the peak of all its processes, and of the
#: supervisor alone, in bytes.
WORKERS = 2
WORKERS_LIMIT = 384 * MiB
SUPERVISOR_LIMIT = 64 * MiB
#: Seconds between two looks at the memory of a daemon with several processes.
LOOK_SECONDS = 0.05
#: The number of concurrent clients: as many as there are put slots.
CLIENTS = 4
#: The pace of a connection to the slow S3: MB a second, and ms until the first byte of a response.
SLOW_MB, SLOW_MS = 40, 30

#: The daemons, by their kind of bucket.
DAEMONS = {"s3": storaged, "local": storaged_embedded}

#: The two sizes of bodies in MiB; and, for --smoke, the share of a crowd's full time.
FULL = (256, 1024)
SMOKE = (32, 128)
SMOKE_TIME = 0.3


def main() -> None:
    """Measure and print; the exit status says whether the limits are kept."""
    stop_on_signals()
    options = _options()
    broken = [] if options.only else [*_measure_sizes(options), *_measure_workers(options)]
    broken += _measure_crowds(options)
    limits = f"{LIMIT // MiB}, {WORKERS_LIMIT // MiB} for {WORKERS} workers, {SUPERVISOR_LIMIT // MiB} for a supervisor"
    verdict = "BROKEN" if broken else "kept"
    print(f"the limits are {limits}, and for each process {LEFT // MiB} more than before: {verdict}")
    sys.exit(1 if broken else 0)


def _measure_sizes(options: Namespace) -> list[str]:
    """Print the peaks for two sizes; returns what exceeded the limit."""
    sizes = SMOKE if options.smoke else FULL
    print(f"{f'peak RSS in MiB, {CLIENTS} at once':<36}" + "".join(f"{f'{size} MiB each':>16}" for size in sizes))
    broken = []
    for kind in DAEMONS:
        columns = [_peaks(kind, size * MiB, options) for size in sizes]
        for verb, row in zip(("PUT", "GET"), zip(*columns, strict=True), strict=True):
            print(f"  {kind:<8}{verb:<26}" + "".join(f"{peak / MiB:>16.0f}" for peak in row))
            broken += [f"{kind} {verb}" for peak in row if peak >= LIMIT]
    return broken


def _measure_workers(options: Namespace) -> list[str]:
    """Print the memory of the processes of a daemon with several workers; returns what exceeded a limit."""
    titles = ("supervisor", "each worker", "at the start", "peak", "in the end")
    print(f"{f'PSS in MiB, {WORKERS} workers':<36}" + "".join(f"{title:>16}" for title in titles), flush=True)
    broken = []
    for kind, name, work in _works_for_workers(options):
        supervisor, _, start, peak, end = found = _with_workers(kind, work, options)
        print(f"  {kind:<8}{name:<26}" + "".join(f"{size / MiB:>16.0f}" for size in found), flush=True)
        if supervisor >= SUPERVISOR_LIMIT or peak >= WORKERS_LIMIT or end > start + LEFT * WORKERS:
            broken.append(f"{WORKERS} workers, {kind}: {name}")
    return broken


def _works_for_workers(options: Namespace) -> Iterator[tuple[str, str, Callable[[Server], object]]]:
    """The loads of a daemon with several workers: the kind of its bucket, what is done, and what does it."""
    size = (SMOKE if options.smoke else FULL)[-1]
    loads = [Load(verb, "_vectors/large-%d", size * MiB, CLIENTS) for verb in ("put", "get")]
    for kind in DAEMONS:
        yield kind, f"{CLIENTS} x {size} MiB PUT and GET", lambda server: [server.do(load) for load in loads]
    # Of the crowds, the one with the highest peak.
    crowd = next(crowd for crowd in CROWDS if crowd.work is slow_readers)

    def work(server: Server) -> None:
        server.do(Load("put", KEY, crowd.size))
        crowd.work(server.port, crowd.seconds * (SMOKE_TIME if options.smoke else 1))

    yield crowd.kind, crowd.name, work


def _with_workers(kind: str, work: Callable[[Server], object], options: Namespace) -> tuple[int, int, int, int, int]:
    """The memory of a fresh daemon: its supervisor, a worker, all before a load, their peak, and all afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="storaged-bench-", dir=options.data))
        s3 = stack.enter_context(s3_sink(options.port))
        place = Place(Path(folder), options.port + 1, s3, workers=WORKERS)
        server = stack.enter_context(DAEMONS[kind](place))
        processes = [server.pid, *children(server.pid)]
        # First requests, as they allocate what later ones reuse.
        for _ in range(WORKERS):
            bclient(server.port, "/health", Load("get", "", 0))
        supervisor, *workers = map(memory, processes)
        peak = supervisor + sum(workers)
        done = stack.enter_context(ThreadPoolExecutor(1)).submit(work, server)
        while not done.done():
            peak = max(peak, sum(map(memory, processes)))
            time.sleep(LOOK_SECONDS)
        done.result()
        time.sleep(SETTLE_SECONDS)
        return supervisor, max(workers), supervisor + sum(workers), peak, sum(map(memory, processes))


def _measure_crowds(options: Namespace) -> list[str]:
    """Print the memory before, during and after each crowd; returns what exceeded a limit."""
    print(
        f"{'RSS in MiB':<36}" + "".join(f"{title:>16}" for title in ("at the start", "peak", "in the end")), flush=True
    )
    broken = []
    for crowd in CROWDS:
        if options.only and options.only not in f"{crowd.kind} {crowd.name}":
            continue
        start, peak, end = _crowded(crowd, options)
        print(
            f"  {crowd.kind:<8}{crowd.name:<26}" + "".join(f"{size / MiB:>16.0f}" for size in (start, peak, end)),
            flush=True,
        )
        if peak >= LIMIT or end > start + LEFT:
            broken.append(crowd.name)
    return broken


def _crowded(crowd: Crowd, options: Namespace) -> tuple[int, int, int]:
    """The memory of a fresh daemon before a crowd, its peak, and the memory afterwards."""
    seconds = crowd.seconds * (SMOKE_TIME if options.smoke else 1)
    kind = "local" if crowd.kind == "local" else "s3"
    put = Load("put", KEY, crowd.size)
    with TemporaryDirectory(prefix="storaged-bench-", dir=options.data) as folder, s3_sink(options.port) as near:
        with DAEMONS[kind](Place(Path(folder), options.port + 2, near)) as server:
            server.do(put)
        with _far(options.port + 1, near, crowd.kind == "slow s3") as s3:
            place = Place(Path(folder), options.port + 2, s3)
            with DAEMONS[kind](place) as server:
                # A first request, as it allocates what later ones reuse.
                bclient(server.port, "/health", Load("get", "", 0))
                start = rss(server.pid)
                crowd.work(server.port, seconds)
                time.sleep(SETTLE_SECONDS)
                return start, peak_rss(server.pid), rss(server.pid)


@contextmanager
def _far(port: int, near: S3, slow: bool) -> Iterator[S3]:
    """The S3, or a slow proxy of it."""
    if not slow:
        yield near
        return
    command = [build("slowproxy"), str(port), near.endpoint.rpartition(":")[2], str(SLOW_MB), str(SLOW_MS)]
    with running(command, port):
        yield S3(f"http://127.0.0.1:{port}")


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="smaller bodies")
    parser.add_argument("--only", help="only the crowds with this in their kind or name")
    parser.add_argument("--data", help="folder on a disk with 4 GiB free, for the embedded bucket [default: $TMPDIR]")
    parser.add_argument("--port", type=int, default=21000, help="the first of three free ports")
    return parser.parse_args()


def _peaks(kind: str, size: int, options: Namespace) -> list[int]:
    """The peaks of a fresh daemon that receives bodies of `size` bytes, and of another one that sends them."""
    print(f"{kind}: {CLIENTS} bodies of {size // MiB} MiB", file=sys.stderr)
    loads = [Load(verb, "_vectors/large-%d", size, CLIENTS) for verb in ("put", "get")]
    with TemporaryDirectory(prefix="storaged-bench-", dir=options.data) as folder, s3_sink(options.port) as s3:
        place = Place(Path(folder), options.port + 1, s3)
        peaks = []
        for load in loads:
            with DAEMONS[kind](place) as server:
                peaks.append(server.measure(load).peak or 0)
        return peaks


if __name__ == "__main__":
    main()
