"""Counters, gauges and histograms, and their sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.json import decode, encode

from twisted_storaged.runtime.metering import Meters, Snapshot, merge, without_gauges


def values(snapshot: Snapshot) -> Mapping[str, Mapping[tuple[str, ...], Any]]:
    """The values by name and labels."""
    return {one.family.name: dict(one.values) for one in snapshot}


def example(amount: int = 1) -> Snapshot:
    """A snapshot with one metric of each kind."""
    meters = Meters()
    meters.counter("requests", "Requests.", ("verb",)).add(amount, "put")
    meters.histogram("seconds", "Durations.", bounds=(1, 2)).observe(amount)
    meters.gauge("open", "Connections.").watch(lambda: amount)
    meters.gauge("free", "Bytes.", combine="max").watch(lambda: amount)
    meters.gauge("expiry", "Time.", combine="min").watch(lambda: amount)
    return meters.snapshot()


def test_snapshot() -> None:
    """A snapshot has the values of all metrics, and survives JSON."""
    expected: Mapping[str, Any] = {
        "requests": {("put",): 1},
        "seconds": {(): [1, 0, 0, 1]},
        "open": {(): 1},
        "free": {(): 1},
        "expiry": {(): 1},
    }
    assert values(example()) == expected
    assert values(decode(encode(example()), type=Snapshot)) == expected


def test_merge() -> None:
    """Snapshots are added; gauges as they say."""
    assert values(merge([example(1), example(2), example(3)])) == {
        "requests": {("put",): 6},
        "seconds": {(): [1, 1, 1, 6]},
        "open": {(): 6},
        "free": {(): 3},
        "expiry": {(): 1},
    }


def test_of_the_dead() -> None:
    """What remains of a process is what only grows."""
    assert set(values(without_gauges(example()))) == {"requests", "seconds"}


def test_bounds_are_inclusive() -> None:
    """A value that is equal to a bound is in its bucket, as Prometheus defines `le`."""
    meters = Meters()
    histogram = meters.histogram("seconds", "Durations.", bounds=(1, 2))
    for value in (1, 1.5, 2, 2.5):
        histogram.observe(value)
    assert values(meters.snapshot())["seconds"][()] == [1, 2, 1, 7]


def test_one_name_is_one_metric() -> None:
    """Several parts may count in the same metric, but not define it differently."""
    meters = Meters()
    assert meters.counter("requests", "Requests.") is meters.counter("requests", "Requests.")
    with pytest.raises(ValueError, match="defined twice"):
        meters.counter("requests", "Other.")


def test_gauges_of_several_parts_are_added() -> None:
    """A gauge that several watch is their sum; who does not know is left out."""
    meters = Meters()
    for number in (1, 2, None):
        meters.gauge("open", "Connections.").watch(lambda number=number: number)  # type: ignore[misc]
    meters.gauge("unknown", "Bytes.").watch(lambda: None)
    assert values(meters.snapshot()) == {"open": {(): 3}, "unknown": {}}


def test_a_counter_that_is_watched() -> None:
    """A counter that something else counts has its present number in each snapshot."""
    meters, numbers = Meters(), iter((1, 2))
    meters.counter("seconds", "Seconds.", ("mode",)).watch(lambda: next(numbers), "user")
    assert [values(meters.snapshot())["seconds"] for _ in range(2)] == [{("user",): 1}, {("user",): 2}]


def test_a_gauge_that_cannot_be_read() -> None:
    """If a number cannot be read, such as when no more files can be open, the others are there."""

    def fail() -> float:
        raise OSError

    meters = Meters()
    meters.gauge("threads", "Threads.").watch(fail)
    meters.gauge("open", "Connections.").watch(lambda: 1)
    assert values(meters.snapshot()) == {"threads": {}, "open": {(): 1}}
