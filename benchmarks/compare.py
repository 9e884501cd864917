"""How fast storaged is, and what it costs, beside bare boto3: the same objects, to the same S3 sink, in turns.

Nothing is asserted: a speed is of one machine, and what may be read from it is the ratio of two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from harness import (
    HERE,
    CannotMeasure,
    GiB,
    Load,
    MiB,
    Sample,
    environment,
    s3_options,
    s3_sink,
    stop_on_signals,
    storaged,
)

FULL = {"runs": 5, "large": 1024, "objects": 2000}
SMOKE = {"runs": 1, "large": 64, "objects": 200}


@dataclass(frozen=True)
class Case:
    """One thing that both sides do: one large object, or many small ones over some connections."""

    verb: str
    kind: str
    size: int
    count: int = 1
    connections: int = 1

    @property
    def title(self) -> str:
        """What it is, in words."""
        if self.kind == "large":
            return f"{self.verb.upper()} one object of {self.size // MiB} MiB"
        return f"{self.verb.upper()} {self.count} objects of {self.size} bytes over {self.connections} connections"

    @property
    def load(self) -> Load:
        """The same, for the client of storaged."""
        count = self.count // self.connections
        return Load(self.verb, f"/storage/{self.verb}/{self._key}", self.size, self.connections, count)

    @property
    def _key(self) -> str:
        if self.kind == "small":
            return "small/%d-%n"
        # The cap on a body is higher under this prefix; and the sink answers with as many bytes as the name says.
        return f"_vectors/size-{self.size}" if self.verb == "get" else "_vectors/large"


@dataclass(frozen=True)
class Place:
    """Where it all happens: the sink, the port of storaged, and a folder for its files."""

    sink: str
    port: int
    folder: Path


#: The samples of both sides, run for run.
Results = tuple[list[Sample], list[Sample]]


def main() -> None:
    """Measure what the command line asks for, and print it."""
    stop_on_signals()
    options = _options()
    connections, objects = options["connections"], options["objects"]
    if objects % connections:
        raise CannotMeasure(f"{objects} objects cannot be shared out to {connections} connections")
    large = [Case(verb, "large", options["large"] * MiB) for verb in ("put", "get")]
    small = [Case(verb, "small", options["object_size"], objects, connections) for verb in ("put", "get")]
    with TemporaryDirectory(prefix="storaged-bench-") as folder, s3_sink(options["port"]) as sink:
        place = Place(sink, options["port"] + 1, Path(folder))
        for line in _table([*large, *small], options["runs"], place):
            print(line)


def _options() -> dict[str, int]:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="little of everything: does it work?")
    parser.add_argument("--runs", type=int, help="of which the medians are printed")
    parser.add_argument("--large", type=int, help="MiB of the large object")
    parser.add_argument("--objects", type=int, help="how many small ones")
    parser.add_argument("--object-size", type=int, default=4096, help="bytes of a small one")
    parser.add_argument("--connections", type=int, default=4, help="for the small ones; storaged has 4 put slots")
    parser.add_argument("--port", type=int, default=21000, help="the first of two that are free")
    parser.set_defaults(**(SMOKE if "--smoke" in sys.argv else FULL))
    return dict(vars(parser.parse_args()))


def _table(cases: Iterable[Case], runs: int, place: Place) -> Iterator[str]:
    yield f"{'medians of ' + str(runs):<26}{'storaged':>12}{'bare boto3':>12}{'ratio':>8}"
    for case in cases:
        results = _measure(case, runs, place)
        yield case.title
        for name, value in _figures(case).items():
            yield _line(name, value, results)


def _measure(case: Case, runs: int, place: Place) -> Results:
    """Both sides in turns, so that a slow minute of the machine meets both; each time in a process that is fresh."""
    results: Results = ([], [])
    for run in range(runs):
        print(f"{case.title}: run {run + 1} of {runs}", file=sys.stderr)
        results[0].append(_through_storaged(case, place))
        results[1].append(_bare(case, place))
    return results


def _through_storaged(case: Case, place: Place) -> Sample:
    with storaged(place.port, place.folder, s3_options(place.folder, place.sink)) as daemon:
        return daemon.measure(case.load)


def _bare(case: Case, place: Place) -> Sample:
    numbers = [str(number) for number in (case.size, case.count, case.connections)]
    command = [sys.executable, str(HERE / "bare.py"), place.sink, case.verb, case.kind, *numbers]
    ended = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True)
    return Sample(**json.loads(ended.stdout))


def _figures(case: Case) -> dict[str, Callable[[Sample], float]]:
    """What is printed of a sample, by its name."""
    if case.kind == "large":
        speed_and_cost: dict[str, Callable[[Sample], float]] = {
            "GB/s": lambda sample: case.size / sample.seconds / 1e9,
            "CPU-seconds per GiB": lambda sample: sample.cpu / case.size * GiB,
        }
    else:
        speed_and_cost = {
            "objects/s": lambda sample: case.count / sample.seconds,
            "CPU µs per object": lambda sample: sample.cpu / case.count * 1e6,
        }
    return {**speed_and_cost, "peak RSS in MiB": lambda sample: sample.peak / MiB}


def _line(name: str, value: Callable[[Sample], float], results: Results) -> str:
    ours, theirs = (median(value(sample) for sample in samples) for samples in results)
    digits = 2 if ours < 10 else 0
    return f"  {name:<24}{ours:>12.{digits}f}{theirs:>12.{digits}f}{ours / theirs:>8.2f}"


if __name__ == "__main__":
    main()
