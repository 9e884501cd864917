"""Writes of a connection: small ones are coalesced and flushed together, large ones are sent from where they are."""

from __future__ import annotations

import fcntl
import sys
import termios
from collections.abc import Iterable, Sequence
from contextlib import suppress
from socket import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.tcp import Connection
from twisted.logger import Logger

from twisted_storaged.runtime.batching import Coalescer
from twisted_storaged.runtime.buffers import Buffer
from twisted_storaged.runtime.direct_io import SplicePipe, Takeover

# How bytes are sent: what is written in one round of the reactor leaves at its end, past the reactor's own queue.

#: Bytes up to which one piece, copied together, costs less than telling the system of several.
JOIN_BELOW = 1 << 14


_log = Logger()


def send(transport: Any, pieces: Sequence[Buffer]) -> None:
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


def _send_now(handle: socket, pieces: Sequence[Buffer]) -> int:
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


class Flushable(Protocol):
    """What collects bytes until it is told to send them."""

    def push(self) -> None:
        """Send what was collected."""


class FlushQueue:
    """Who has something to send when a round is over, in which many may have come: see `rounds`.

    Sending to a peer on this host that sleeps wakes it, which costs more than the sending. A peer that is sent to at
    once after another is awake already: so all are, one after the other.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._senders: list[Flushable] = []
        self._round = Coalescer(clock, lambda: len(self._senders), self._push)

    def add(self, sender: Flushable) -> None:
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


# What a connection writes: small pieces are collected for the round's end, large ones are sent from where they are.
#
# A transport copies what its socket does not take at once, again with each try. For large bodies that costs as much
# as the socket. So until the last byte of one has left, what the reactor calls when the socket is ready is a function
# from here, which has the same meaning; then it is the transport's own again. Reading has the same in `inplace`.

#: So many collected pieces, or pieces of more bytes than this together, do not wait for the end of the round.
MANY = 16
PUSH_FROM = 1 << 16


class WriteBuffer:
    """What goes out on one transport; `producer` is paused while a large piece is on its way."""

    def __init__(self, transport: Any, producer: IPushProducer, flush_queue: FlushQueue) -> None:
        self._transport = transport
        self._flush_queue = flush_queue
        self._in_place = _InPlace(transport, producer)
        self._pieces: list[bytes] = []
        self._size = 0
        self._pipe: SplicePipe | None = None

    def write(self, data: bytes) -> None:
        """Send at the end of the reactor's round, in one piece with what else is written in it."""
        if not self._pieces:
            self._flush_queue.add(self)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > PUSH_FROM or len(self._pieces) == MANY:
            self.push()

    def push(self) -> None:
        """Send what was written, now."""
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            if self._in_place.busy:
                # The transport knows nothing of that, and sends this after it.
                self._transport.write(b"".join(pieces))
            else:
                send(self._transport, pieces)

    def write_in_place(self, data: bytes) -> bool:
        """Send from where `data` is, after what was written, if a plain socket can do that now; says whether it can.

        The producer is paused until the last byte has left, and then nothing of `data` is kept.
        """
        if not self._in_place.ready:
            self.push()
            return False
        pieces, self._pieces, self._size = self._pieces, [], 0
        self._in_place.send(_Memory([*pieces, data]))
        return True

    def take_from(self, source: socket, count: int) -> int | None:
        """Send up to `count` bytes that are taken from `source`, if a plain socket can do that now.

        Returns how many were taken, 0 at the end of the stream; None if it cannot. Raises OSError, as `recv` does.
        """
        self.push()
        if not self._in_place.ready:
            return None
        if self._pipe is None:
            try:
                self._pipe = SplicePipe()
            except OSError:  # no more files
                return None
        taken = self._pipe.take(source, count)
        if taken:
            self._in_place.send(self._pipe)
        return taken

    def close(self) -> None:
        """Let go of what an answer needed, unless some of it is still to be sent: then the next call does."""
        if self._in_place.busy:
            return
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def drop(self) -> None:
        """The connection is lost: let go of what has not been sent, too."""
        self._pieces, self._size = [], 0
        self._in_place.drop()
        self.close()


class _Unsent(Protocol):
    """What is sent piece by piece. True until all of it has been."""

    def __bool__(self) -> bool: ...
    def send(self, sink: socket) -> None:
        """Send what `sink` takes. Raises OSError, as `socket.send` does."""


class _Memory:
    """Bytes that are sent from where they are, and let go of when they have been."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._left = [memoryview(piece) for piece in pieces if piece]

    def __bool__(self) -> bool:
        return bool(self._left)

    def send(self, sink: socket) -> None:
        if not self._left:
            return
        sent = sink.send(self._left[0]) if len(self._left) == 1 else sink.sendmsg(self._left)
        while self._left and sent >= len(self._left[0]):
            sent -= len(self._left.pop(0))
        if sent:
            self._left[0] = self._left[0][sent:]


class _InPlace(Takeover):
    """Sends past the transport; `producer` is paused until the last byte has left."""

    method = "doWrite"

    def __init__(self, transport: Any, producer: IPushProducer) -> None:
        super().__init__(transport)
        self._producer = producer
        self._unsent: _Unsent | None = None

    @property
    def busy(self) -> bool:
        """Whether something is on its way."""
        return self._unsent is not None

    @property
    def ready(self) -> bool:
        """Whether nothing else has to be sent before."""
        return not self.busy and is_idle(self._transport)

    def send(self, unsent: _Unsent) -> None:
        """Send; to be called when it is ready."""
        with suppress(OSError):  # that the peer is gone is noticed below, as ever
            unsent.send(self._transport.getHandle())
        if unsent:
            self._unsent = unsent
            self.start()
            self._transport.startWriting()
            self._producer.pauseProducing()

    def drop(self) -> None:
        """Send no more of it."""
        if self._unsent is not None:
            self._unsent = None
            self.stop()

    def attempt(self, handle: socket) -> None:
        assert self._unsent is not None
        self._unsent.send(handle)

    def attempted(self, result: int | None) -> Exception | None:
        if self._unsent:
            return None
        self.drop()
        # It may have something to do meanwhile: what others wrote, or to close.
        ended: Exception | None = self._transport.doWrite()
        if ended is None:
            self._producer.resumeProducing()
        return ended
