"""What the example says on its way, and how it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Difference(Exception):
    """Something is other than it must be."""


def check(same: bool, otherwise: str) -> None:
    """Raise Difference, which says what is wrong, unless it is the same."""
    if not same:
        raise Difference(otherwise)


@contextmanager
def step(done: str, size: int = 0) -> Iterator[None]:
    """Say what was done in the block and how long it took; with a size in bytes, also how fast it went."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    speed = f": {size / 1e6:.1f} MB, {size / 1e6 / seconds:.0f} MB/s" if size else ""
    print(f"{seconds:6.2f} s  {done}{speed}", flush=True)


def found(what: str) -> None:
    """Say what was found."""
    print(f"{'':10}{what}", flush=True)
