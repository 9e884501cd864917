"""The two idioms between coroutines and Twisted: a coroutine that starts when called, and a gate it can wait at."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

_P = ParamSpec("_P")
_T = TypeVar("_T")


def deferred(function: Callable[_P, Coroutine[Deferred[Any], Any, _T]]) -> Callable[_P, Deferred[_T]]:
    """Make a coroutine function start at the call and return a Deferred, as an interface promises."""

    @wraps(function)
    def start(*args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return start


class ConsumerGone(Exception):
    """The consumer told its producer to stop: nobody wants the rest."""


@implementer(IPushProducer)
class Gate:
    """The producer that a coroutine registers with its consumer, to wait wherever the consumer is full."""

    def __init__(self) -> None:
        self._paused = False
        self._gone = False
        self._waiting: Deferred[None] | None = None

    async def opened(self) -> None:
        """Wait while the consumer is full.

        Raises:
            ConsumerGone: it went away.
        """
        if self._paused and not self._gone:
            self._waiting = Deferred()
            await self._waiting
        if self._gone:
            raise ConsumerGone

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        self._gone = True
        self._go_on()

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
