"""Bodies: the file that an object is read into, and the body of a PUT that never ends."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer


@implementer(IConsumer)
class FileWriter:
    """Writes what it gets to the file `path`, and closes it when the `with` block ends.

    A disk is faster than this daemon's network, so that nothing is ever paused.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Somebody is about to write."""

    def unregisterProducer(self) -> None:
        """Nobody writes any more."""

    def write(self, data: bytes) -> None:
        """Write some bytes."""
        self._file.write(data)


@implementer(IBodyProducer)
class HalfBody:
    """Announces `length` bytes, writes the first half of them, all zeros, and leaves it at that."""

    def __init__(self, length: int) -> None:
        self.length = length

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write the half. The Deferred never fires, as the body never ends."""
        consumer.write(bytes(self.length // 2))
        return Deferred()

    def pauseProducing(self) -> None:
        """Nothing comes anyway."""

    def resumeProducing(self) -> None:
        """Nothing comes anyway."""

    def stopProducing(self) -> None:
        """Nothing comes anyway."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
