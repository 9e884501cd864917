"""How bytes are sent: what is written in one round of the reactor leaves at its end, past the reactor's own queue."""

from __future__ import annotations

import fcntl
import sys
import termios
from collections.abc import Sequence
from socket import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.tcp import Connection
from twisted.logger import Logger

from twisted_storaged.rounds import Round

#: Bytes up to which one piece, copied together, costs less than telling the system of several.
JOIN_BELOW = 1 << 14


_log = Logger()


def send(transport: Any, pieces: Sequence[bytes | bytearray]) -> None:
    """Write a few pieces, and send now what the socket takes, instead of in the reactor's next round.

    That round, with the two calls of the system that ask for it, would cost as much as the sending. What the socket
    does not take is the transport's to send, as ever; so is to notice that the peer is gone.
    """
    size = sum(map(len, pieces))
    if size <= JOIN_BELOW:
        pieces = (b"".join(pieces),)
    sent = _send_now(transport.getHandle(), pieces) if isinstance(transport, Connection) and is_idle(transport) else 0
    if sent < size:
        transport.write(b"".join(pieces)[sent:])


def _send_now(handle: socket, pieces: Sequence[bytes | bytearray]) -> int:
    try:
        return handle.send(pieces[0]) if len(pieces) == 1 else handle.sendmsg(pieces)
    except OSError:  # full, or gone
        return 0


def is_idle(transport: Any) -> bool:
    """Whether a plain connection is open, and has nothing left to send."""
    return transport.connected and not (transport.TLS or transport.disconnecting or _unsent(transport))


def has_unsent(transport: Any) -> bool:
    """Whether some of what was written has not left yet, be it over TLS or not."""
    plain = getattr(transport, "transport", transport)
    return hasattr(plain, "dataBuffer") and bool(_unsent(plain))


def queued_bytes(transport: Any) -> int:
    """Bytes that were written and that the peer has not acknowledged: those that wait here, and in the kernel.

    See tcp(7), SIOCOUTQ. Of a transport without a socket, 0.
    """
    plain = getattr(transport, "transport", transport)
    if not isinstance(plain, Connection):
        return 0
    kept = len(plain.dataBuffer) - plain.offset + sum(map(len, plain._tempDataBuffer))
    handle = plain.getHandle()
    return kept + int.from_bytes(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _unsent(transport: Any) -> Any:
    # `write` leaves bytes in the one, from where they go to the other.
    return transport.dataBuffer or transport._tempDataBuffer


class Sender(Protocol):
    """What collects bytes until it is told to send them."""

    def push(self) -> None:
        """Send what was collected."""


class Outbox:
    """Who has something to send when a round is over, in which many may have come: see `rounds`.

    Sending to a peer on this host that sleeps wakes it, which costs more than the sending. A peer that is sent to at
    once after another is awake already: so all are, one after the other.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._senders: list[Sender] = []
        self._round = Round(clock, lambda: len(self._senders), self._push)

    def add(self, sender: Sender) -> None:
        """Let `sender` push at the end of this round."""
        self._senders.append(sender)
        if len(self._senders) == 1:
            self._round.begin()

    def _push(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            try:
                sender.push()
            except Exception:  # noqa: BLE001 (one defect must not keep the others' bytes for ever)
                _log.failure("a defect in sending")
