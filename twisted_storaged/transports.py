"""How bytes are sent: what is written in one round of the reactor leaves at its end, past the reactor's own queue."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from socket import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.tcp import Connection

#: Bytes up to which one piece, copied together, costs less than telling the system of several.
JOIN_BELOW = 1 << 14


def send(transport: Any, pieces: Sequence[bytes | bytearray]) -> None:
    """Write a few pieces, and send now what the socket takes, instead of in the reactor's next round.

    That round, with the two calls of the system that ask for it, would cost as much as the sending. What the socket
    does not take is the transport's to send, as ever; so is to notice that the peer is gone.
    """
    sent = 0
    if isinstance(transport, Connection) and is_idle(transport):
        with suppress(OSError):
            sent = _send_now(transport.getHandle(), pieces)
    if sent < sum(map(len, pieces)):
        transport.write(b"".join(pieces)[sent:])


def _send_now(handle: socket, pieces: Sequence[bytes | bytearray]) -> int:
    if sum(map(len, pieces)) > JOIN_BELOW:
        return handle.sendmsg(pieces)
    return handle.send(b"".join(pieces))


def is_idle(transport: Any) -> bool:
    """Whether a plain connection is open, and has nothing left to send."""
    return transport.connected and not (transport.TLS or transport.disconnecting or has_unsent(transport))


def has_unsent(transport: Any) -> bool:
    """Whether some of what was written has not left yet."""
    plain = getattr(transport, "transport", transport)  # beneath TLS
    # `write` leaves bytes in the one, from where they go to the other.
    return bool(getattr(plain, "dataBuffer", b"") or getattr(plain, "_tempDataBuffer", []))


class Sender(Protocol):
    """What collects bytes until it is told to send them."""

    def push(self) -> None:
        """Send what was collected."""


class Outbox:
    """Who has something to send when the round is over.

    Sending to a peer on this host that sleeps wakes it, which costs more than the sending. A peer that is sent to at
    once after another is awake already: so all are, one after the other.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._senders: list[Sender] = []

    def add(self, sender: Sender) -> None:
        """Let `sender` push at the end of this round."""
        self._senders.append(sender)
        if len(self._senders) == 1:
            self._clock.callLater(0, self._push)

    def _push(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            sender.push()
