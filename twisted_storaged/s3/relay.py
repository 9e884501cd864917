"""Reading past a transport: the consumer takes a body from S3's socket itself, where both ends are plain sockets.

For as long as it can, what the reactor calls when the socket is ready is a function from here; what the consumer
cannot take so, the transport reads, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection

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

    def start(self) -> None:
        """Take the place of the transport's own reading, if it is plain."""
        if isinstance(self._transport, Connection) and not self._transport.TLS:
            self._transport.doRead = self._read  # type: ignore[assignment,method-assign]

    def stop(self) -> None:
        """Give it back."""
        self._transport.__dict__.pop("doRead", None)

    def _read(self) -> Exception | None:
        try:
            count = self._take_from(self._transport.getHandle(), self._left())
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if count is None:
            ended: Exception | None = type(self._transport).doRead(self._transport)
            return ended
        if not count:
            return CONNECTION_DONE
        self._taken(count)
        return None
