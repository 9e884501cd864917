"""A pipe through which the kernel moves bytes from one socket to another, without showing them to us.

Reading them and writing them again would copy each byte twice, which is most of what a large GET costs. splice(2)
hands over the pages instead. https://man7.org/linux/man-pages/man2/splice.2.html
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from socket import socket

#: Bytes that a pipe holds, if the system allows as many.
SIZE = 1 << 20

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
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
