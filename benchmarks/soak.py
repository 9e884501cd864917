"""Runs a mixed load for minutes and checks that memory, open files and threads of storaged do not grow.

The load has bodies of 0 to 40 MiB, overwrites, deletes, bodies that break off and slow readers. Each read is compared
with a model of what must be there, and at the end all objects are. The exit status is 1 if an object is lost or torn,
if orphans are left, or if the usage grows after the second minute.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults.audit import audit, listed, print_figures
from tests.faults.clients import Client, Gone, KiB, MiB, Tally, in_threads
from tests.faults.model import Model
from tests.faults.places import Place, ceph, local, stop_on_signals

#: The number of clients: more than there are put slots.
CLIENTS = 8
KEYS = [f"soak/key-{number:02}" for number in range(60)]
#: The longest pause of a client between two requests, in seconds.
PAUSE = 0.2
#: Seconds between two samples.
INTERVAL = 2.0
#: Size of the Ceph cluster in GiB, as overwritten objects stay there for a while.
CEPH_GIB = 32

#: The allowed growth since the second minute: a factor, and an amount of each figure. Thread pools start threads, each
#: with a connection, when they first need them; a leak would grow with every request.
GROWTH = 1.15
SLACK = {"RSS MiB": 16.0, "open files": 16.0, "threads": 12.0}


class Sample(NamedTuple):
    """The usage of the process: seconds since the start, and figures by name."""

    at: float
    figures: dict[str, float]


def look(pid: int, at: float) -> Sample:
    """Read the usage of a process. See proc(5)."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text("ascii").splitlines())
    # Only root may list the folder; its size is the number since Linux 6.2.
    files = (process / "fd").stat().st_size or sum(1 for _ in (process / "fd").iterdir())
    rss = int(status["VmRSS"].split()[0]) / KiB
    return Sample(at, {"RSS MiB": rss, "open files": files, "threads": int(status["Threads"])})


def middle(samples: list[Sample], name: str, begin: float, end: float) -> float:
    """The median of a figure from `begin` to before `end`, in seconds."""
    return median(sample.figures[name] for sample in samples if begin <= sample.at < end)


def what_grew(samples: list[Sample], seconds: float) -> list[str]:
    """The figures whose median in the last third exceeds that in the second minute by more than is allowed."""
    grown = []
    for name, slack in SLACK.items():
        before, after = middle(samples, name, 60, 120), middle(samples, name, seconds * 2 / 3, seconds)
        if after > before * GROWTH + slack:
            grown.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return grown


def size(source: random.Random) -> int:
    """A random size: mostly small, sometimes very large; often just at a limit."""
    kind = source.random()
    if kind < 0.55:
        return source.choice([0, 1, 64 * KiB, 64 * KiB + 1, source.randrange(64 * KiB)])
    if kind < 0.85:
        return source.randrange(64 * KiB, 2 * MiB)
    return source.choice([5 * MiB, source.randrange(2 * MiB, 12 * MiB), source.randrange(12 * MiB, 40 * MiB)])


def one_thing(client: Client) -> None:
    """Make a random request for a random key."""
    key, kind = client.random.choice(KEYS), client.random.random()
    if kind < 0.40:
        client.read(key)
    elif kind < 0.45:
        client.read(key, slowly=True)
    elif kind < 0.55:
        client.delete(key)
    elif kind < 0.65:
        client.break_off(key, size(client.random) + 1)
    else:
        client.put(key, size(client.random), chunked=kind > 0.9)


def sampled(place: Place, seconds: float, tally: Tally) -> Iterator[Sample]:
    """Sample the process for so many seconds, and print a row for each minute."""
    start = time.monotonic()
    print("minute" + "".join(f"{name:>14}" for name in [*SLACK, "requests"]), flush=True)
    minute: list[Sample] = []
    while (at := time.monotonic() - start) < seconds:
        if minute and at // 60 > minute[0].at // 60:
            _print_row(minute, tally)
            minute.clear()
        minute.append(look(place.daemon.process.pid, at))
        yield minute[-1]
        time.sleep(INTERVAL)
    _print_row(minute, tally)


def soak(place: Place, seconds: float, seed: int, tally: Tally) -> list[str]:
    """Let all clients work for so many seconds; returns what grew."""
    stop = threading.Event()
    model = Model()

    def work(client: Client) -> None:
        while not stop.wait(client.random.uniform(0, PAUSE)):
            try:
                one_thing(client)
            except Gone as error:
                tally.fault("error", str(error))

    clients = [Client(place.daemon, model, tally, seed + number) for number in range(CLIENTS)]
    threads = in_threads(clients, work)
    try:
        samples = list(sampled(place, seconds, tally))
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    audit(place, model, tally)
    return what_grew(samples, seconds)


def main() -> int:
    """Run the load and print the figures; the exit status says whether all is well."""
    stop_on_signals()
    options = _options()
    places: dict[str, AbstractContextManager[Place]] = {"local": local(), "ceph": ceph(CEPH_GIB, "bluestore")}
    tally = Tally()
    with places[options.engine] as place, place.daemon:
        grown = soak(place, options.minutes * 60, options.seed, tally)
        orphans = place.orphans_in_the_end(listed(place.daemon))
    title = f"soaked on {options.engine} for {options.minutes:g} minutes, seed {options.seed}"
    print_figures(title, tally, orphans, grown or ["memory, open files and threads are flat"])
    return 1 if grown or orphans or tally.faults else 0


def _print_row(minute: list[Sample], tally: Tally) -> None:
    figures = [f"{median(sample.figures[name] for sample in minute):>14.0f}" for name in SLACK]
    print(f"{minute[0].at // 60 + 1:>6.0f}" + "".join(figures) + f"{sum(tally.done.values()):>14,}", flush=True)


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="at least three, as the second is compared [10]")
    parser.add_argument("--engine", choices=["local", "ceph"], default="local")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="seed of keys, sizes and kinds")
    options = parser.parse_args()
    if options.minutes < 3:
        parser.error(f"--minutes is {options.minutes:g}: expected at least 3")
    return options


if __name__ == "__main__":
    sys.exit(main())
