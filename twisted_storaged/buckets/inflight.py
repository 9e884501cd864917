"""The parts of one body that are in flight: waiting until there is room for another, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred


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
