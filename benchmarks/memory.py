"""That the memory of storaged is bounded: its peak under full load, in front of S3 and with the embedded bucket.

Two sizes are measured, the larger four times the smaller, to show that the peak does not grow with the object. Then
come the clients of `crowds`, which are many, or slow, or leave in the middle; the peak is measured while they are
there, and what is left of it when they have gone.

The promises are LIMIT and LEFT; the script ends with status 1 when one is not kept.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from crowds import CROWDS, KEY, Crowd
from loads import Load, MiB, Server, bclient
from place import S3, Place, s3_sink
from processes import build, peak_rss, rss, running, stop_on_signals
from servers import storaged, storaged_embedded

#: No peak may reach it, in bytes.
LIMIT = 256 * MiB
#: So many bytes more than at the start may be left, so many seconds after everybody has gone.
LEFT = 48 * MiB
SETTLE_SECONDS = 15
#: As many clients at once as storaged has put slots.
CLIENTS = 4
#: What each connection gets of the S3 that is slow: MB a second, and ms until an answer begins.
SLOW_MB, SLOW_MS = 40, 30

#: The daemon, by what it keeps its objects in.
DAEMONS = {"s3": storaged, "local": storaged_embedded}

#: MiB of a body, and how long crowds stay, of their full time.
FULL = (256, 1024)
SMOKE = (32, 128)
SMOKE_TIME = 0.3


def main() -> None:
    """Measure, print, and say with the exit status whether the promises are kept."""
    stop_on_signals()
    options = _options()
    broken = ([] if options.only else _measure_sizes(options)) + _measure_crowds(options)
    print(f"the limits are {LIMIT // MiB}, and {LEFT // MiB} more than before: {'BROKEN' if broken else 'kept'}")
    sys.exit(1 if broken else 0)


def _measure_sizes(options: Namespace) -> list[str]:
    """Print the peaks for two sizes; returns what broke the promise."""
    sizes = SMOKE if options.smoke else FULL
    print(f"{f'peak RSS in MiB, {CLIENTS} at once':<36}" + "".join(f"{f'{size} MiB each':>16}" for size in sizes))
    broken = []
    for kind in DAEMONS:
        columns = [_peaks(kind, size * MiB, options) for size in sizes]
        for verb, row in zip(("PUT", "GET"), zip(*columns, strict=True), strict=True):
            print(f"  {kind:<8}{verb:<26}" + "".join(f"{peak / MiB:>16.0f}" for peak in row))
            broken += [f"{kind} {verb}" for peak in row if peak >= LIMIT]
    return broken


def _measure_crowds(options: Namespace) -> list[str]:
    """Print what each crowd took and left; returns what broke a promise."""
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
    """The memory of a fresh daemon before a crowd came, the peak, and what was left when it had gone."""
    seconds = crowd.seconds * (SMOKE_TIME if options.smoke else 1)
    kind = "local" if crowd.kind == "local" else "s3"
    put = Load("put", KEY, crowd.size)
    with TemporaryDirectory(prefix="storaged-bench-", dir=options.data) as folder, s3_sink(options.port) as near:
        with DAEMONS[kind](Place(Path(folder), options.port + 2, near)) as server:
            server.do(put)
        with _far(options.port + 1, near, crowd.kind == "slow s3") as s3:
            place = Place(Path(folder), options.port + 2, s3)
            with DAEMONS[kind](place) as server:
                # So that what is made once, when it is first needed, is there.
                bclient(server.port, "/health", Load("get", "", 0))
                start = rss(server.pid)
                crowd.work(server.port, seconds)
                time.sleep(SETTLE_SECONDS)
                return start, peak_rss(server.pid), rss(server.pid)


@contextmanager
def _far(port: int, near: S3, slow: bool) -> Iterator[S3]:
    """The same S3, or a slow way to it."""
    if not slow:
        yield near
        return
    command = [build("slowproxy"), str(port), near.endpoint.rpartition(":")[2], str(SLOW_MB), str(SLOW_MS)]
    with running(command, port):
        yield S3(f"http://127.0.0.1:{port}")


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="smaller bodies")
    parser.add_argument("--only", help="only the crowds that have this in their name, or kind")
    parser.add_argument("--data", help="folder on a disk with 4 GiB free, for the embedded bucket [default: $TMPDIR]")
    parser.add_argument("--port", type=int, default=21000, help="the first of three that are free")
    return parser.parse_args()


def _peaks(kind: str, size: int, options: Namespace) -> list[int]:
    """The peaks of a fresh daemon that takes bodies of `size` bytes, and of another that gives such bodies."""
    print(f"{kind}: {CLIENTS} bodies of {size // MiB} MiB", file=sys.stderr)
    loads = [Load(verb, "_vectors/large-%d", size, CLIENTS) for verb in ("put", "get")]
    with TemporaryDirectory(prefix="storaged-bench-", dir=options.data) as folder, s3_sink(options.port) as s3:
        place = Place(Path(folder), options.port + 1, s3)
        return [_peak(DAEMONS[kind], place, load) for load in loads]


def _peak(daemon: Callable[[Place], AbstractContextManager[Server]], place: Place, load: Load) -> int:
    with daemon(place) as server:
        return server.measure(load).peak or 0


if __name__ == "__main__":
    main()
