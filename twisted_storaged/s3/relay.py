"""Reading past a transport: the consumer takes a body from S3's socket itself, where both ends are plain sockets.

For as long as it can, what the reactor calls when the socket is ready is a function from here; what the consumer
cannot take so, the transport reads, as ever. And the socket is ready when there is something worth it: a fast S3 would
else be asked for a little of its body at a time. https://man7.org/linux/man-pages/man7/socket.7.html, SO_RCVLOWAT
"""

from __future__ import annotations

from collections.abc import Callable
from socket import SO_RCVLOWAT, SOL_SOCKET, socket
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection

#: Bytes that are worth it, where as many are to come.
AT_LEAST = 64 << 10

#: Takes up to so many bytes from a socket; returns how many, 0 at the end of the stream, or None if it cannot now.
TakeFrom = Callable[[socket, int], int | None]


class Relay:
    """Lets `take_from` have what comes, up to `left()` bytes, and tells `taken` how many went."""

    def __init__(
        self, transport: Any, take_from: TakeFrom, left: Callable[[], int], taken: Callable[[int], None]
    ) -> None:
        self._transport = transport
        self._take_from = take_from
        self._left = left
        self._taken = taken
        self._at_least = 1
        self._patient = True

    def start(self) -> None:
        """Take the place of the transport's own reading, if it is plain."""
        if isinstance(self._transport, Connection) and not self._transport.TLS:
            self._expect()
            self._transport.doRead = self._read  # type: ignore[assignment,method-assign]

    def stop(self) -> None:
        """Give it back."""
        self._transport.__dict__.pop("doRead", None)
        self._hear_of(1)

    def hurry(self) -> bool:
        """Hear of every byte from now on; returns whether that is something new."""
        waited, self._patient = self._at_least > 1, False
        self._expect()
        return waited

    def _expect(self) -> None:
        self._hear_of(AT_LEAST if self._patient and self._left() > AT_LEAST else 1)

    def _hear_of(self, count: int) -> None:
        if count != self._at_least and self._transport.connected:
            self._at_least = count
            self._transport.getHandle().setsockopt(SOL_SOCKET, SO_RCVLOWAT, count)

    def _read(self) -> Exception | None:
        try:
            count = self._take_from(self._transport.getHandle(), self._left())
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if count is None:
            ended: Exception | None = type(self._transport).doRead(self._transport)
            self._expect()
            return ended
        if not count:
            return CONNECTION_DONE
        self._taken(count)
        self._expect()
        return None
