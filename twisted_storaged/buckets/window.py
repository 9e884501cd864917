"""How many parts may be in flight, and waiting until there is room for another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred


class Window:
    """How many parts of one body may be in flight: from `least` to `most`, so that all bodies keep to `total`.

    One body alone has the whole of a slow network; many together do not take more memory than there is.
    """

    def __init__(self, total: int, least: int, most: int) -> None:
        self._total = total
        self._least = least
        self._most = most
        self.bodies = 0

    def __call__(self) -> int:
        """The number as of now."""
        return max(self._least, min(self._most, self._total // max(self.bodies, 1)))

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Count one more body."""
        self.bodies += 1
        try:
            yield
        finally:
            self.bodies -= 1


class InFlight:
    """The calls that are under way, at most `limit()` of them."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._count = 0
        self._waiting: Deferred[None] | None = None

    def add(self, call: Deferred[Any]) -> None:
        """Count a call until it has ended."""
        self._count += 1
        call.addBoth(self._ended)

    async def room(self) -> None:
        """Wait until there is room for one more."""
        await self._below(self._limit)

    async def landed(self) -> None:
        """Wait until there is none."""
        await self._below(lambda: 1)

    async def _below(self, limit: Callable[[], int]) -> None:
        while self._count >= limit():
            self._waiting = Deferred()
            await self._waiting

    def _ended(self, _: object) -> None:
        self._count -= 1
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
