"""Batches: calls that arrive together are coalesced, and carried out by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twisted_storaged.errors import StorageError

#: Iterations of the reactor after which `act` is called in any case.
MAX_ITERATIONS = 8


class Coalescer:
    """Calls `act` once `quiet` iterations of the reactor brought no new work, by `count`; after MAX_ITERATIONS at most.

    A commit, an index look-up, or a send that wakes its peer costs less for several at once. Clients that got their
    responses together send their next requests together, but not within one iteration: the first wakes the reactor,
    the others arrive while it works. A single client is delayed by microseconds, as idle iterations do not wait.
    """

    def __init__(self, clock: IReactorTime, count: Callable[[], int], act: Callable[[], None], quiet: int = 1) -> None:
        self._clock = clock
        self._count = count
        self._act = act
        self._quiet = quiet
        self._seen = self._left = self._turns = 0

    def begin(self) -> None:
        """Begin to count; to be called when the first work arrives."""
        self._seen, self._left, self._turns = self._count(), self._quiet, MAX_ITERATIONS
        self._clock.callLater(0, self._look)

    def _look(self) -> None:
        count = self._count()
        self._left = self._quiet if count > self._seen else self._left - 1
        self._seen = count
        self._turns -= 1
        if self._left and self._turns:
            self._clock.callLater(0, self._look)
        else:
            self._act()


_T = TypeVar("_T")
_R = TypeVar("_R")


#: Iterations without a new call after which a batch begins: as many as it takes for the next requests of the clients
#: of the last batch to arrive.
QUIET_ITERATIONS = 3


class Batcher(Generic[_T, _R]):
    """Group commit: items that arrive while a batch runs form the next one. One call of `do_all` runs at a time.

    `do_all` gets a list of items and returns as many results, or fails for all of them. A result that is a
    StorageError is the failure of that item alone.

    Each item gets exactly one outcome, whatever `do_all` does: if it raises, or returns another number of results, the
    whole batch fails, and the next one goes on.
    """

    def __init__(
        self,
        clock: IReactorTime,
        do_all: Callable[[list[_T]], Deferred[Sequence[_R | StorageError]]],
        unclaimed: Callable[[_R], object] = lambda _: None,
    ) -> None:
        """`unclaimed` releases the result of an item whose caller has cancelled it."""
        self._round = Coalescer(clock, lambda: len(self._waiting), self._do_waiting, QUIET_ITERATIONS)
        self._do_all = do_all
        self._unclaimed = unclaimed
        self._waiting: list[tuple[_T, Deferred[_R]]] = []
        self._busy = False

    def do(self, thing: _T) -> Deferred[_R]:
        """Add an item to the next batch; fires with its result."""
        outcome: Deferred[_R] = Deferred()
        self._waiting.append((thing, outcome))
        if not self._busy:
            self._go_on()
        return outcome

    def _go_on(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            self._round.begin()

    def _do_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        outcomes = [outcome for _, outcome in batch]
        # A `do_all` that raises at once must not leave the batcher busy forever.
        done = maybeDeferred(self._do_all, [thing for thing, _ in batch])
        done.addCallback(self._checked, len(batch))
        done.addCallbacks(self._succeeded, self._failed, callbackArgs=(outcomes,), errbackArgs=(outcomes,))

    def _checked(self, results: Sequence[_R | StorageError], count: int) -> Sequence[_R | StorageError]:
        if len(results) != count:
            raise RuntimeError(f"{len(results)} results for {count} items")
        return results

    def _succeeded(self, results: Sequence[_R | StorageError], outcomes: list[Deferred[_R]]) -> None:
        for outcome, result in zip(outcomes, results, strict=True):
            if outcome.called:
                # Its caller has cancelled it.
                if not isinstance(result, StorageError):
                    self._unclaimed(result)
            elif isinstance(result, StorageError):
                outcome.errback(result)
            else:
                outcome.callback(result)
        self._go_on()

    def _failed(self, failure: Failure, outcomes: list[Deferred[_R]]) -> None:
        for outcome in outcomes:
            # One that was cancelled ignores this: Deferred.cancel lets one more result pass.
            outcome.errback(failure)
        self._go_on()
