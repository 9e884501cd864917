"""What a connection writes: small pieces are collected for the round's end, large ones are sent from where they are.

A transport copies what its socket does not take at once, again with each try. For large bodies that costs as much as
the socket. So until the last byte of one has left, what the reactor calls when the socket is ready is a function from
here, which has the same meaning; then it is the transport's own again. Reading has the same in `inplace`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.main import CONNECTION_LOST

from twisted_storaged.transports import Outbox, is_idle, send

#: Collected pieces of more bytes than this, together, do not wait for the end of the round.
PUSH_FROM = 1 << 16


class Outgoing:
    """What goes out on one transport; `producer` is paused while a large piece is on its way."""

    def __init__(self, transport: Any, producer: IPushProducer, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._in_place = _InPlace(transport, producer)
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Send at the end of the reactor's round, in one piece with what else is written in it."""
        if not self._pieces:
            self._outbox.add(self)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > PUSH_FROM:
            self.push()

    def push(self) -> None:
        """Send what was written, now."""
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            send(self._transport, b"".join(pieces))

    def write_in_place(self, data: bytes) -> bool:
        """Send from where `data` is, after what was written, if a plain socket can do that now; says whether it can."""
        self.push()
        return self._in_place.send(data)


class _InPlace:
    """Sends bytes from where they are; `producer` is paused until the last of them has left."""

    def __init__(self, transport: Any, producer: IPushProducer) -> None:
        self._transport = transport
        self._producer = producer
        self._unsent = memoryview(b"")

    def send(self, data: bytes) -> bool:
        """Send, if nothing else has to be sent before; says whether it does."""
        if self._unsent:
            return False
        if not is_idle(self._transport):
            return False
        self._unsent = memoryview(data)
        self._send()
        if self._unsent:
            self._transport.doWrite = self._write
            self._transport.startWriting()
            self._producer.pauseProducing()
        return True

    def _send(self) -> None:
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self._transport.getHandle().send(self._unsent) :]

    def _write(self) -> Exception | None:
        try:
            self._send()
        except OSError:
            return CONNECTION_LOST
        if self._unsent:
            return None
        del self._transport.doWrite
        # It may have something to do meanwhile: what others wrote, or to close.
        ended: Exception | None = self._transport.doWrite()
        if ended is None:
            self._producer.resumeProducing()
        return ended
