"""The idioms between coroutines and Twisted: one that starts when called, one that is run for what it does, and a gate
where it can wait."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

_P = ParamSpec("_P")
_T = TypeVar("_T")


def deferred(function: Callable[_P, Coroutine[Deferred[Any], Any, _T]]) -> Callable[_P, Deferred[_T]]:
    """Make a coroutine function start at the call and return a Deferred, as an interface promises."""

    @wraps(function)
    def start(*args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return start


def run(
    coroutine: Coroutine[Deferred[Any], Any, object], ended: Callable[[], object], failed: Callable[[Failure], object]
) -> None:
    """Start a coroutine that nobody cancels. `ended` is called when it has returned, or `failed` with what it, or
    `ended`, raised.

    For a request, this takes half the time of Deferred.fromCoroutine, which provides for both.
    """
    _go_on(None, coroutine, ended, failed)


def _go_on(
    result: object,
    coro: Coroutine[Deferred[Any], Any, object],
    ended: Callable[[], object],
    failed: Callable[[Failure], object],
) -> None:
    try:
        # What was awaited has its result itself; but it cannot raise while it runs its callbacks.
        awaited = result.throwExceptionIntoGenerator(coro) if isinstance(result, Failure) else coro.send(None)
    except StopIteration:
        awaited = None
    except Exception:  # noqa: BLE001 (all are for who called)
        failed(Failure())
        return
    if awaited is not None:
        awaited.addBoth(_go_on, coro, ended, failed)
        return
    try:
        ended()
    except Exception:  # noqa: BLE001 (all are for who called)
        failed(Failure())


def forget_frames(error: BaseException | None) -> None:
    """Let an error that has been dealt with, and those that it came from, keep the frames that they passed no more.

    A frame of Twisted's that a failure passed knows that failure, so that both, and whatever the frames know, such as
    the buffers of a transfer, would stay until the garbage collector finds them.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            left += [one.__cause__, one.__context__]


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
