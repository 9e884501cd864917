"""Limits that are shared: the memory of all GETs, and the parts in flight of all PUTs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Bytes that all GETs together may hold on their way to clients.
DELIVERY_BYTES = 32 << 20
#: Bytes of the largest read, and of the smallest, which is always allowed.
MAX_READ = 1 << 20
MIN_READ = 1 << 14


class DeliveryBudget:
    """The memory of all GETs: how large the next read may be, by the number of GETs and by what is free.

    A GET keeps what it holds for as long as its client is slow. One that starts when nothing is free makes one smallest
    read at a time. So all GETs together never hold more than `total` bytes and one smallest read each.

    Attributes:
        count: GETs under way.
        held: bytes that they hold together.
        when_idle: functions that are called each time that the last GET has ended, to release memory kept for reuse.
    """

    def __init__(self, total: int = DELIVERY_BYTES, least: int = MIN_READ, most: int = MAX_READ) -> None:
        self._total = total
        self.least = least
        self._most = most
        self.count = 0
        self.held = 0
        self.when_idle: list[Callable[[], object]] = []

    def join(self, reads: int) -> ReadReservation:
        """Register a GET that makes up to `reads` reads at a time. It must call `leave` when it ends."""
        self.count += 1
        return ReadReservation(self, reads)

    def next_size(self, reads: int) -> int:
        """Bytes of the next read of a GET that makes `reads` at a time. Less than the smallest read means none."""
        # Slow clients keep what they hold, so that less than a share may be free.
        share = self._total // (reads * max(self.count, 1))
        return min(max(self.least, min(self._most, share)), self._total - self.held)


class ReadReservation:
    """The part of the budget that one GET holds, in bytes."""

    def __init__(self, budget: DeliveryBudget, reads: int) -> None:
        self._budget = budget
        self._reads = reads
        self.held = 0

    def next_size(self) -> int:
        """Bytes of the next read; 0 if there must be none until something was released."""
        size = self._budget.next_size(self._reads)
        if size >= self._budget.least:
            return size
        # Without this, a GET could wait forever for the slow clients of others.
        return 0 if self.held else self._budget.least

    def hold(self, count: int) -> None:
        """Reserve `count` bytes for a read."""
        self.held += count
        self._budget.held += count

    def release(self, count: int) -> None:
        """Release `count` bytes that were sent."""
        self.held -= count
        self._budget.held -= count

    def release_all(self) -> None:
        """Release everything that is held."""
        self.release(self.held)

    def leave(self) -> None:
        """End the GET: release everything, and no longer count it."""
        self.release_all()
        self._budget.count -= 1
        if not self._budget.count:
            for call in self._budget.when_idle:
                call()


class FairShare:
    """A limit for each user: `total` / users, clamped to [minimum, maximum].

    Attributes:
        count: the number of users.
    """

    def __init__(self, total: int, minimum: int, maximum: int) -> None:
        self._total = total
        self._minimum = minimum
        self._maximum = maximum
        self.count = 0

    def __call__(self) -> int:
        """The share of one user, which changes with their number."""
        return max(self._minimum, min(self._maximum, self._total // max(self.count, 1)))

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count one more user for the duration of the context."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
