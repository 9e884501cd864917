"""The reactor of `twistd storaged`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from socket import socket, socketpair
from typing import Any

import pytest
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from tests.buckets.local.embedded import logged
from twisted_storaged.runtime.twisted_internals import Reactor, warn_of_wall_clock


class Peer:
    """One that is told when there is something to read, and does what the test wants then."""

    def __init__(self, handle: socket, act: Any) -> None:
        self.fileno = handle.fileno
        self._act = act
        self.lost: list[Failure] = []
        self.named = 0

    def doRead(self) -> Any:
        return self._act()

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)

    def logPrefix(self) -> str:
        self.named += 1
        return "peer"


@pytest.fixture
def reactor() -> Generator[Reactor, None, None]:
    reactor = Reactor()
    yield reactor
    reactor._poller.close()


class PollTests:
    """Doing what there is to do."""

    def test_who_is_ready_is_told_and_the_log_is_not(self, reactor: Reactor) -> None:
        """And who is not ready is not."""
        (here, there), (idle, silent) = socketpair(), socketpair()
        reads: list[bytes] = []
        peer = Peer(here, lambda: reads.append(here.recv(9)))
        reactor.addReader(peer)
        reactor.addReader(Peer(idle, pytest.fail))
        there.send(b"hello")
        reactor.doIteration(5)
        assert (reads, peer.named) == ([b"hello"], 0)
        for one in (here, there, idle, silent):
            one.close()

    def test_a_defect_does_not_keep_the_others_waiting(self, reactor: Reactor) -> None:
        """It is logged, and its connection is lost, even if that fails too."""
        pairs = [socketpair() for _ in range(3)]
        reads: list[bytes] = []

        def broken() -> None:
            raise ValueError("a defect")

        def never(reason: Failure) -> None:
            raise ValueError("another defect")

        peers = [Peer(pairs[0][0], broken), Peer(pairs[1][0], broken)]
        peers[1].connectionLost = never  # type: ignore[method-assign]
        peers.append(Peer(pairs[2][0], lambda: reads.append(pairs[2][0].recv(9))))
        for peer, (_, there) in zip(peers, pairs, strict=True):
            reactor.addReader(peer)
            there.send(b"hello")
        with logged() as lines:
            reactor.doIteration(5)
        assert reads == [b"hello"]
        assert peers[0].lost[0].check(ValueError)
        assert "unexpected error in a connection" in "".join(lines)
        for pair in pairs:
            for one in pair:
                one.close()

    def test_who_has_left_meanwhile_is_not_told(self, reactor: Reactor) -> None:
        """By what an earlier one did in the same turn."""
        (first, a), (second, b) = socketpair(), socketpair()
        told: list[str] = []
        peers = {"first": Peer(first, lambda: leave("first")), "second": Peer(second, lambda: leave("second"))}

        def leave(name: str) -> None:
            told.append(name)
            for peer in peers.values():
                reactor.removeReader(peer)

        for peer in peers.values():
            reactor.addReader(peer)
        a.send(b"x")
        b.send(b"x")
        reactor.doIteration(5)
        assert len(told) == 1
        for one in (first, a, second, b):
            one.close()


class ClockTests:
    """What is waited for."""

    @pytest.mark.parametrize("step", [-15.0, 3600.0])
    def test_a_wall_clock_that_is_set_moves_nothing(
        self, reactor: Reactor, monkeypatch: pytest.MonkeyPatch, step: float
    ) -> None:
        """A call that is due is made, and one that is not is not, whichever way the wall clock was set."""
        made: list[str] = []
        reactor.callLater(0, made.append, "due")
        reactor.callLater(60, made.append, "not due")
        before = time.time()
        monkeypatch.setattr(time, "time", lambda: before + step)
        reactor.runUntilCurrent()
        assert made == ["due"]
        assert 59 < (reactor.timeout() or 0) <= 60

    def test_a_reactor_on_the_wall_clock_is_warned_of(self, reactor: Reactor) -> None:
        """The log names a reactor that uses the wall clock, and not this one."""
        with logged(LogLevel.warn) as lines:
            warn_of_wall_clock(reactor)
            assert lines == []
            warn_of_wall_clock(_WallClockReactor())
        assert "_WallClockReactor uses the wall clock" in lines[0]


class _WallClockReactor:
    seconds = staticmethod(time.time)


class InstallTests:
    """Which reactor there is."""

    @pytest.mark.parametrize(
        ("before", "expected"),
        [
            ("", "twisted_storaged.runtime.twisted_internals.Reactor"),
            ("from twisted.internet import pollreactor; pollreactor.install()", "twisted.internet.pollreactor"),
        ],
    )
    def test_one_that_was_chosen_stays(self, before: str, expected: str) -> None:
        """As by `twistd --reactor`."""
        lines = [before, "from twisted_storaged.runtime.twisted_internals import install", "install()"]
        lines += ["from twisted.internet import reactor", "print(type(reactor))"]
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        assert expected in done.stdout
