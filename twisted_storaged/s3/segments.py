"""The memory for ranges of objects that are fetched ahead, as a number of segments that all GETs share.

The bound holds at every moment, however GETs come and go: a segment is taken before it is fetched, and given back when
its last byte has been sent. A GET that was let in always has at least `LEAST` segments, so none waits for another's
client; one that finds no room is not let in until there is, and reads on one connection meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

#: Segments of each GET that reads ahead: one is sent while another is fetched.
LEAST = 2


class SegmentBudget:
    """At most `total` segments, at most `most` of which one GET may have."""

    def __init__(self, total: int, most: int) -> None:
        """`total` is at least LEAST."""
        self._total = total
        self._most = most
        self._inside: set[Allowance] = set()
        self._waiting: deque[Allowance] = deque()

    @property
    def reserved(self) -> int:
        """Segments that are in use, or set aside."""
        return sum(allowance.reserved for allowance in self._inside)

    @property
    def share(self) -> int:
        """Segments that one of those inside may have."""
        return max(LEAST, min(self._most, self._total // max(len(self._inside), 1)))

    def enter(self, ready: Callable[[Allowance], object]) -> Allowance:
        """Let in one more; `ready` is called when there is room, at once or later. It must `leave` in any case."""
        allowance = Allowance(self, ready)
        self._waiting.append(allowance)
        self.let_in()
        return allowance

    def has_room(self, count: int) -> bool:
        """Whether so many segments more can be reserved."""
        return self.reserved + count <= self._total

    def let_in(self) -> None:
        """Let in who waits, as far as there is room."""
        while self._waiting and self.has_room(LEAST):
            allowance = self._waiting.popleft()
            self._inside.add(allowance)
            allowance.ready(allowance)

    def forget(self, allowance: Allowance) -> None:
        """One has left."""
        if allowance in self._inside:
            self._inside.remove(allowance)
            self.let_in()
        elif allowance in self._waiting:
            self._waiting.remove(allowance)


class Allowance:
    """The segments of one GET."""

    def __init__(self, budget: SegmentBudget, ready: Callable[[Allowance], object]) -> None:
        self._budget = budget
        self._held = 0
        self.ready = ready

    @property
    def reserved(self) -> int:
        """Segments that nobody else may have."""
        return max(self._held, LEAST)

    def take(self) -> bool:
        """Take one more, if that is allowed now. The first LEAST always are."""
        allowed = self._held < LEAST or (self._held < self._budget.share and self._budget.has_room(1))
        self._held += allowed
        return allowed

    def give_back(self) -> None:
        """Give one back."""
        self._held -= 1
        self._budget.let_in()

    def leave(self) -> None:
        """Give all back, and take no more; may be called again."""
        self._held = 0
        self._budget.forget(self)
