"""Names to buckets: which there are, and all of them at once."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred, gatherResults

from twisted_storaged.buckets.interface import IBucket
from twisted_storaged.errors import UnknownBucket


class Registry:
    """The buckets of this daemon, by the names that the configuration gives them."""

    def __init__(self, buckets: Iterable[IBucket]) -> None:
        self._buckets = {bucket.name: bucket for bucket in buckets}

    def get(self, name: str) -> IBucket:
        """The bucket of this name.

        Raises:
            UnknownBucket: there is none.
        """
        try:
            return self._buckets[name]
        except KeyError:
            raise UnknownBucket(name) from None

    def start(self) -> None:
        """Open all of them, blocking. Raises StartError."""
        for bucket in self._buckets.values():
            bucket.start()

    def stop(self) -> Deferred[list[None]]:
        """Close all of them."""
        return gatherResults([bucket.stop() for bucket in self._buckets.values()], consumeErrors=True)
