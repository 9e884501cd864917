"""Coroutines, threads and back-pressure: how blocking calls, Deferreds and producers work together."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial, wraps
from threading import Thread
from time import monotonic
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorFromThreads
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from twisted_storaged.runtime.metering import Meters

_P = ParamSpec("_P")
_T = TypeVar("_T")


def deferred(function: Callable[_P, Coroutine[Deferred[Any], Any, _T]]) -> Callable[_P, Deferred[_T]]:
    """Make a coroutine function start at the call and return a Deferred, as an interface promises."""

    @wraps(function)
    def start(*args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return start


def run_coroutine(
    coroutine: Coroutine[Deferred[Any], Any, object],
    ended: Callable[[], object],
    failed: Callable[[Failure], object],
    context: Context | None = None,
) -> None:
    """Start a coroutine. `ended` is called when it has returned, or `failed` with the failure of either.

    It runs in `context`, by default a copy of the current one. It cannot be cancelled, and has no Deferred: for a small
    request, this takes half the time of Deferred.fromCoroutine.
    """
    _go_on(None, coroutine, ended, failed, copy_context() if context is None else context)


def _go_on(
    result: object,
    coro: Coroutine[Deferred[Any], Any, object],
    ended: Callable[[], object],
    failed: Callable[[Failure], object],
    context: Context,
) -> None:
    try:
        # The coroutine reads the result from the Deferred that it awaits. A failure is thrown into it here, since the
        # Deferred is still running its callbacks.
        if isinstance(result, Failure):
            awaited = context.run(result.throwExceptionIntoGenerator, coro)
        else:
            awaited = context.run(coro.send, None)
    except StopIteration:
        awaited = None
    except Exception:  # noqa: BLE001 (all are passed to `failed`)
        failed(Failure())
        return
    if awaited is not None:
        awaited.addBoth(_go_on, coro, ended, failed, context)
        return
    try:
        ended()
    except Exception:  # noqa: BLE001 (all are passed to `failed`)
        failed(Failure())


def forget_frames(error: BaseException | None) -> None:
    """Remove the tracebacks of an error that has been handled, and of its causes.

    A frame of Twisted's refers to the failure that passed it: a reference cycle, which would keep the local variables
    of all frames, such as the buffers of a transfer, until the garbage collector runs.
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
    """The consumer has stopped its producer: the rest is not wanted."""


@implementer(IPushProducer)
class BackpressureGate:
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


class Run(Protocol):
    """Runs a blocking call elsewhere: `Threads.run`, or something synchronous in a test."""

    def __call__(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]: ...


class Threads:
    """A pool of at most `size` threads for the blocking calls of a bucket. They start when they are first needed.

    A call must never wait for a client, since a few slow clients would occupy all threads.
    """

    def __init__(self, reactor: IReactorFromThreads, size: int, name: str, meters: Meters | None = None) -> None:
        """Metrics have the name, and are in `meters`; by default, in its own."""
        self._reactor = reactor
        self._name = name
        #: Calls that wait for a thread or are made in one.
        self._count = 0
        meters, labels = meters or Meters(), ("pool",)
        self._waits = meters.histogram("storaged_pool_wait_seconds", "Time that calls wait for a thread.", labels)
        threads = meters.gauge("storaged_pool_threads", "Threads that a pool may have.", labels)
        threads.watch(lambda: size, name)
        busy = meters.gauge("storaged_pool_threads_busy", "Threads of a pool that make a call.", labels)
        busy.watch(lambda: min(self._count, size), name)
        queue = meters.gauge("storaged_pool_queue", "Calls that wait for a thread.", labels)
        queue.watch(lambda: max(self._count - size, 0), name)
        self._pool = ThreadPool(0, size, name)
        # A call that hangs in a socket must not keep the process from ending.
        self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def start(self) -> None:
        """Begin to run calls."""
        self._pool.start()

    def run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Make a blocking call in a thread; the Deferred has what it returns or raises."""
        outcome: Deferred[_T] = Deferred()
        queued = monotonic()
        waited = 0.0

        def timed() -> _T:
            nonlocal waited
            waited = monotonic() - queued
            return call(*args, **kwargs)

        def ended(success: bool, result: Any) -> None:
            fire = outcome.callback if success else outcome.errback
            self._reactor.callFromThread(self._ended, waited, fire, result)

        self._count += 1
        self._pool.callInThreadWithCallback(ended, timed)
        return outcome

    def _ended(self, waited: float, fire: Callable[[Any], object], result: Any) -> None:
        self._count -= 1
        self._waits.observe(waited, self._name)
        fire(result)

    def ping(self) -> Deferred[None]:
        """Make a call that does nothing; fires when it has returned. It does not, if all threads hang."""
        return self.run(lambda: None)

    def stop(self) -> Deferred[None]:
        """Accept no more calls; fires when those under way have ended."""
        stopped: Deferred[None] = Deferred()

        # In a thread, as stopping the pool blocks until all of its threads have ended.
        def join() -> None:
            self._pool.stop()
            self._reactor.callFromThread(stopped.callback, None)

        Thread(target=join, daemon=True).start()
        return stopped


class InFlight:
    """The calls of one upload that are under way, at most `limit()` of them."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._count = 0
        self._waiting: Deferred[None] | None = None

    def add(self, call: Deferred[Any]) -> None:
        """Count a call until it has ended."""
        self._count += 1
        call.addBoth(self._ended)

    async def room(self) -> None:
        """Wait until there is room for one more."""
        await self._below(self._limit)

    async def landed(self) -> None:
        """Wait until there is none."""
        await self._below(lambda: 1)

    async def _below(self, limit: Callable[[], int]) -> None:
        # Asked each time, as the limit changes while other bodies come and go.
        while self._count >= limit():
            self._waiting = Deferred()
            await self._waiting

    def _ended(self, _: object) -> None:
        self._count -= 1
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
