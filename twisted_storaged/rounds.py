"""Waiting for company, for as long as it comes.

What is done together costs less than one by one: a commit, a look into an index, a send that wakes its peer. Clients
that were answered together ask again together, but not all in one turn of the reactor: the first of them wakes it, and
the others come while it is at work. So as long as a turn has brought more, another is waited for. It comes at once:
who is alone is kept waiting for microseconds.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

#: Turns after which nobody waits for more.
TURNS = 8


class Round:
    """Calls `act` when, by `count`, the last `quiet` turns of the reactor have brought no more."""

    def __init__(self, clock: IReactorTime, count: Callable[[], int], act: Callable[[], None], quiet: int = 1) -> None:
        self._clock = clock
        self._count = count
        self._act = act
        self._quiet = quiet
        self._seen = self._left = self._turns = 0

    def begin(self) -> None:
        """Begin to wait; to be called when the first is there."""
        self._seen, self._left, self._turns = self._count(), self._quiet, TURNS
        self._clock.callLater(0, self._look)

    def _look(self) -> None:
        count = self._count()
        self._left = self._quiet if count > self._seen else self._left - 1
        self._seen = count
        self._turns -= 1
        if self._left and self._turns:
            self._clock.callLater(0, self._look)
        else:
            self._act()
