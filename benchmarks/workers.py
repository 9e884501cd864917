"""Compares storaged with two workers with storaged with one, and shows how evenly connections are spread.

All contestants run at the same time, and one after the other gets a load, again and again in alternating order. A ratio
is the median of those of such turns. BARS are the ratios that two workers are to reach. The exit status is 1 if a
measurement failed, or if one worker gets more than its share of the connections.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from figures import FIGURES
from loads import GiB, Load, MiB, Sample, Server, storaged_path
from measuring import MANY_SLOTS, SLOTS
from place import Place, s3_sink
from processes import BUILD, CannotMeasure, children, running, stop_on_signals
from report import number
from rows import LARGE, SMALL, KiB
from servers import storaged, storaged_embedded

#: The contestant whose figures are divided by those of the others, and the one that the bars are for.
TWO, ONE = "two workers", "one worker"

#: The ratios to ONE that TWO is to reach, by row and figure.
BARS: Mapping[str, Mapping[str, float]] = {
    "put-4k": {"requests/s": 1.5, "CPU µs": 1.2},
    "get-4k": {"requests/s": 1.4, "CPU µs": 1.2},
    "get-100k": {"requests/s": 1.2, "CPU µs": 1.2},
    "put-4": {"GB/s": 1},
    "get-4": {"GB/s": 1},
    "embedded-put-4k": {"requests/s": 1},
    "embedded-get-4k": {"requests/s": 1.4, "CPU µs": 1.2},
}

#: Numbers of connections that are opened at once, the number of trials, and the share of them that one of two workers
#: may have in the worst trial.
SPREADS = (4, 16, 64)
TRIALS = 20
MAX_SHARE = 0.6
#: Seconds within which the connections of a trial are served, or closed.
SPREAD_SECONDS = 5.0

#: Starts a contestant.
Start = Callable[[Place], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Row:
    """A load, the place of the contestants that it is put on, and the figures that are compared."""

    name: str
    title: str
    place: str
    load: Load
    figures: Sequence[str]

    @property
    def bars(self) -> Mapping[str, float]:
        """The bars by figure; they are the same for any number of connections."""
        return BARS.get(self.name.rpartition(":")[0] or self.name, {})


#: The ways to start storaged, by place.
STORAGED: Mapping[str, Start] = {"s3": storaged, "embedded": storaged_embedded}


def rows(seconds: float, large: int) -> Iterator[Row]:
    """All rows; small requests are made for `seconds`, and large bodies have `large` bytes."""
    for connections in (16, 64):
        for place, prefix in (("s3", ""), ("embedded", "embedded-")):
            for size in (4, 100) if place == "s3" else (4,):
                for verb in ("put", "get"):
                    title = f"{'embedded: ' * bool(prefix)}{verb.upper()} {size} KiB, {connections} connections"
                    keys = 1000 if verb == "put" else 16
                    load = Load(verb, f"small/{size}-%d-%n", size * KiB, connections, 0, seconds, keys)
                    yield Row(f"{prefix}{verb}-{size}k:{connections}", title, place, load, SMALL)
    for verb in ("put", "get"):
        for size, connections in ((large, 1), (large // 2, 4)):
            # The limit of a body is 4 GiB under this prefix.
            load = Load(verb, f"_vectors/{size}-%d", size, connections)
            name = verb if connections == 1 else f"{verb}-{connections}"
            yield Row(name, f"{verb.upper()} {connections} x {size // MiB} MiB", "s3", load, LARGE)
    yield Row("list", "list of 10,000 keys", "s3", Load("list", "list10000/", 10_000, 1, 0, seconds), ["lists/s"])


def main() -> None:
    """Measure, and print a table."""
    stop_on_signals()
    options = _options()
    wanted = _rows(options)
    results = [result for row in wanted if (result := _measured(row, options))]
    broken = [] if options.only else list(_spread(options))
    if results:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "workers.json").write_text(json.dumps(results, indent=1))
    sys.exit(1 if broken or len(results) < len(wanted) else 0)


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="small loads, once: shows only that everything works")
    parser.add_argument("--runs", type=int, default=3, help="fresh starts of all contestants [%(default)s]")
    parser.add_argument("--turns", type=int, default=4, help="turns of each contestant after a start [%(default)s]")
    parser.add_argument("--seconds", type=float, default=1, help="seconds of a turn with small objects [%(default)s]")
    parser.add_argument("--only", metavar="ROW,…", help="only these rows, and no spread; an unknown name prints all")
    parser.add_argument("--spread", action="store_true", help="only how connections are spread; needs root")
    parser.add_argument(
        "--peer",
        metavar="NAME=COMMAND",
        action="append",
        default=[],
        help="a server with the paths of storaged, which is compared with two workers on the rows in front of S3; "
        "{port}, {s3} and {slots} in its command are the port to listen on, the URL of S3 (bucket: bench), and the "
        "number of PUTs that it must take at once",
    )
    parser.add_argument("--data", help="folder on the disk to measure, with 4 GiB free [default: $TMPDIR]")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder for workers.json [%(default)s]")
    parser.add_argument("--port", type=int, default=21000, help="the first of some free ports")
    options = parser.parse_args()
    if options.smoke:
        options.runs, options.turns, options.seconds = 1, 1, 0.1
    return options


def _rows(options: Namespace) -> list[Row]:
    every = [] if options.spread else list(rows(options.seconds, 32 * MiB if options.smoke else GiB))
    names = [row.name for row in every]
    wanted = options.only.split(",") if options.only else names
    if not set(wanted) <= set(names):
        raise CannotMeasure(f"--only: expected some of these rows: {','.join(names)}")
    return [row for row in every if row.name in wanted]


def _measured(row: Row, options: Namespace) -> dict[str, object] | None:
    """Measure a row and print its figures; None if that failed."""
    contestants = contestants_at(row.place, options.peer)
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    try:
        for run in range(options.runs):
            print(f"{row.name}, run {run + 1} of {options.runs}", file=sys.stderr)
            for name, taken in turns(row, contestants, options).items():
                samples[name] += taken
    except CannotMeasure as error:
        print(f"{row.name}: {error}", file=sys.stderr)
        return None
    for figure in row.figures:
        print(f"{row.title:<36}{figure:<14}{' '.join(_cells(row, figure, samples))}", flush=True)
    return {"name": row.name, "samples": {name: [asdict(one) for one in taken] for name, taken in samples.items()}}


def contestants_at(place: str, peers: Sequence[str] = ()) -> dict[str, Start]:
    """The contestants at a place, by name."""

    def with_workers(count: int, where: Place) -> AbstractContextManager[Server]:
        return STORAGED[place](replace(where, workers=count))

    contestants: dict[str, Start] = {TWO: partial(with_workers, 2), ONE: partial(with_workers, 1)}
    for peer in peers if place == "s3" else ():
        name, _, command = peer.partition("=")
        contestants[name] = partial(_peer, command)
    return contestants


@contextmanager
def _peer(command: str, place: Place) -> Iterator[Server]:
    values = {"port": place.port, "s3": place.s3.endpoint, "slots": place.put_slots}
    words = [word.format(**values) for word in command.split()]
    with running(words, place.port) as pid:
        yield Server(pid, place.port, storaged_path)


def turns(row: Row, contestants: Mapping[str, Start], options: Namespace) -> dict[str, list[Sample]]:
    """Start all contestants, and give each its turns; returns their samples by name. Raises CannotMeasure."""
    load = row.load
    # More slots than connections, so that no PUT is refused.
    slots = MANY_SLOTS if load.connections > SLOTS else SLOTS
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_sink(options.port))
        servers: dict[str, Server] = {}
        for port, (name, start) in enumerate(contestants.items(), options.port + 1):
            folder = stack.enter_context(TemporaryDirectory(prefix="storaged-bench-", dir=options.data))
            servers[name] = stack.enter_context(start(Place(Path(folder), port, s3, slots)))
        for server in servers.values():
            _prepare(server, load)
        samples: dict[str, list[Sample]] = {name: [] for name in servers}
        for turn in range(options.turns):
            for name in servers if turn % 2 == 0 else reversed(servers):
                samples[name].append(servers[name].measure(load))
    return samples


def _prepare(server: Server, load: Load) -> None:
    """Put what a load reads, and warm up."""
    if load.verb == "get":
        server.do(replace(load, verb="put", seconds=0, count=load.keys or load.count))
    server.do(replace(load, seconds=min(load.seconds, 0.3)))


def _cells(row: Row, figure: str, samples: Mapping[str, Sequence[Sample]]) -> Iterator[str]:
    """The median of each contestant; for those that are not TWO with the ratio of TWO to it, and its quartiles."""
    # CPU time is counted in ticks, so that it may be 0.
    values = {name: [FIGURES[figure].of(one, row.load) or 1e-9 for one in taken] for name, taken in samples.items()}
    for name, own in values.items():
        text = f"{name}: {number(median(own))}"
        if name != TWO:
            ratios = sorted(two / other for two, other in zip(values[TWO], own, strict=True))
            quarter = len(ratios) // 4
            text += f" (x {number(median(ratios))} [{number(ratios[quarter])}, {number(ratios[-1 - quarter])}]"
            text += _verdict(row, figure, median(ratios)) if name == ONE else ""
            text += ")"
        yield f"{text:<24}"


def _verdict(row: Row, figure: str, ratio: float) -> str:
    if figure not in row.bars:
        return ""
    bar, more = row.bars[figure], FIGURES[figure].more_is_better
    reached = ratio >= bar if more else ratio <= bar
    return f" {'≥' if more else '≤'} {number(bar)} {'✓' if reached else '✗'}"


def _spread(options: Namespace) -> Iterator[str]:
    """Print the share of the worker with the most of some connections, of two; yields what exceeds MAX_SHARE."""
    if os.geteuid() != 0:
        print("how connections are spread is not measured: only root sees the connections of a worker", file=sys.stderr)
        return
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_sink(options.port))
        folder = stack.enter_context(TemporaryDirectory(prefix="storaged-bench-", dir=options.data))
        server = stack.enter_context(storaged(Place(Path(folder), options.port + 1, s3, workers=2)))
        for count in SPREADS:
            shares = [_share(server, count) for _ in range(TRIALS)]
            worst, title = max(shares), f"{count} connections opened at once"
            verdict = f"{number(worst)} (≤ {number(MAX_SHARE)} {'✓' if worst <= MAX_SHARE else '✗'})"
            print(f"{title:<36}{'share of one':<14}median {number(median(shares))}, worst of {TRIALS} {verdict}")
            if worst > MAX_SHARE:
                yield title


def _share(server: Server, count: int) -> float:
    """Open connections at once; returns the share of the worker that got the most."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(count)]
        for client in clients:
            client.settimeout(SPREAD_SECONDS)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients:
            client.recv(4096)
        share = max(_connections(server)) / count
    deadline = time.monotonic() + SPREAD_SECONDS
    while any(_connections(server)) and time.monotonic() < deadline:
        time.sleep(0.01)
    # The supervisor is told a little later that they are closed.
    time.sleep(0.1)
    return share


def _connections(server: Server) -> list[int]:
    """The number of connections that each worker has from clients. See proc_pid_net(5), proc_pid_fd(5)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    served = {f"socket:[{fields[9]}]" for fields in lines if fields[1].endswith(f":{server.port:04X}")}
    return [sum(_link(fd) in served for fd in Path(f"/proc/{worker}/fd").iterdir()) for worker in children(server.pid)]


def _link(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        # It was closed meanwhile.
        return ""


if __name__ == "__main__":
    main()
