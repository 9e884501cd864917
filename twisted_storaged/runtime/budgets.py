"""Bounds that are shared: memory among GETs, parts in flight among PUTs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The memory for bytes on their way to clients, over all GETs: each asks here how much to read, and says what it
# holds.
#
# How large a read may be goes by how many GETs there are, and by what is free. What is held is counted, as those that
# were there first may keep what they have for as long as their clients are slow: a GET that comes when nothing is
# free reads the least at a time, and no more before that has left. So all together never hold more than `total`
# bytes, and the least for each of them.

#: Bytes that all GETs may hold together, that one read may bring, and that it may always bring.
DELIVERY_BYTES = 32 << 20
MAX_READ = 1 << 20
MIN_READ = 1 << 14


class DeliveryBudget:
    """The bytes that GETs hold.

    Attributes:
        count: GETs that there are now.
        held: bytes that they hold together.
        when_idle: is called each time that the last GET has ended, for who keeps memory for the next.
    """

    def __init__(self, total: int = DELIVERY_BYTES, least: int = MIN_READ, most: int = MAX_READ) -> None:
        self._total = total
        self.least = least
        self._most = most
        self.count = 0
        self.held = 0
        self.when_idle: list[Callable[[], object]] = []

    def join(self, reads: int) -> ReadReservation:
        """The portion of one GET more, which makes so many reads at a time. It must `leave`."""
        self.count += 1
        return ReadReservation(self, reads)

    def next_size(self, reads: int) -> int:
        """Bytes that the next read may bring, where each GET makes so many at a time; less than the least for none."""
        share = self._total // (reads * max(self.count, 1))
        return min(max(self.least, min(self._most, share)), self._total - self.held)


class ReadReservation:
    """What one GET holds, in bytes."""

    def __init__(self, budget: DeliveryBudget, reads: int) -> None:
        self._budget = budget
        self._reads = reads
        self.held = 0

    def next_size(self) -> int:
        """Bytes that the next read may bring; 0 for none, until some of what is held was released."""
        size = self._budget.next_size(self._reads)
        if size >= self._budget.least:
            return size
        return 0 if self.held else self._budget.least

    def hold(self, count: int) -> None:
        """So many bytes are read, or will be."""
        self.held += count
        self._budget.held += count

    def release(self, count: int) -> None:
        """So many have left."""
        self.held -= count
        self._budget.held -= count

    def release_all(self) -> None:
        """All have left."""
        self.release(self.held)

    def leave(self) -> None:
        """The GET has ended, and holds nothing."""
        self.release_all()
        self._budget.count -= 1
        if not self._budget.count:
            for call in self._budget.when_idle:
                call()


# Sharing a bound among those that are under way: memory among GETs, parts in flight among PUTs.


class FairShare:
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
