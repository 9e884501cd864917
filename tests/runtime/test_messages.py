"""Messages and descriptors over real socket pairs; the reactor is in memory, and the test lets it read."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure

from twisted_storaged.runtime.messages import LONGEST, MESSAGES, MessageSocket, receive, send, socket_pair


class Peers:
    """A socket on a reactor, and the peer's end of it.

    Attributes:
        received: the messages, each with the number of its descriptors.
        lost: how often the peer was found to be gone.
    """

    def __init__(self) -> None:
        ours, self.theirs = socket_pair()
        self.theirs.setblocking(False)
        self.reactor: Any = MemoryReactor()
        self.received: list[tuple[bytes, int]] = []
        self.descriptors: list[int] = []
        self.lost = 0
        self.socket = MessageSocket(ours, self._receive, self._lose, self.reactor)
        self.socket.start()

    def _receive(self, data: bytes, descriptors: list[int]) -> None:
        self.received.append((data, len(descriptors)))
        self.descriptors += descriptors

    def _lose(self) -> None:
        self.lost += 1

    def close(self) -> None:
        self.theirs.close()
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


@pytest.fixture
def peers() -> Iterator[Peers]:
    peers = Peers()
    yield peers
    peers.close()


class ReceiveTests:
    """What the peer has sent."""

    def test_messages(self, peers: Peers) -> None:
        """Messages keep their borders and their order."""
        for data in (b"one", b"two", b"x" * LONGEST):
            send(peers.theirs, data)
        peers.socket.doRead()
        assert peers.received == [(b"one", 0), (b"two", 0), (b"x" * LONGEST, 0)]

    def test_descriptors(self, peers: Peers) -> None:
        """Descriptors come with their message, are duplicates, and child processes do not inherit them."""
        reading, writing = os.pipe()
        send(peers.theirs, b"one", [writing])
        send(peers.theirs, b"two")
        os.close(writing)
        peers.socket.doRead()
        assert peers.received == [(b"one", 1), (b"two", 0)]
        (descriptor,) = peers.descriptors
        assert not os.get_inheritable(descriptor)
        os.write(descriptor, b"hello")
        assert os.read(reading, 10) == b"hello"
        os.close(reading)

    def test_no_more_open_files(self, peers: Peers) -> None:
        """If there is room for some of the descriptors of a message only, it has none, and none is left open."""
        before = os.listdir("/proc/self/fd")
        send(peers.theirs, b"one", [peers.theirs.fileno()] * 3)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The lowest number that is free, so that there is room for one or two.
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
        try:
            peers.socket.doRead()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert peers.received == [(b"one", 0)]
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_many(self, peers: Peers) -> None:
        """Other events are handled after some messages; the rest is read in the next turn."""
        peers.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(MESSAGES + 1):
            send(peers.theirs, b"x")
        peers.socket.doRead()
        assert len(peers.received) == MESSAGES
        peers.socket.doRead()
        assert len(peers.received) == MESSAGES + 1

    def test_closed_meanwhile(self, peers: Peers) -> None:
        """What is handled may close the socket: nothing is read after that."""
        send(peers.theirs, b"one")
        send(peers.theirs, b"two")
        peers.socket._received = lambda *_: peers.socket.close()
        peers.socket.doRead()
        assert (peers.lost, peers.socket.fileno()) == (0, -1)


class LostTests:
    """A peer that is gone."""

    def test_end(self, peers: Peers) -> None:
        """What it has sent before is received, and its end is noticed once."""
        send(peers.theirs, b"one")
        peers.theirs.close()
        peers.socket.doRead()
        assert (peers.received, peers.lost) == ([(b"one", 0)], 1)
        assert peers.reactor.readers == set()
        peers.socket.doRead()
        peers.socket.connectionLost(Failure(ConnectionDone()))
        assert peers.lost == 1

    def test_unread(self, peers: Peers) -> None:
        """A peer that is gone without having read what it was sent, which is an error of recvmsg, is lost as well."""
        peers.socket.send(b"one")
        peers.theirs.close()
        peers.socket.doRead()
        assert (peers.received, peers.lost) == ([], 1)

    def test_empty(self, peers: Peers) -> None:
        """An empty message is an end; descriptors that come with it are closed."""
        before = len(os.listdir("/proc/self/fd"))
        with socket.socketpair()[0] as extra:
            send(peers.theirs, b"", [extra.fileno()])
        peers.socket.doRead()
        assert peers.lost == 1
        assert len(os.listdir("/proc/self/fd")) == before - 1

    def test_of_the_reactor(self, peers: Peers) -> None:
        """The reactor may notice it as well."""
        peers.socket.connectionLost(Failure(ConnectionDone()))
        assert (peers.lost, peers.socket.fileno()) == (1, -1)

    def test_closed_here(self, peers: Peers) -> None:
        """Closing it, twice even, is no loss, and the peer notices."""
        peers.socket.close()
        peers.socket.close()
        assert peers.lost == 0
        assert receive(peers.theirs) == (b"", [])
        assert not peers.socket.send(b"one")
        assert peers.socket.logPrefix() == "messages"


class SendTests:
    """What is sent to the peer."""

    def test_with_a_descriptor(self, peers: Peers) -> None:
        """The peer has the message and a duplicate of the descriptor."""
        with socket.socketpair()[0] as extra:
            assert peers.socket.send(b"one", [extra.fileno()])
            data, (descriptor,) = receive(peers.theirs)
            assert data == b"one"
            assert os.fstat(descriptor).st_ino == os.fstat(extra.fileno()).st_ino
            os.close(descriptor)

    def test_a_peer_that_does_not_read(self, peers: Peers) -> None:
        """Sending never waits: it says that there is no room, until the peer has read."""
        while peers.socket.send(b"x" * 1000):
            pass
        assert peers.lost == 0
        for _ in range(5):
            receive(peers.theirs)
        assert peers.socket.send(b"x")

    def test_a_peer_that_is_gone(self, peers: Peers) -> None:
        """Sending to a peer that is gone is no error."""
        peers.theirs.close()
        assert not peers.socket.send(b"x")
