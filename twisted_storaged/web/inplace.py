"""Reading past a transport, from a plain socket into memory that is somebody's already.

A transport reads into bytes of its own, which for large bodies costs as much as the socket. So for as long as one
lasts, what the reactor calls when the socket is ready is a function from here, which has the same meaning; then it is
the transport's own again. Sending has the same in `outgoing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST


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
