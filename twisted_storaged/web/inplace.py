"""Reading and sending past a transport, between a plain socket and memory that is somebody's already.

A transport reads into bytes of its own, and copies what its socket does not take at once, again with each try. For
large bodies that costs as much as the socket. So for as long as one lasts, what the reactor calls when the socket is
ready is a function from here, which has the same meaning; then it is the transport's own again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from twisted_storaged.transports import flush


class InPlaceReader:
    """Reads into the memory that `place` gives (None: no more), and tells `filled` how many bytes came."""

    def __init__(self, transport: Any, place: Callable[[], memoryview | None], filled: Callable[[int], None]) -> None:
        self._transport = transport
        self._place = place
        self._filled = filled

    def start(self) -> None:
        """Take the place of the transport's own reading."""
        self._transport.doRead = self._read

    def stop(self) -> None:
        """Give it back."""
        self._transport.__dict__.pop("doRead", None)

    def _read(self) -> Exception | None:
        place = self._place()
        if place is None:
            self.stop()
            return None
        try:
            count = self._transport.getHandle().recv_into(place)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not count:
            return CONNECTION_DONE
        self._filled(count)
        return None


class InPlaceSender:
    """Sends bytes from where they are; `producer` is paused until the last of them has left."""

    def __init__(self, transport: Any, producer: IPushProducer) -> None:
        self._transport = transport
        self._producer = producer
        self._unsent = memoryview(b"")

    def send(self, data: bytes) -> bool:
        """Send, if nothing else has to be sent before; says whether it does."""
        if self._unsent:
            return False
        flush(self._transport)
        if self._transport.dataBuffer:
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
