"""Coroutines and gates."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from tests.support import result
from twisted_storaged.deferreds import ConsumerGone, Gate, deferred


class DeferredTests:
    """The decorator."""

    def test_starts_at_the_call(self) -> None:
        """Whether or not anybody awaits it."""
        started = []

        @deferred
        async def function(argument: int) -> int:
            started.append(argument)
            return argument + 1

        outcome = function(1)
        assert started == [1]
        assert result(outcome) == 2


class GateTests:
    """Waiting where a consumer is full."""

    def test_open_at_first(self) -> None:
        """A consumer that says nothing has room."""
        result(Deferred.fromCoroutine(Gate().opened()))

    def test_waits_while_paused(self) -> None:
        """Until the consumer resumes."""
        gate = Gate()
        gate.pauseProducing()
        waiting = Deferred.fromCoroutine(gate.opened())
        assert not waiting.called
        gate.resumeProducing()
        result(waiting)

    @pytest.mark.parametrize("paused", [True, False])
    def test_says_when_nobody_wants_more(self, paused: bool) -> None:
        """A coroutine that waits, and one that comes later, both learn of it."""
        gate = Gate()
        if paused:
            gate.pauseProducing()
        waiting = Deferred.fromCoroutine(gate.opened())
        gate.stopProducing()
        if paused:
            with pytest.raises(ConsumerGone):
                result(waiting)
        with pytest.raises(ConsumerGone):
            result(Deferred.fromCoroutine(gate.opened()))
