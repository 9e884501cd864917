"""Bytes that leave past the reactor's own queue."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from tests.support import connected
from twisted_storaged.runtime.write_buffer import FlushQueue, has_unsent, queued_bytes, send

MUCH = b"x" * (16 << 20)


@pytest.fixture
def peers() -> Iterator[tuple[Any, socket.socket]]:
    """A transport on a socket that takes a little, and its peer."""
    with connected() as both:
        yield both


class SendTests:
    """What leaves at once."""

    def test_all_of_a_little(self, peers: tuple[Any, socket.socket]) -> None:
        """The reactor hears nothing of it."""
        transport, theirs = peers
        send(transport, [b"hello"])
        assert theirs.recv(10) == b"hello"
        assert not transport.reactor.getWriters()
        assert not has_unsent(transport)

    def test_what_the_socket_takes(self, peers: tuple[Any, socket.socket]) -> None:
        """The rest, and what comes after it, is the transport's, in order."""
        transport, theirs = peers
        send(transport, [MUCH])
        assert has_unsent(transport)
        send(transport, [b"end"])
        received = b""
        while not received.endswith(b"end"):
            received += theirs.recv(1 << 20)
            if has_unsent(transport):
                transport.doWrite()
        assert received == MUCH + b"end"

    def test_nothing_after_the_end(self, peers: tuple[Any, socket.socket]) -> None:
        """Neither when it is to be closed, nor when it is."""
        transport, theirs = peers
        send(transport, [MUCH])
        transport.loseConnection()
        send(transport, [b"end"])
        transport.connected = False
        send(transport, [b"end"])
        assert not theirs.recv(1 << 24).endswith(b"end")

    def test_a_peer_that_is_gone_is_the_transports_to_notice(self, peers: tuple[Any, socket.socket]) -> None:
        """Later, as ever: nobody is called back from within a write."""
        transport, theirs = peers
        theirs.close()
        send(transport, [b"hello"])
        assert isinstance(transport.doWrite(), Exception)

    def test_over_tls_it_is_tls_that_sends(self, peers: tuple[Any, socket.socket]) -> None:
        """Never past it."""
        transport, theirs = peers
        transport.TLS, transport.protocol = True, StringTransport()
        send(transport, [b"hello"])
        with pytest.raises(BlockingIOError):
            theirs.recv(10)
        assert transport.protocol.value() == b"hello"


class OutboxTests:
    """Who sends when."""

    def test_one_defect_is_not_the_others(self) -> None:
        """Who could not send would not come again, nor would who came after."""
        clock = Clock()
        flush_queue = FlushQueue(clock)
        pushed: list[int] = []

        class Sending:
            def __init__(self, number: int) -> None:
                self.number = number

            def push(self) -> None:
                pushed.append(1 // self.number)

        for number in (1, 0, 1):
            flush_queue.add(Sending(number))
        clock.advance(0)
        assert pushed == [1, 1]

    def test_all_at_the_end_of_the_round(self) -> None:
        """In the order in which they came; and who comes meanwhile, after them."""
        clock = Clock()
        pushed: list[str] = []
        flush_queue = FlushQueue(clock)

        class Sending:
            def __init__(self, name: str) -> None:
                self.name = name

            def push(self) -> None:
                pushed.append(self.name)
                if self.name == "a":
                    flush_queue.add(Sending("later"))

        for name in "abc":
            flush_queue.add(Sending(name))
        assert pushed == []
        assert len(clock.getDelayedCalls()) == 1
        clock.advance(0)
        assert pushed == ["a", "b", "c", "later"]


class QueuedBytesTests:
    """How much of what was written has not arrived."""

    def test_counts_what_waits_here_and_in_the_kernel(self, peers: tuple[Any, socket.socket]) -> None:
        """A peer that does not read leaves bytes in both."""
        transport, _ = peers
        assert queued_bytes(transport) == 0
        send(transport, [MUCH])
        here = len(transport.dataBuffer) + sum(map(len, transport._tempDataBuffer))
        assert 0 < here < len(MUCH)
        assert queued_bytes(transport) > here

    def test_of_what_has_no_socket(self) -> None:
        """Nothing is known of it."""
        assert queued_bytes(object()) == 0
