"""A socket between two processes that carries messages, and descriptors with them."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

#: Bytes of the longest message, and descriptors that one may have.
LONGEST = 64 << 10
MOST_DESCRIPTORS = 64
#: Messages that are handled before other events are.
MESSAGES = 32


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep the borders of messages. See unix(7), SOCK_SEQPACKET."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sending: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a message. The descriptors are duplicated. Raises OSError."""
    socket.send_fds(sending, [data], list(descriptors))


def receive(receiving: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a message and its descriptors; an empty one is the end. Raises OSError.

    If no more files can be open, it has no descriptors.
    """
    # Not recv_fds of Python 3.11, which ignores its flags.
    descriptors = array("i")
    room = socket.CMSG_LEN(MOST_DESCRIPTORS * descriptors.itemsize)
    data, ancillary, flags, _ = receiving.recvmsg(LONGEST, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, numbers in ancillary:
        descriptors.frombytes(numbers[: len(numbers) - len(numbers) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC:
        # The kernel has dropped those beyond the limit. The others are not all that the message is about.
        for descriptor in descriptors:
            os.close(descriptor)
        return data, []
    return data, descriptors.tolist()


@implementer(IReadDescriptor)
class MessageSocket:
    """Our end of such a socket, on the reactor. Sending never waits."""

    def __init__(
        self,
        connected: socket.socket,
        received: Callable[[bytes, list[int]], None],
        lost: Callable[[], None],
        reactor: Any,
    ) -> None:
        """Pass each message to `received`, which owns its descriptors; `lost` is called once when the peer is gone."""
        connected.setblocking(False)
        self._socket = connected
        self._received = received
        self._lost = lost
        self._reactor = reactor
        self._open = True

    def start(self) -> None:
        """Begin to receive."""
        self._reactor.addReader(self)

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send a message, if the peer has room for it now; returns whether it was sent."""
        if not self._open:
            return False
        try:
            send(self._socket, data, descriptors)
        except OSError:
            # Full, or the peer is gone, which `doRead` notices. Others are as passing: see unix(7), ETOOMANYREFS
            return False
        return True

    def doRead(self) -> None:
        """Receive the messages that are there."""
        for _ in range(MESSAGES):
            if not self._open:
                return
            try:
                data, descriptors = receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                # ECONNRESET: the peer is gone, and has not read all of ours.
                data, descriptors = b"", []
            if not data:
                for descriptor in descriptors:
                    os.close(descriptor)
                self.close()
                self._lost()
                return
            self._received(data, descriptors)

    def close(self) -> None:
        """Close the socket. `lost` is not called."""
        if self._open:
            self._open = False
            self._reactor.removeReader(self)
            self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 after it was closed."""
        return self._socket.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """Note that the peer is gone, and that nothing of its is left to be received."""
        if self._open:
            self.close()
            self._lost()

    def logPrefix(self) -> str:
        """Return the name for Twisted's log."""
        return "messages"
