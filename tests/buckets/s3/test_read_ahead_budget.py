"""The memory for ranges that are read ahead."""

from __future__ import annotations

import random

from twisted_storaged.buckets.s3.read_ahead import MIN_SEGMENTS, SegmentBudget, SegmentLease


class SegmentBudgetTests:
    """A number of segments that GETs share."""

    def test_one_alone_has_as_many_as_it_may(self) -> None:
        """A single GET gets up to `most` segments, even if there are more."""
        lease = SegmentBudget(12, 10).enter(lambda _: None)
        assert [lease.take() for _ in range(12)] == [True] * 10 + [False] * 2

    def test_who_finds_no_room_waits_for_it(self) -> None:
        """A GET is admitted when MIN_SEGMENTS segments are free; GETs that wait are admitted in order."""
        budget, told = SegmentBudget(12, 10), []
        first = budget.enter(lambda _: told.append(1))
        assert [first.take() for _ in range(10)] == [True] * 10
        budget.enter(lambda _: told.append(2))
        third = budget.enter(lambda _: told.append(3))
        fourth = budget.enter(lambda _: told.append(4))
        assert told == [1, 2]
        first.give_back()
        assert told == [1, 2]
        fourth.leave()
        first.give_back()
        assert told == [1, 2, 3]
        assert [third.take() for _ in range(3)] == [True, True, False]

    def test_those_inside_always_have_the_least(self) -> None:
        """An admitted GET can always take its least segments, whatever the others hold."""
        budget = SegmentBudget(6, 6)
        greedy, modest = (budget.enter(lambda _: None) for _ in range(2))
        while greedy.take():
            pass
        assert [modest.take() for _ in range(MIN_SEGMENTS)] == [True] * MIN_SEGMENTS

    def test_the_bound_holds_at_every_moment(self) -> None:
        """No more segments than there are get reserved, whatever GETs do in whatever order; in the end, none are."""
        gets = RandomGets(SegmentBudget(12, 11), random.Random(4))
        for _ in range(20_000):
            gets.step()
            assert gets.taken <= gets.budget.reserved <= 12
        gets.leave()
        assert gets.budget.reserved == 0


class RandomGets:
    """GETs that use their leases at random."""

    def __init__(self, budget: SegmentBudget, source: random.Random) -> None:
        self.budget = budget
        self._source = source
        self._all: set[SegmentLease] = set()
        self._held: dict[SegmentLease, int] = {}

    @property
    def taken(self) -> int:
        """The segments of all GETs together."""
        return sum(self._held.values())

    def step(self) -> None:
        """Let one GET do something."""
        kind = self._source.random()
        if kind < 0.1 or not self._held:
            self._all.add(self.budget.enter(self._ready))
            return
        lease = self._source.choice(list(self._held))
        if kind < 0.6:
            self._held[lease] += lease.take()
        elif kind < 0.9 and self._held[lease]:
            self._held[lease] -= 1
            lease.give_back()
        else:
            del self._held[lease]
            self._all.remove(lease)
            lease.leave()

    def leave(self) -> None:
        """Let all GETs leave, those that wait included."""
        for lease in self._all:
            lease.leave()

    def _ready(self, lease: SegmentLease) -> None:
        self._held[lease] = 0
