"""Put slots: a limit on concurrent PUTs. A request beyond it is refused at once; there is no queue."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from twisted_storaged.errors import NoFreeSlot

DEFAULT_PUT_SLOTS = 4


class PutSlots:
    """A counting semaphore whose `acquire` never waits.

    Attributes:
        limit: the number of slots.
        free: the number of slots that are not taken.
    """

    def __init__(self, limit: int = DEFAULT_PUT_SLOTS) -> None:
        self.limit = limit
        self.free = limit
        self._idle: list[Deferred[None]] = []

    def acquire(self) -> None:
        """Take a slot; `release` returns it.

        Raises:
            NoFreeSlot: all are taken.
        """
        # Without a lock: all calls are made in the reactor's thread.
        if self.free == 0:
            raise NoFreeSlot(f"all {self.limit} put slots are taken")
        self.free -= 1

    def release(self) -> None:
        """Return a slot."""
        assert self.free < self.limit, "released more often than acquired"
        self.free += 1
        if self.free == self.limit:
            # Replaced first: a callback may call `when_idle` again.
            waiting, self._idle = self._idle, []
            for idle in waiting:
                idle.callback(None)

    def when_idle(self) -> Deferred[None]:
        """Return a Deferred that fires as soon as no slot is taken."""
        if self.free == self.limit:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle
