"""Reading and sending past a transport: into a given buffer, from it, and from socket to socket by splice(2)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from socket import SO_RCVLOWAT, SOL_SOCKET, socket
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection

# Reading past a transport, from a plain socket into memory that is somebody's already.
#
# A transport reads into bytes of its own, which for large bodies costs as much as the socket. So for as long as one
# lasts, what the reactor calls when the socket is ready is a function from here, which has the same meaning; then it
# is the transport's own again. Sending has the same in `outgoing`.


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


# Reading past a transport: the consumer takes a body from S3's socket itself, where both ends are plain sockets.
#
# For as long as it can, what the reactor calls when the socket is ready is a function from here; what the consumer
# cannot take so, the transport reads, as ever. And the socket is ready when there is something worth it: a fast S3
# would else be asked for a little of its body at a time. https://man7.org/linux/man-pages/man7/socket.7.html,
# SO_RCVLOWAT

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

    def reset_low_watermark(self) -> bool:
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


# A pipe through which the kernel moves bytes from one socket to another, without showing them to us.
#
# Reading them and writing them again would copy each byte twice, which is most of what a large GET costs. splice(2)
# hands over the pages instead. https://man7.org/linux/man-pages/man2/splice.2.html

#: Bytes that a pipe holds, if the system allows as many.
SIZE = 1 << 20

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class SplicePipe:
    """Takes from one socket, and sends to another. True while there is something in it."""

    def __init__(self) -> None:
        """Raises OSError where there are no file descriptors left."""
        self._out, self._in = os.pipe()
        self._held = 0
        with suppress(OSError):  # then it is smaller
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, SIZE)

    def __bool__(self) -> bool:
        return self._held > 0

    def take(self, source: socket, count: int) -> int:
        """Take up to `count` bytes; returns how many, 0 at the end of the stream. Raises OSError, as `recv` does."""
        taken = os.splice(source.fileno(), self._in, min(count, SIZE), flags=_FLAGS)
        self._held += taken
        return taken

    def send(self, sink: socket) -> None:
        """Send what it takes of them. Raises OSError, as `socket.send` does."""
        self._held -= os.splice(self._out, sink.fileno(), self._held, flags=_FLAGS)

    def close(self) -> None:
        """Drop what is in it."""
        os.close(self._in)
        os.close(self._out)
