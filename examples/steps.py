"""Prints the progress of an example, and defines its failure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Difference(Exception):
    """A result differs from the expected one; str() says how."""


def check(same: bool, otherwise: str) -> None:
    """Raise Difference with the message `otherwise` unless `same`."""
    if not same:
        raise Difference(otherwise)


@contextmanager
def step(done: str, size: int = 0) -> Iterator[None]:
    """Print what the block did and how long it took; with a size in bytes, also the speed."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    speed = f": {size / 1e6:.1f} MB, {size / 1e6 / seconds:.0f} MB/s" if size else ""
    print(f"{seconds:6.2f} s  {done}{speed}", flush=True)


def found(what: str) -> None:
    """Print a result."""
    print(f"{'':10}{what}", flush=True)
