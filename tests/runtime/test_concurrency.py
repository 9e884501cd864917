"""Coroutines and gates."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from tests.support import result
from twisted_storaged.runtime.concurrency import BackpressureGate, ConsumerGone, deferred, run_coroutine


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


def nothing() -> None:
    pass


def never(failure: Failure) -> None:
    raise AssertionError(failure)


def never_ended() -> None:
    raise AssertionError("it did not return")


class RunTests:
    """Coroutines that nobody waits for."""

    def test_goes_on_with_each_result(self) -> None:
        """At once where there is one already, else when it comes."""
        later: Deferred[str] = Deferred()
        seen: list[str] = []

        async def work() -> None:
            seen.append(await succeed("at once"))
            seen.append(await later)
            seen.append(await inner())

        async def inner() -> str:
            return await succeed("from another")

        run_coroutine(work(), lambda: seen.append("ended"), never)
        assert seen == ["at once"]
        later.callback("later")
        assert seen == ["at once", "later", "from another", "ended"]

    @pytest.mark.parametrize("when", ["at once", "later"])
    def test_a_failure_is_raised_where_it_is_awaited(self, when: str) -> None:
        """And may be caught there."""
        error = ValueError("no")
        awaited: Deferred[None] = fail(error) if when == "at once" else Deferred()
        caught: list[BaseException] = []

        async def work() -> None:
            try:
                await awaited
            except ValueError as error:
                caught.append(error)

        run_coroutine(work(), nothing, never)
        if when == "later":
            awaited.errback(error)
        assert caught == [error]

    @pytest.mark.parametrize("awaits", [0, 1, 2])
    def test_what_it_raises_is_told(self, awaits: int) -> None:
        """Once, wherever that was, and with the place."""
        awaited = [Deferred[None]() for _ in range(awaits)]
        failures: list[Failure] = []

        async def work() -> None:
            for one in awaited:
                await one
            raise ValueError("no")

        run_coroutine(work(), never_ended, failures.append)
        for one in awaited:
            assert failures == []
            one.callback(None)
        (failure,) = failures
        assert failure.check(ValueError)
        assert "in work" in failure.getTraceback()

    def test_a_failure_of_the_end_is_told(self) -> None:
        """What the callable raises that is called at the end of a coroutine goes to `failed`, as what the coroutine
        raises does."""
        failures: list[Failure] = []

        async def work() -> None:
            pass

        def end() -> None:
            raise ValueError("no")

        run_coroutine(work(), end, failures.append)
        (failure,) = failures
        assert failure.check(ValueError)

    def test_each_has_its_own_context(self) -> None:
        """What one sets in its context is there whenever it goes on, and is not there for others."""
        variable: ContextVar[str] = ContextVar("variable", default="outside")
        awaited = {name: [Deferred[None](), Deferred[None]()] for name in "ab"}
        seen: list[tuple[str, str]] = []

        async def work(name: str) -> None:
            variable.set(name)
            for one in awaited[name]:
                with suppress(ValueError):
                    await one
                seen.append((name, variable.get()))

        for name in "ab":
            run_coroutine(work(name), lambda: seen.append(("end", variable.get())), never)
        for name, number in [("b", 0), ("a", 0), ("a", 1)]:
            awaited[name][number].callback(None)
        awaited["b"][1].errback(ValueError())
        assert seen == [("b", "b"), ("a", "a"), ("a", "a"), ("end", "outside"), ("b", "b"), ("end", "outside")]
        assert variable.get() == "outside"

    def test_a_chain_of_deferreds(self) -> None:
        """One that has fired, and waits for another."""
        last: Deferred[int] = Deferred()
        first = succeed(None).addCallback(lambda _: last)
        seen: list[int] = []

        async def work() -> None:
            seen.append(await first)

        run_coroutine(work(), nothing, never)
        assert seen == []
        last.callback(3)
        assert seen == [3]


class GateTests:
    """Waiting where a consumer is full."""

    def test_open_at_first(self) -> None:
        """A consumer that says nothing has room."""
        result(Deferred.fromCoroutine(BackpressureGate().opened()))

    def test_waits_while_paused(self) -> None:
        """Until the consumer resumes."""
        gate = BackpressureGate()
        gate.pauseProducing()
        waiting = Deferred.fromCoroutine(gate.opened())
        assert not waiting.called
        gate.resumeProducing()
        result(waiting)

    @pytest.mark.parametrize("paused", [True, False])
    def test_says_when_nobody_wants_more(self, paused: bool) -> None:
        """A coroutine that waits, and one that comes later, both learn of it."""
        gate = BackpressureGate()
        if paused:
            gate.pauseProducing()
        waiting = Deferred.fromCoroutine(gate.opened())
        gate.stopProducing()
        if paused:
            with pytest.raises(ConsumerGone):
                result(waiting)
        with pytest.raises(ConsumerGone):
            result(Deferred.fromCoroutine(gate.opened()))
