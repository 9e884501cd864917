"""Put slots: how many PUTs may be under way at once. Getting one never waits; there is no queue."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from twisted_storaged.errors import NoFreeSlot

DEFAULT_PUT_SLOTS = 4


class PutSlots:
    """A counter in the manner of DeferredSemaphore, whose acquire answers at once instead of with a Deferred."""

    def __init__(self, limit: int = DEFAULT_PUT_SLOTS) -> None:
        self.limit = limit
        self.free = limit
        self._idle: list[Deferred[None]] = []

    def acquire(self) -> None:
        """Take a slot; `release` gives it back.

        Raises:
            NoFreeSlot: all are taken.
        """
        if self.free == 0:
            raise NoFreeSlot(f"{self.limit} puts are under way")
        self.free -= 1

    def release(self) -> None:
        """Give back a slot that was acquired."""
        assert self.free < self.limit, "released more often than acquired"
        self.free += 1
        if self.free == self.limit:
            waiting, self._idle = self._idle, []
            for idle in waiting:
                idle.callback(None)

    def when_idle(self) -> Deferred[None]:
        """Fires as soon as no slot is taken."""
        if self.free == self.limit:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle
