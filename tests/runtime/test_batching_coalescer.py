"""Waiting for company."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.support import Turns
from twisted_storaged.runtime.batching import MAX_ITERATIONS, Coalescer


class Company:
    """Those that are waited for, and with how many of them it was acted."""

    def __init__(self, quiet: int = 1) -> None:
        self.count = 1
        self.acted: list[int] = []
        self.turns = Turns()
        self.round = Coalescer(cast(Any, self.turns), lambda: self.count, lambda: self.acted.append(self.count), quiet)
        self.round.begin()


class RoundTests:
    """When it is acted."""

    @pytest.mark.parametrize("quiet", [1, 2, 3])
    def test_who_is_alone_waits_for_the_quiet_turns(self, quiet: int) -> None:
        """And no longer."""
        company = Company(quiet)
        for _ in range(quiet):
            assert company.acted == []
            company.turns.turn()
        assert company.acted == [1]

    def test_as_long_as_turns_bring_more(self) -> None:
        """The quiet ones are in a row; and it is acted once."""
        company = Company(quiet=2)
        for company.count in (2, 2, 5, 5, 6):
            company.turns.turn()
            assert company.acted == []
        for _ in range(5):
            company.turns.turn()
        assert company.acted == [6]

    @pytest.mark.parametrize("more", [1, 100])
    def test_some_turns_at_most(self, more: int) -> None:
        """Where they never cease to come."""
        company = Company()
        for _ in range(MAX_ITERATIONS - 1):
            company.count += more
            company.turns.turn()
            assert company.acted == []
        company.count += more
        company.turns.turn()
        assert company.acted == [company.count]

    def test_each_round_begins_anew(self) -> None:
        """Whatever the one before it saw."""
        company = Company(quiet=2)
        company.count = 9
        for _ in range(3):
            company.turns.turn()
        company.count = 1
        company.round.begin()
        company.turns.turn()
        assert company.acted == [9]
        company.turns.turn()
        assert company.acted == [9, 1]
