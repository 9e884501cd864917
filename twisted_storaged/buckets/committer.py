"""Group commit: what arrives while one commit is under way is committed together by the next.

A commit waits for the disk, however little it commits; this is how many clients share that wait. No change is kept
waiting for company, and none is answered before the commit that it is part of has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_storaged.errors import StorageError

_C = TypeVar("_C")
_R = TypeVar("_R")

#: Makes a call in the reactor's next turn.
Soon = Callable[[Callable[[], None]], object]


class Committer(Generic[_C, _R]):
    """Commits changes in the order they come in, by one call of `commit_all` at a time.

    That call takes a list of changes and gives as many results, or fails for all of them. A result that is a
    StorageError is the failure of one change, whatever became of the others.
    """

    def __init__(self, soon: Soon, commit_all: Callable[[list[_C]], Deferred[Sequence[_R | StorageError]]]) -> None:
        self._soon = soon
        self._commit_all = commit_all
        self._waiting: list[tuple[_C, Deferred[_R]]] = []
        self._busy = False

    def commit(self, change: _C) -> Deferred[_R]:
        """Commit a change; fires when that is done, with its result."""
        outcome: Deferred[_R] = Deferred()
        self._waiting.append((change, outcome))
        if not self._busy:
            self._go_on()
        return outcome

    def _go_on(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            # Not now: what the reactor has at hand in this turn comes along.
            self._soon(self._commit_waiting)

    def _commit_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        outcomes = [outcome for _, outcome in batch]
        committed = self._commit_all([change for change, _ in batch])
        committed.addCallbacks(self._succeeded, self._failed, callbackArgs=(outcomes,), errbackArgs=(outcomes,))

    def _succeeded(self, results: Sequence[_R | StorageError], outcomes: list[Deferred[_R]]) -> None:
        for outcome, result in zip(outcomes, results, strict=True):
            if isinstance(result, StorageError):
                outcome.errback(result)
            else:
                outcome.callback(result)
        self._go_on()

    def _failed(self, failure: Failure, outcomes: list[Deferred[_R]]) -> None:
        for outcome in outcomes:
            outcome.errback(failure)
        self._go_on()
