"""Measures what it costs to observe requests: in metrics that are scraped, and with the access log and the status, too.

Three daemons run at once on embedded buckets, and get the same load of small objects in turns, in alternating order. A
cost is the difference in CPU time for a request to the daemon that forgets requests, the median of those of all turns.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread
from urllib.request import urlopen

from loads import Load, Server
from place import Place
from processes import BUILD, HERE, CannotMeasure, stop_on_signals
from rows import SMALL, KiB
from servers import storaged_embedded
from workers import Row, Start, turns

#: What is observed of the three.
NOTHING, METRICS, EVERYTHING = "nothing", "metrics", "everything"
#: What is asked of the latter two, and how often, in seconds.
SCRAPES = {"/metrics": 5.0}
STATUS = {"/status.json": 1.0}
#: The µs of CPU time that the metrics of a small request may cost.
BAR = 3.0


def main() -> None:
    """Measure, print the costs, and write the samples to a file."""
    stop_on_signals()
    options = _options()
    contestants: Mapping[str, Start] = {
        NOTHING: partial(storaged_embedded, twistd=(sys.executable, str(HERE / "unobserved.py"))),
        METRICS: partial(_observed, asked=SCRAPES),
        EVERYTHING: partial(_observed, asked=SCRAPES | STATUS, access_log='"{folder}/access.log"'),
    }
    results: dict[str, Mapping[str, list[float]]] = {}
    for row in rows(options.seconds):
        samples = turns(row, contestants, options)
        costs = {name: [1e6 * (one.cpu or 0) / one.requests for one in taken] for name, taken in samples.items()}
        print(f"{row.title:<12}{'   '.join(_cells(costs))}", flush=True)
        results[row.name] = costs
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "observing.json").write_text(json.dumps(results, indent=1))


def rows(seconds: float) -> Iterator[Row]:
    """PUTs and GETs of small objects, for so many seconds."""
    for verb in ("put", "get"):
        load = Load(verb, "small/4-%d-%n", 4 * KiB, 16, 0, seconds, 1000 if verb == "put" else 16)
        yield Row(f"embedded-{verb}-4k", f"{verb.upper()} 4 KiB", "embedded", load, SMALL)


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="small loads, once: shows only that everything works")
    parser.add_argument("--turns", type=int, default=7, help="turns of each daemon [%(default)s]")
    parser.add_argument("--seconds", type=float, default=5, help="seconds of a turn: one scrape each [%(default)s]")
    parser.add_argument("--data", help="folder on the disk to measure [default: $TMPDIR]")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder for observing.json [%(default)s]")
    parser.add_argument("--port", type=int, default=21000, help="the first of four free ports")
    options = parser.parse_args()
    if options.smoke:
        options.turns, options.seconds = 1, 0.3
    return options


@contextmanager
def _observed(place: Place, asked: Mapping[str, float], access_log: str = "false") -> Iterator[Server]:
    """A daemon that is asked for these paths, again and again after so many seconds."""
    settings = f"access_log = {access_log.format(folder=place.folder)}\n"
    end, failures = Event(), list[Exception]()

    def ask(path: str, seconds: float) -> None:
        while not end.wait(seconds):
            try:
                with urlopen(f"http://127.0.0.1:{place.port}{path}", timeout=10) as response:
                    response.read()
            except OSError as error:
                failures.append(error)

    with storaged_embedded(place, settings) as server:
        threads = [Thread(target=ask, args=one) for one in asked.items()]
        for thread in threads:
            thread.start()
        try:
            yield server
        finally:
            end.set()
            for thread in threads:
                thread.join()
    if failures:
        raise CannotMeasure(f"{failures[0]}")


def _cells(costs: Mapping[str, list[float]]) -> Iterator[str]:
    yield f"{NOTHING}: {median(costs[NOTHING]):.1f} µs"
    for name in (METRICS, EVERYTHING):
        more = sorted(one - base for one, base in zip(costs[name], costs[NOTHING], strict=True))
        quarter = len(more) // 4
        spread = f"[{more[quarter]:.1f}, {more[-1 - quarter]:.1f}]"
        verdict = f", ≤ {BAR:g} {'✓' if median(more) <= BAR else '✗'}" if name == METRICS else ""
        yield f"{name}: {median(costs[name]):.1f} µs (+ {median(more):.1f} µs {spread}{verdict})"


if __name__ == "__main__":
    main()
