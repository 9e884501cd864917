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

#: Bytes up to which joining pieces costs less than `sendmsg` with several.
JOIN_BELOW = 1 << 14

_log = Logger()


def send(transport: Any, pieces: Sequence[Buffer]) -> None:
    """Send pieces at once, as far as the socket accepts them; the transport sends the rest.

    A transport would send in the next iteration of the reactor. That, with two calls of epoll_ctl, costs as much as
    sending.
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
    except OSError:  # full or closed: the transport notices which
        return 0


def is_idle(transport: Any) -> bool:
    """Whether a plain connection is open and has nothing unsent."""
    return transport.connected and not (transport.TLS or transport.disconnecting or _unsent(transport))


def has_unsent(transport: Any) -> bool:
    """Whether a connection, over TLS or not, has bytes that are not sent yet."""
    plain = getattr(transport, "transport", transport)
    return hasattr(plain, "dataBuffer") and bool(_unsent(plain))


def queued_bytes(transport: Any) -> int:
    """Return how many written bytes the peer has not acknowledged: those in the transport, and in the kernel.

    See tcp(7), SIOCOUTQ. It is 0 for a transport without a socket.
    """
    plain = getattr(transport, "transport", transport)
    if not isinstance(plain, Connection):
        return 0
    kept = len(plain.dataBuffer) - plain.offset + sum(map(len, plain._tempDataBuffer))
    handle = plain.getHandle()
    return kept + int.from_bytes(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _unsent(transport: Any) -> Any:
    # `write` appends to the latter; they are joined to the former when sending begins.
    return transport.dataBuffer or transport._tempDataBuffer


class Flushable(Protocol):
    """Something that collects bytes until they are to be sent."""

    def push(self) -> None:
        """Send the collected bytes."""


class FlushQueue:
    """The connections with unflushed writes. They are flushed together, by a Coalescer.

    Sending to a client on this host wakes it, which costs more than the sending. Clients that are sent to one right
    after the other are awake already when their bytes arrive.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._senders: list[Flushable] = []
        self._round = Coalescer(clock, lambda: len(self._senders), self._push)

    def add(self, sender: Flushable) -> None:
        """Flush `sender` with the others."""
        self._senders.append(sender)
        if len(self._senders) == 1:
            self._round.begin()

    def _push(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            try:
                sender.push()
            except Exception:  # noqa: BLE001 (an error of one connection must not keep the bytes of the others)
                _log.failure("unexpected error while sending")


#: As many collected pieces, or more bytes than this, are sent without waiting for other connections.
MANY = 16
PUSH_FROM = 1 << 16


class WriteBuffer:
    """The outgoing bytes of one transport. Small writes are collected; large ones are sent from where they are.

    A transport copies what its socket does not accept, again with each attempt: for large bodies, this costs as much as
    the socket. So a large write takes over the transport's `doWrite` until its last byte is sent, and `producer` is
    paused meanwhile.
    """

    def __init__(self, transport: Any, producer: IPushProducer, flush_queue: FlushQueue) -> None:
        self._transport = transport
        self._flush_queue = flush_queue
        self._in_place = _InPlace(transport, producer)
        self._pieces: list[bytes] = []
        self._size = 0
        self._pipe: SplicePipe | None = None

    def write(self, data: bytes) -> None:
        """Collect `data`, to be sent together with what is written soon after it."""
        if not self._pieces:
            self._flush_queue.add(self)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > PUSH_FROM or len(self._pieces) == MANY:
            self.push()

    def push(self) -> None:
        """Send the collected bytes now."""
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            if self._in_place.busy:
                # The transport sends this after the large write, which it does not know of.
                self._transport.write(b"".join(pieces))
            else:
                send(self._transport, pieces)

    def write_in_place(self, data: bytes) -> bool:
        """Send `data` without a copy, after what was collected; returns whether the transport can do that now.

        The producer is paused until the last byte is sent; then no reference to `data` is kept.
        """
        if not self._in_place.ready:
            self.push()
            return False
        pieces, self._pieces, self._size = self._pieces, [], 0
        # The head of the response, which was collected, leaves with `data` in one `sendmsg`.
        self._in_place.send(_Memory([*pieces, data]))
        return True

    def take_from(self, source: socket, count: int) -> int | None:
        """Move up to `count` bytes from the socket `source`, by splice(2).

        Returns how many were moved, 0 at the end of the stream, or None if the transport cannot do that now. Raises
        OSError, as `recv` does.
        """
        # What was collected comes first. If it does not leave at once, these bytes cannot go past the transport.
        self.push()
        if not self._in_place.ready:
            return None
        if self._pipe is None:
            try:
                self._pipe = SplicePipe()
            except OSError:  # no file descriptors left
                return None
        taken = self._pipe.take(source, count)
        if taken:
            self._in_place.send(self._pipe)
        return taken

    def close(self) -> None:
        """Release what a response needed; if some of it is unsent, the next call does."""
        # A pipe that is closed loses the bytes in it.
        if self._in_place.busy:
            return
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def drop(self) -> None:
        """Discard what is unsent, after the connection was lost."""
        self._pieces, self._size = [], 0
        self._in_place.drop()
        self.close()


class _Unsent(Protocol):
    """Bytes that are sent in several attempts. True until all are sent."""

    def __bool__(self) -> bool: ...
    def send(self, sink: socket) -> None:
        """Send what `sink` accepts. Raises OSError, as `socket.send` does."""


class _Memory:
    """Bytes in memory that are sent without a copy. Each piece is released when it is sent."""

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
    """Sends past the transport; `producer` is paused until the last byte is sent."""

    method = "doWrite"

    def __init__(self, transport: Any, producer: IPushProducer) -> None:
        super().__init__(transport)
        self._producer = producer
        self._unsent: _Unsent | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being sent."""
        return self._unsent is not None

    @property
    def ready(self) -> bool:
        """Whether something can be sent now, as nothing is to be sent before it."""
        return not self.busy and is_idle(self._transport)

    def send(self, unsent: _Unsent) -> None:
        """Send; to be called when it is `ready`."""
        with suppress(OSError):  # a closed connection is noticed by the next attempt
            unsent.send(self._transport.getHandle())
        if unsent:
            self._unsent = unsent
            self.start()
            self._transport.startWriting()
            self._producer.pauseProducing()

    def drop(self) -> None:
        """Stop sending, and release the rest."""
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
        # It may have bytes that were written meanwhile, or is to close the connection.
        ended: Exception | None = self._transport.doWrite()
        if ended is None:
            self._producer.resumeProducing()
        return ended
