"""What our HTTP channel needs of the internals of `twisted.web.http.HTTPChannel`, under names that are not private.

`private_names` lists them. `twisted.web` is not imported: this floor knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Any


class ChannelInternals:
    """A mixin for a subclass of HTTPChannel that gives its private names plain ones."""

    @property
    def transport_is_full(self: Any) -> bool:
        """Whether the transport has paused the channel, as it has enough to send."""
        return bool(self._waitingForTransport)

    @property
    def is_handling_request(self: Any) -> bool:
        """Whether a request is complete and its response is not."""
        return bool(self._handlingRequest)

    @property
    def has_unparsed(self: Any) -> bool:
        """Whether bytes have been received that are not parsed yet."""
        return bool(self._buffer)

    @property
    def has_postponed(self: Any) -> bool:
        """Whether bytes have been received that are to be parsed after the request that is being handled."""
        return bool(self._dataBuffer)

    @property
    def eager_read_size(self: Any) -> int:
        """How many bytes of later requests are read while one is handled."""
        return int(self._optimisticEagerReadSize)

    @property
    def received_head_size(self: Any) -> int:
        """How many bytes of the head of the present request have been received."""
        return int(self._receivedHeaderSize)

    @property
    def received_fields(self: Any) -> int:
        """How many header fields of the present request have been received."""
        return int(self._receivedHeaderCount)

    @property
    def request_line(self: Any) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the present request."""
        return self._command, self._path, self._version

    @request_line.setter
    def request_line(self: Any, line: tuple[bytes, bytes, bytes]) -> None:
        self._command, self._path, self._version = line

    @property
    def has_producer(self: Any) -> bool:
        """Whether the body of the response has a producer, which can be paused."""
        return self._requestProducer is not None

    def _respondToBadRequestAndDisconnect(self: Any) -> None:
        self.malformed_request_received()
