"""Put slots: a limit on concurrent PUTs. A request beyond it is refused at once; there is no queue."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import ceil

from twisted.internet.defer import Deferred, succeed

from twisted_storaged.errors import NoFreeSlot

DEFAULT_PUT_SLOTS = 4
#: Seconds after which a refused client is to try again, by default.
DEFAULT_RETRY_AFTER = 5
#: The same, in seconds, if they are computed: the least and the most.
MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1, 60

#: The weight of the last PUT in the mean time for which slots are held.
_WEIGHT = 0.2


class PutSlot:
    """A slot that is taken.

    Attributes:
        prefix: of the keys that it counts for.
        since: when it was taken, by the clock of its PutSlots.
    """

    __slots__ = ("_slots", "prefix", "since")

    def __init__(self, slots: PutSlots, prefix: str, since: float) -> None:
        self._slots = slots
        self.prefix = prefix
        self.since = since

    def release(self) -> None:
        """Return the slot. Raises KeyError if it was returned before."""
        self._slots.release(self)


class PutSlots:
    """A counting semaphore whose `acquire` never waits.

    Attributes:
        limit: the number of slots.
    """

    def __init__(
        self,
        limit: int = DEFAULT_PUT_SLOTS,
        retry_after: int | None = DEFAULT_RETRY_AFTER,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Let refused clients try again after `retry_after` seconds; None: after an estimate of when a slot is free."""
        self.limit = limit
        self._retry_after = retry_after
        self._clock = clock
        self._jitter = jitter
        self._taken: set[PutSlot] = set()
        self._idle: list[Deferred[None]] = []
        #: The mean seconds for which the last slots were held.
        self._mean = 0.0
        #: Refused clients for which no slot has become free since: by the prefix whose limit refused them, or None.
        self._refused: dict[str | None, int] = {}

    @property
    def free(self) -> int:
        """The number of slots that are not taken."""
        return self.limit - len(self._taken)

    def acquire(self, prefix: str = "", limit: int | None = None) -> PutSlot:
        """Take a slot for a key under `prefix`, whose keys may hold at most `limit` of the slots (None: all).

        Raises:
            NoFreeSlot: all are taken, or as many as keys under `prefix` may hold.
        """
        if len(self._taken) == self.limit:
            raise self._refusal(None, self._taken, f"all {self.limit} put slots are taken")
        if limit is not None:
            held = {slot for slot in self._taken if slot.prefix == prefix}
            if len(held) >= limit:
                raise self._refusal(prefix, held, f"all {limit} put slots for keys under {prefix!r} are taken")
        slot = PutSlot(self, prefix, self._clock())
        self._taken.add(slot)
        return slot

    def release(self, slot: PutSlot) -> None:
        """Return a slot: see `PutSlot.release`."""
        self._taken.remove(slot)
        self._mean += _WEIGHT * (self._clock() - slot.since - self._mean)
        for refuser in (None, slot.prefix):
            if self._refused.get(refuser):
                self._refused[refuser] -= 1
        if not self._taken:
            self._refused.clear()
            # Replaced first: a callback may call `when_idle` again.
            waiting, self._idle = self._idle, []
            for idle in waiting:
                idle.callback(None)

    def when_idle(self) -> Deferred[None]:
        """Return a Deferred that fires as soon as no slot is taken."""
        if not self._taken:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle

    def _refusal(self, refuser: str | None, held: set[PutSlot], reason: str) -> NoFreeSlot:
        """Return the error for a client that found the slots `held` taken."""
        if self._retry_after is not None:
            return NoFreeSlot(reason, self._retry_after)
        # As if the refused clients stood in a queue, so that they do not all come back at once: this one is free when
        # as many slots have been released as clients were refused before it. Slots that are held for longer than the
        # mean of those before say more than that mean.
        refused = self._refused[refuser] = self._refused.get(refuser, 0) + 1
        now = self._clock()
        mean = max(self._mean, sum(now - slot.since for slot in held) / len(held))
        seconds = self._jitter(0.5, 1.5) * mean / len(held) * refused
        return NoFreeSlot(reason, ceil(min(max(seconds, MIN_RETRY_AFTER), MAX_RETRY_AFTER)))
