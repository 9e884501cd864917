"""That the memory of storaged is bounded: its peak under full load, in front of S3 and with the embedded bucket.

Two sizes are measured, the larger four times the smaller, to show that the peak does not grow with the object. The
promise is LIMIT; the script ends with status 1 when it is not kept.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

from loads import Load, MiB, Server
from place import Place, s3_sink
from processes import stop_on_signals
from servers import storaged, storaged_embedded

#: No peak may reach it, in bytes.
LIMIT = 256 * MiB
#: As many clients at once as storaged has put slots.
CLIENTS = 4

#: The daemon, by what it keeps its objects in.
DAEMONS = {"s3": storaged, "local": storaged_embedded}

#: MiB of a body.
FULL = (256, 1024)
SMOKE = (32, 128)


def main() -> None:
    """Measure, print, and say with the exit status whether the promise is kept."""
    stop_on_signals()
    options = _options()
    sizes = SMOKE if options.smoke else FULL
    print(f"{f'peak RSS in MiB, {CLIENTS} at once':<30}" + "".join(f"{f'{size} MiB each':>16}" for size in sizes))
    peaks: list[int] = []
    for kind in DAEMONS:
        columns = [_peaks(kind, size * MiB, options) for size in sizes]
        for verb, row in zip(("PUT", "GET"), zip(*columns, strict=True), strict=True):
            print(f"  {kind:<6} {verb:<21}" + "".join(f"{peak / MiB:>16.0f}" for peak in row))
            peaks += row
    kept = max(peaks) < LIMIT
    print(f"the limit is {LIMIT // MiB}: {'kept' if kept else 'BROKEN'}")
    sys.exit(0 if kept else 1)


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="smaller bodies")
    parser.add_argument("--data", help="folder on a disk with 4 GiB free, for the embedded bucket [default: $TMPDIR]")
    parser.add_argument("--port", type=int, default=21000, help="the first of two that are free")
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
