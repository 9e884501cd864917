"""What SIGTERM and SIGINT do, with handlers that the test calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from signal import SIGINT, SIGTERM, getsignal, signal
from typing import Any

import pytest
from twisted.application.service import Service

from twisted_storaged.runtime.process import StopSignals


class FakeReactor:
    """The three calls of a reactor that the handlers make."""

    def __init__(self) -> None:
        self.stops = 0
        self.when_running: list[Callable[[], None]] = []

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.when_running.append(call)

    def callFromThread(self, call: Callable[[], None]) -> None:
        call()

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture(autouse=True)
def _kept_handlers() -> Iterator[None]:
    """The process of the tests keeps the handlers that it had."""
    kept = {number: getsignal(number) for number in (SIGINT, SIGTERM)}
    yield
    for number, handler in kept.items():
        signal(number, handler)


class FakeService(Service):
    """A service that counts how often its drain was skipped."""

    skipped = 0

    def skip_drain(self) -> None:
        self.skipped += 1


def running() -> FakeService:
    """A service that runs."""
    service = FakeService()
    service.startService()
    return service


def serving(reactor: FakeReactor, service: FakeService) -> None:
    """Install the handlers around a service."""
    signals = StopSignals(reactor, lambda status: pytest.fail(f"ended with {status}"))
    signals.install()
    signals.service = service


def deliver(number: int) -> None:
    """Call the handler of a signal, as the interpreter does."""
    handler: Any = getsignal(number)
    handler(number, None)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
class StopSignalsTests:
    """Both signals do the same."""

    def test_while_starting(self, number: int) -> None:
        """Before anything is open, the process ends at once, with status 0."""
        reactor = FakeReactor()
        ended: list[int] = []
        signals = StopSignals(reactor, ended.append)
        signals.install()
        deliver(number)
        signals.service = FakeService()
        deliver(number)
        assert ended == [0, 0]
        assert reactor.stops == 0

    def test_while_serving(self, number: int) -> None:
        """The first signal stops the reactor, and each further one skips the drain, though the service runs no more."""
        reactor, service = FakeReactor(), running()
        serving(reactor, service)
        for skipped in range(3):
            deliver(number)
            assert service.skipped == skipped
            service.running = 0
        assert reactor.stops == 1

    def test_the_reactor_does_not_take_the_handlers_back(self, number: int) -> None:
        """Twisted's handlers, which it installs when it starts, are replaced again."""
        reactor = FakeReactor()
        serving(reactor, running())
        signal(number, lambda *_: None)
        for call in reactor.when_running:
            call()
        deliver(number)
        assert reactor.stops == 1
