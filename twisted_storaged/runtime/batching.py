"""Batches: calls that arrive together are coalesced, and carried out by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twisted_storaged.errors import StorageError

# Waiting for company, for as long as it comes.
#
# What is done together costs less than one by one: a commit, a look into an index, a send that wakes its peer.
# Clients that were answered together ask again together, but not all in one turn of the reactor: the first of them
# wakes it, and the others come while it is at work. So as long as a turn has brought more, another is waited for. It
# comes at once: who is alone is kept waiting for microseconds.

#: Turns after which nobody waits for more.
MAX_ITERATIONS = 8


class Coalescer:
    """Calls `act` when, by `count`, the last `quiet` turns of the reactor have brought no more."""

    def __init__(self, clock: IReactorTime, count: Callable[[], int], act: Callable[[], None], quiet: int = 1) -> None:
        self._clock = clock
        self._count = count
        self._act = act
        self._quiet = quiet
        self._seen = self._left = self._turns = 0

    def begin(self) -> None:
        """Begin to wait; to be called when the first is there."""
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


# Doing together what comes together: what arrives while one call is under way is done together by the next.
#
# A commit waits for the disk, however little it commits, and a look into the index for a thread: this is how many
# clients share that wait. Nothing is answered before the call that it is part of has returned.

_T = TypeVar("_T")
_R = TypeVar("_R")


#: Turns of the reactor without another that end a round: as many as it takes those that were answered by the last one
#: to be heard again.
QUIET_ITERATIONS = 3


class Batcher(Generic[_T, _R]):
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
        self._round = Coalescer(clock, lambda: len(self._waiting), self._do_waiting, QUIET_ITERATIONS)
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
