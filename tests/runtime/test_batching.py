"""Group commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from tests.support import Turns, result
from twisted_storaged.errors import PreconditionFailed, StorageError
from twisted_storaged.runtime.batching import QUIET_ITERATIONS, Batcher


class Commits:
    """One whose turns and commits the test decides on."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.batches: list[list[str]] = []
        self._outcomes: list[Deferred[Sequence[str | StorageError]]] = []
        self.unclaimed: list[str] = []
        self.together: Batcher[str, str] = Batcher(cast(Any, self.turns), self._commit_all, self.unclaimed.append)

    def turn(self) -> None:
        """As many turns of the reactor as end a round."""
        for _ in range(1 + QUIET_ITERATIONS):
            self.turns.turn()

    def end(self, outcome: Sequence[str | StorageError] | Failure) -> None:
        """The commit under way has ended."""
        self._outcomes.pop().callback(outcome)

    def _commit_all(self, changes: list[str]) -> Deferred[Sequence[str | StorageError]]:
        assert not self._outcomes, "two commits at once"
        self.batches.append(changes)
        self._outcomes.append(Deferred())
        return self._outcomes[0]


class TogetherTests:
    """Changes to batches."""

    def test_one_turn_is_one_batch(self) -> None:
        """Each gets its own result, and none before the commit has ended."""
        commits = Commits()
        one, two = commits.together.do("one"), commits.together.do("two")
        commits.turn()
        assert commits.batches == [["one", "two"]]
        assert not one.called
        commits.end(["1", "2"])
        assert (result(one), result(two)) == ("1", "2")
        commits.turn()
        assert len(commits.batches) == 1

    def test_who_comes_meanwhile_is_in_the_next(self) -> None:
        """In the order they came, however many turns the first one takes."""
        commits = Commits()
        commits.together.do("one")
        commits.turn()
        later = [commits.together.do("two"), commits.together.do("three")]
        commits.turn()
        assert commits.batches == [["one"]]
        commits.end(["1"])
        commits.turn()
        assert commits.batches == [["one"], ["two", "three"]]
        commits.end(["2", "3"])
        assert [result(outcome) for outcome in later] == ["2", "3"]

    def test_those_that_were_answered_may_come_along(self) -> None:
        """Who came meanwhile does not go without them."""
        commits = Commits()
        commits.together.do("one")
        commits.turn()
        commits.together.do("two")
        commits.end(["1"])
        for change in ("one again", "another"):
            commits.turns.turn()
            commits.turns.turn()
            commits.together.do(change)
        assert commits.batches == [["one"]]
        commits.turn()
        assert commits.batches == [["one"], ["two", "one again", "another"]]

    def test_a_failure_is_that_of_its_batch(self) -> None:
        """All in it fail, and the next goes on."""
        commits = Commits()
        failed = [commits.together.do("one"), commits.together.do("two")]
        commits.turn()
        later = commits.together.do("three")
        commits.end(Failure(OSError("disk")))
        for outcome in failed:
            with pytest.raises(OSError, match="disk"):
                result(outcome)
        commits.turn()
        commits.end(["3"])
        assert result(later) == "3"

    def test_a_change_may_fail_alone(self) -> None:
        """The others of its batch have their results."""
        commits = Commits()
        one, two, three = (commits.together.do(change) for change in ("one", "two", "three"))
        commits.turn()
        commits.end(["1", PreconditionFailed("two"), "3"])
        assert (result(one), result(three)) == ("1", "3")
        with pytest.raises(PreconditionFailed, match="two"):
            result(two)

    @pytest.mark.parametrize("results", [["1"], ["1", "2", "3"], [], None])
    def test_another_number_of_results_is_a_failure_of_all(self, results: Any) -> None:
        """Every change of the batch fails, as nobody knows whose the results are, and the next batch is committed."""
        commits = Commits()
        failed = [commits.together.do("one"), commits.together.do("two")]
        commits.turn()
        later = commits.together.do("three")
        commits.end(results)
        for outcome in failed:
            with pytest.raises((RuntimeError, TypeError)):
                result(outcome)
        commits.turn()
        commits.end(["3"])
        assert result(later) == "3"

    def test_a_call_that_raises_at_once_is_a_failure_of_all(self) -> None:
        """Every change of the batch fails, and the next batch is committed."""
        turns, calls = Turns(), []

        def commit_all(changes: list[str]) -> Deferred[Sequence[str | StorageError]]:
            calls.append(changes)
            if len(calls) == 1:
                raise OSError("disk")
            return succeed(changes)

        together: Batcher[str, str] = Batcher(cast(Any, turns), commit_all)
        failed = [together.do("one"), together.do("two")]
        later = []

        def another(failure: Failure) -> Failure:
            later.append(together.do("three"))
            return failure

        failed[1].addErrback(another)
        for _ in range(1 + QUIET_ITERATIONS):
            turns.turn()
        for outcome in failed:
            with pytest.raises(OSError, match="disk"):
                result(outcome)
        for _ in range(1 + QUIET_ITERATIONS):
            turns.turn()
        assert [result(outcome) for outcome in later] == ["three"]
        assert calls == [["one", "two"], ["three"]]

    def test_the_result_of_one_that_was_cancelled(self) -> None:
        """Is let go of, before the commit or while it is under way; a failure has nothing that could be."""
        commits = Commits()
        outcomes = [commits.together.do(change) for change in ("one", "two", "three", "four")]
        for outcome in outcomes[:3]:
            outcome.addErrback(lambda failure: failure.trap(CancelledError) and None)
        outcomes[0].cancel()
        commits.turn()
        outcomes[1].cancel()
        outcomes[2].cancel()
        commits.end(["1", "2", PreconditionFailed("three"), "4"])
        assert commits.unclaimed == ["1", "2"]
        assert result(outcomes[3]) == "4"
