"""A bucket's own threads: blocking calls go here, and what waits for a client does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Run(Protocol):
    """Runs a blocking call elsewhere: `Threads.run`, or something synchronous in a test."""

    def __call__(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]: ...


class Threads:
    """A pool of at most `size` threads, which start when they are first needed."""

    def __init__(self, reactor: IReactorFromThreads, size: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, size, name)
        # A call that hangs in a socket must not keep the process from ending.
        self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def start(self) -> None:
        """Begin to run calls."""
        self._pool.start()

    def run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Make a blocking call in a thread; the Deferred has what it returns or raises."""
        return deferToThreadPool(self._reactor, self._pool, call, *args, **kwargs)

    def stop(self) -> Deferred[None]:
        """Take no more calls; fires when those under way have ended. The joining is a thread's, as it blocks."""
        stopped: Deferred[None] = Deferred()

        def join() -> None:
            self._pool.stop()
            self._reactor.callFromThread(stopped.callback, None)

        Thread(target=join, daemon=True).start()
        return stopped
