"""Doing together what comes together: what arrives while one call is under way is done together by the next.

A commit waits for the disk, however little it commits, and a look into the index for a thread: this is how many
clients share that wait. Nothing is answered before the call that it is part of has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twisted_storaged.errors import StorageError
from twisted_storaged.rounds import Round

_T = TypeVar("_T")
_R = TypeVar("_R")


#: Turns of the reactor without another that end a round: as many as it takes those that were answered by the last one
#: to be heard again.
QUIET = 3


class Together(Generic[_T, _R]):
    """Does things in the order they come in, by one call of `do_all` at a time.

    That call takes a list of them and gives as many results, or fails for all. A result that is a StorageError is the
    failure of one, whatever became of the others.

    Each is answered exactly once, whatever that call does: if it raises at once, or has another number of results
    than it was given things, all of its things fail; and what has come meanwhile goes on.
    """

    def __init__(
        self,
        clock: IReactorTime,
        do_all: Callable[[list[_T]], Deferred[Sequence[_R | StorageError]]],
        unclaimed: Callable[[_R], object] = lambda _: None,
    ) -> None:
        """`unclaimed` is called with the result of one that was cancelled meanwhile, to let go of what it holds."""
        self._round = Round(clock, lambda: len(self._waiting), self._do_waiting, QUIET)
        self._do_all = do_all
        self._unclaimed = unclaimed
        self._waiting: list[tuple[_T, Deferred[_R]]] = []
        self._busy = False

    def do(self, thing: _T) -> Deferred[_R]:
        """Do one; fires when that is done, with its result."""
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
        done = maybeDeferred(self._do_all, [thing for thing, _ in batch])
        done.addCallback(self._checked, len(batch))
        done.addCallbacks(self._succeeded, self._failed, callbackArgs=(outcomes,), errbackArgs=(outcomes,))

    def _checked(self, results: Sequence[_R | StorageError], count: int) -> Sequence[_R | StorageError]:
        if len(results) != count:
            raise RuntimeError(f"{len(results)} results for {count} things that were to be done")
        return results

    def _succeeded(self, results: Sequence[_R | StorageError], outcomes: list[Deferred[_R]]) -> None:
        for outcome, result in zip(outcomes, results, strict=True):
            if outcome.called:
                # Cancelled: nobody would hear of it.
                if not isinstance(result, StorageError):
                    self._unclaimed(result)
            elif isinstance(result, StorageError):
                outcome.errback(result)
            else:
                outcome.callback(result)
        self._go_on()

    def _failed(self, failure: Failure, outcomes: list[Deferred[_R]]) -> None:
        for outcome in outcomes:
            outcome.errback(failure)
        self._go_on()
