"""What a connection writes: small pieces are collected for the round's end, large ones are sent from where they are.

A transport copies what its socket does not take at once, again with each try. For large bodies that costs as much as
the socket. So until the last byte of one has left, what the reactor calls when the socket is ready is a function from
here, which has the same meaning; then it is the transport's own again. Reading has the same in `inplace`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from socket import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from twisted.internet.main import CONNECTION_LOST

from twisted_storaged.transports import Outbox, is_idle, send
from twisted_storaged.web.pipe import Pipe

#: So many collected pieces, or pieces of more bytes than this together, do not wait for the end of the round.
MANY = 16
PUSH_FROM = 1 << 16


class Outgoing:
    """What goes out on one transport; `producer` is paused while a large piece is on its way."""

    def __init__(self, transport: Any, producer: IPushProducer, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._in_place = _InPlace(transport, producer)
        self._pieces: list[bytes] = []
        self._size = 0
        self._pipe: Pipe | None = None

    def write(self, data: bytes) -> None:
        """Send at the end of the reactor's round, in one piece with what else is written in it."""
        if not self._pieces:
            self._outbox.add(self)
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
                self._pipe = Pipe()
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


class _InPlace:
    """Sends past the transport; `producer` is paused until the last byte has left."""

    def __init__(self, transport: Any, producer: IPushProducer) -> None:
        self._transport = transport
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
            self._transport.doWrite = self._write
            self._transport.startWriting()
            self._producer.pauseProducing()

    def drop(self) -> None:
        """Send no more of it."""
        if self._unsent is not None:
            self._unsent = None
            del self._transport.doWrite

    def _write(self) -> Exception | None:
        assert self._unsent is not None
        try:
            self._unsent.send(self._transport.getHandle())
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if self._unsent:
            return None
        self.drop()
        # It may have something to do meanwhile: what others wrote, or to close.
        ended: Exception | None = self._transport.doWrite()
        if ended is None:
            self._producer.resumeProducing()
        return ended
