"""Reading and sending past a transport: into a given buffer, from it, and from socket to socket by splice(2)."""

from __future__ import annotations

import fcntl
import os
import termios
from collections.abc import Callable
from contextlib import suppress
from socket import SO_RCVLOWAT, SOL_SOCKET, socket
from typing import Any, ClassVar

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection

#: Takes up to so many bytes from a socket; returns how many, 0 at the end of the stream, or None if it cannot now.
TakeFrom = Callable[[socket, int], int | None]

#: Bytes that must have arrived before a spliced socket counts as readable, if as many are expected. With more, sender
#: and receiver would take turns instead of working at the same time.
LOW_WATERMARK = 64 << 10


def has_unread(transport: Any) -> bool:
    """Whether the socket of a connection, over TLS or not, has bytes that were not read yet. See tcp(7), SIOCINQ."""
    plain = getattr(transport, "transport", transport)
    # The end of the stream is no byte.
    return isinstance(plain, Connection) and any(fcntl.ioctl(plain.getHandle(), termios.FIONREAD, bytes(4)))


class Takeover:
    """Handles the readiness of a transport's socket in place of the transport's own `doRead` or `doWrite`.

    A transport copies: it reads into bytes of its own, and it copies what the socket did not accept again with each
    try. For large bodies that costs as much as the socket. So for the time of one body the reactor calls `_ready`
    instead, which has the same contract; after `stop`, the transport's own method is in charge again.
    """

    #: What is replaced: doRead or doWrite.
    method: ClassVar[str]

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def attempt(self, handle: socket) -> int | None:
        """Make one call on the socket. Raises OSError, as the call does."""
        raise NotImplementedError

    def attempted(self, result: int | None) -> Exception | None:
        """Handle what `attempt` returned; returns the reason where the connection has ended."""
        raise NotImplementedError

    def start(self) -> None:
        """Handle readiness from now on."""
        # On the instance: the reactor looks the method up for each event.
        self._transport.__dict__[self.method] = self._ready

    def stop(self) -> None:
        """Leave it to the transport again. May be called at any time."""
        self._transport.__dict__.pop(self.method, None)

    def _ready(self) -> Exception | None:
        try:
            result = self.attempt(self._transport.getHandle())
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        return self.attempted(result)


class InPlaceReader(Takeover):
    """Reads from a plain socket into the memory that `place` returns (None: stop), and reports counts to `filled`.

    `place` must not raise OSError, which would be taken for a lost connection.
    """

    method = "doRead"

    def __init__(self, transport: Any, place: Callable[[], memoryview | None], filled: Callable[[int], None]) -> None:
        super().__init__(transport)
        self._place = place
        self._filled = filled

    def attempt(self, handle: socket) -> int | None:
        place = self._place()
        return None if place is None else handle.recv_into(place)

    def attempted(self, result: int | None) -> Exception | None:
        if result is None:
            self.stop()
        elif not result:
            # `place` is never empty, so that 0 bytes are the end of the stream.
            return CONNECTION_DONE
        else:
            self._filled(result)
        return None


class SpliceReader(Takeover):
    """Lets `take_from` take up to `left()` bytes from a plain socket, and reports each count to `taken`.

    What `take_from` cannot take, the transport reads as usual. The socket counts as readable once LOW_WATERMARK bytes
    have arrived: a fast sender would otherwise be asked for little at a time. See SO_RCVLOWAT in socket(7).
    """

    method = "doRead"

    def __init__(
        self, transport: Any, take_from: TakeFrom, left: Callable[[], int], taken: Callable[[int], None]
    ) -> None:
        super().__init__(transport)
        self._take_from = take_from
        self._left = left
        self._taken = taken
        self._watermark = 1
        self._may_wait = True

    def start(self) -> None:
        """Begin, if the transport is plain."""
        if isinstance(self._transport, Connection) and not self._transport.TLS:
            self._set_watermark()
            super().start()

    def stop(self) -> None:
        """Leave reading to the transport again, for good: the socket counts as readable with any byte from now on."""
        super().stop()
        self._may_wait = False
        self._set_watermark()

    def reset_low_watermark(self) -> bool:
        """Let any byte make the socket readable from now on; returns whether more were required until now."""
        required, self._may_wait = self._watermark > 1, False
        self._set_watermark()
        return required

    def _set_watermark(self) -> None:
        # A socket that requires more bytes than are still to come would never be readable.
        count = LOW_WATERMARK if self._may_wait and self._left() > LOW_WATERMARK else 1
        if count != self._watermark and self._transport.connected:
            self._watermark = count
            self._transport.getHandle().setsockopt(SOL_SOCKET, SO_RCVLOWAT, count)

    def attempt(self, handle: socket) -> int | None:
        return self._take_from(handle, self._left())

    def attempted(self, result: int | None) -> Exception | None:
        ended: Exception | None = None
        if result is None:
            # Of the class, as the instance's own is `_ready`.
            ended = type(self._transport).doRead(self._transport)
        elif not result:
            return CONNECTION_DONE
        else:
            self._taken(result)
        self._set_watermark()
        return ended


#: Bytes that a pipe holds, if the system allows as many.
SIZE = 1 << 20

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class SplicePipe:
    """A pipe through which the kernel moves bytes from one socket to another. True while there is something in it.

    Reading the bytes and writing them again would copy each twice, which is most of what a large GET costs. splice(2)
    moves the pages instead: https://man7.org/linux/man-pages/man2/splice.2.html
    """

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
