"""Numbers that a process counts about itself, as metrics: counters, gauges and histograms; and their sums.

They are integers and floats of our own, because a request may cost a few microseconds only. Snapshots of several
processes are merged into one. How a snapshot is served is in `api.ops`. Names follow
https://prometheus.io/docs/practices/naming/ .

None of it is safe for threads: count on the reactor's thread, such as when the Deferred of a call fires.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct

Labels: TypeAlias = tuple[str, ...]
Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
#: How the values of several processes become one.
Combine: TypeAlias = Literal["sum", "max", "min"]

#: Upper bounds, in seconds, of the buckets of durations: from a small GET to a large PUT.
DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Family(Struct, frozen=True, omit_defaults=True):
    """What a metric is.

    Attributes:
        name: without the `_total` of counters.
        labels: the names of its labels.
        bounds: the upper bounds of a histogram's buckets, without the infinite one.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    combine: Combine = "sum"


class FamilySnapshot(Struct):
    """The values of a metric: a number for each combination of labels.

    For a histogram it is a list: the number of observations in each bucket, the infinite one last, then their sum.
    """

    family: Family
    values: list[tuple[Labels, Any]]


Snapshot: TypeAlias = list[FamilySnapshot]


class Counter:
    """A number that only grows.

    Attributes:
        values: the number for each combination of labels. Hot paths add to it directly: `values["put", "2xx"] += 1`.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.values: defaultdict[Any, float] = defaultdict(int)
        self._reads: dict[Labels, Callable[[], float]] = {}

    def add(self, amount: float, *labels: str) -> None:
        """Add to the number for these labels."""
        self.values[labels] += amount

    def watch(self, read: Callable[[], float], *labels: str) -> None:
        """Ask `read` for the number for these labels, which something else counts, when a snapshot is made."""
        self._reads[labels] = read

    def snapshot(self) -> list[tuple[Labels, Any]]:
        """The present values."""
        self.values.update((labels, read()) for labels, read in self._reads.items())
        return list(self.values.items())


class Histogram:
    """How often values of each size were observed.

    Attributes:
        bounds: the upper bounds of its buckets, without the infinite one.
        cells: the values of a snapshot for each combination of labels. Hot paths count in them as `observe` does.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.bounds = family.bounds
        self.cells: defaultdict[Labels, list[float]] = defaultdict(self._empty)
        if not family.labels:
            self.cells[()] = self._empty()

    def observe(self, value: float, *labels: str) -> None:
        """Count a value."""
        cells = self.cells[labels]
        cells[bisect_left(self.bounds, value)] += 1
        cells[-1] += value

    def snapshot(self) -> list[tuple[Labels, Any]]:
        """The present values."""
        return [(labels, list(cells)) for labels, cells in self.cells.items()]

    def _empty(self) -> list[float]:
        return [0] * (len(self.bounds) + 2)


class Gauge:
    """A number that goes up and down, and is asked for when a snapshot is made."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._reads: dict[Labels, list[Callable[[], float | None]]] = defaultdict(list)

    def watch(self, read: Callable[[], float | None], *labels: str) -> None:
        """Ask `read` for the number for these labels; several are added.

        It may return None for an unknown number, or raise OSError.
        """
        self._reads[labels].append(read)

    def snapshot(self) -> list[tuple[Labels, Any]]:
        """The present values."""
        found = [(labels, [_known(read) for read in reads]) for labels, reads in self._reads.items()]
        return [(labels, sum(known)) for labels, values in found if (known := [v for v in values if v is not None])]


def _known(read: Callable[[], float | None]) -> float | None:
    # All other numbers are wanted most when, say, no more files can be open.
    try:
        return read()
    except OSError:
        return None


class Meters:
    """The metrics of a process."""

    def __init__(self) -> None:
        self._meters: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, text: str, labels: Labels = ()) -> Counter:
        """Make a counter, or return the one of this name. It starts with 0 if it has no labels."""
        counter: Counter = self._get(Counter, Family(name, "counter", text, labels))
        if not labels:
            counter.add(0)
        return counter

    def histogram(self, name: str, text: str, labels: Labels = (), bounds: Sequence[float] = DURATIONS) -> Histogram:
        """Make a histogram, or return the one of this name."""
        histogram: Histogram = self._get(Histogram, Family(name, "histogram", text, labels, tuple(bounds)))
        return histogram

    def gauge(self, name: str, text: str, labels: Labels = (), combine: Combine = "sum") -> Gauge:
        """Make a gauge, or return the one of this name."""
        gauge: Gauge = self._get(Gauge, Family(name, "gauge", text, labels, combine=combine))
        return gauge

    def snapshot(self) -> Snapshot:
        """The present values of all metrics."""
        return [FamilySnapshot(meter.family, meter.snapshot()) for meter in self._meters.values()]

    def _get(self, kind: Any, family: Family) -> Any:
        meter = self._meters.setdefault(family.name, kind(family))
        if meter.family != family:
            raise ValueError(f"metric {family.name} is defined twice, and differently")
        return meter


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Make one snapshot of those of several processes."""
    families: dict[str, Family] = {}
    merged: dict[str, dict[Labels, Any]] = {}
    for snapshot in snapshots:
        for one in snapshot:
            family = families.setdefault(one.family.name, one.family)
            values = merged.setdefault(family.name, {})
            for labels, value in one.values:
                values[labels] = _combined(family, values[labels], value) if labels in values else value
    return [FamilySnapshot(family, list(merged[name].items())) for name, family in families.items()]


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """What remains of a process that has ended: what only grows."""
    return [one for one in snapshot if one.family.kind != "gauge"]


def only_gauges(snapshot: Snapshot) -> Snapshot:
    """The rest of a snapshot: what may go down again."""
    return [one for one in snapshot if one.family.kind == "gauge"]


def _combined(family: Family, first: Any, second: Any) -> Any:
    if family.kind == "histogram":
        # A process of another version may have other buckets.
        return [a + b for a, b in zip(first, second, strict=True)] if len(first) == len(second) else first
    if family.combine == "sum":
        return first + second
    return max(first, second) if family.combine == "max" else min(first, second)
