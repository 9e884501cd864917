"""Sharing a bound among those that are under way: memory among GETs, parts in flight among PUTs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Share:
    """What each may have: an equal share of `total`, but from `least` to `most`.

    One alone has as much as helps it; many together do not take more than there is.
    """

    def __init__(self, total: int, least: int, most: int) -> None:
        self._total = total
        self._least = least
        self._most = most
        self.count = 0

    def __call__(self) -> int:
        """The share as of now."""
        return max(self._least, min(self._most, self._total // max(self.count, 1)))

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count one more."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
