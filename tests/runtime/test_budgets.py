"""The memory that GETs share."""

from __future__ import annotations

import random

import pytest

from twisted_storaged.runtime.budgets import DELIVERY_BYTES, MAX_READ, MIN_READ, DeliveryBudget, ReadReservation


class DeliveryBudgetTests:
    """How much each GET may read, and how much all hold."""

    def test_few_read_in_large_pieces(self) -> None:
        """With up to ten GETs, each read has the maximum size."""
        budget = DeliveryBudget()
        portions = [budget.join(3) for _ in range(10)]
        assert {portion.next_size() for portion in portions} == {MAX_READ}

    @pytest.mark.parametrize("count", [17, 64, 150])
    def test_many_share_the_total(self, count: int) -> None:
        """With more GETs, all their reads together fit into the total."""
        budget = DeliveryBudget()
        portions = [budget.join(3) for _ in range(count)]
        assert sum(3 * portion.next_size() for portion in portions) <= DELIVERY_BYTES

    def test_who_holds_nothing_may_always_read(self) -> None:
        """A GET that holds nothing may make one smallest read, even if others hold everything."""
        budget = DeliveryBudget()
        first, second = budget.join(2), budget.join(2)
        first.hold(DELIVERY_BYTES)
        assert first.next_size() == 0
        assert second.next_size() == MIN_READ
        second.hold(MIN_READ)
        assert second.next_size() == 0
        second.release(MIN_READ)
        assert second.next_size() == MIN_READ

    def test_says_when_the_last_has_ended(self) -> None:
        """The functions in `when_idle` are called when the last GET has ended, and not before."""
        budget, told = DeliveryBudget(), list[int]()
        budget.when_idle.append(lambda: told.append(budget.count))
        first, second = budget.join(1), budget.join(1)
        first.leave()
        assert told == []
        second.leave()
        assert told == [0]

    def test_the_bound_holds_at_every_moment(self) -> None:
        """In any sequence of GETs, reads and releases the bound holds, and at the end nothing is held."""
        budget, source, portions = DeliveryBudget(), random.Random(3), list[ReadReservation]()
        for _ in range(20_000):
            kind = source.random()
            if not portions or kind < 0.05:
                portions.append(budget.join(3))
            portion = source.choice(portions)
            if kind < 0.6:
                portion.hold(portion.next_size())
            elif kind < 0.96:
                portion.release(source.randint(0, portion.held))
            else:
                portions.remove(portion)
                portion.leave()
            assert budget.held <= DELIVERY_BYTES + budget.count * MIN_READ
        for portion in portions:
            portion.leave()
        assert (budget.count, budget.held) == (0, 0)
