"""The figures of the table, by name, and how they are computed from a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loads import GiB, Load, MiB, Sample


@dataclass(frozen=True)
class Figure:
    """How a figure is computed from a sample and its load, and whether a larger one is better."""

    of: Callable[[Sample, Load], float | None]
    more_is_better: bool


def _per(cpu: float | None, amount: float) -> float | None:
    return None if cpu is None else cpu / amount


FIGURES = {
    "GB/s": Figure(lambda sample, _: sample.bytes / sample.seconds / 1e9, True),
    "CPU-s/GiB": Figure(lambda sample, _: _per(sample.cpu, sample.bytes / GiB), False),
    "requests/s": Figure(lambda sample, _: sample.requests / sample.seconds, True),
    "CPU µs": Figure(lambda sample, _: _per(sample.cpu, sample.requests / 1e6), False),
    "p99 ms": Figure(lambda sample, _: sample.p99, False),
    "lists/s": Figure(lambda sample, _: sample.requests / sample.seconds, True),
    "keys/s": Figure(lambda sample, load: sample.requests * load.size / sample.seconds, True),
    "peak MiB": Figure(lambda sample, _: _per(sample.peak, MiB), False),
}
