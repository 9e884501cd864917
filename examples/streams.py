"""Bodies: a consumer that writes an object to a file, and the body of a PUT that never ends."""

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
    """A consumer that writes to the file `path`, and closes it when the `with` block ends.

    It never pauses its producer, as the disk is faster than the connection.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Do nothing: the producer is never paused."""

    def unregisterProducer(self) -> None:
        """Do nothing: the `with` block closes the file."""

    def write(self, data: bytes) -> None:
        """Write some bytes."""
        self._file.write(data)


@implementer(IBodyProducer)
class HalfBody:
    """A body that announces `length` bytes, writes the first half of them, all zeros, and never ends."""

    def __init__(self, length: int) -> None:
        self.length = length

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write the first half. The Deferred never fires, as the body never ends."""
        consumer.write(bytes(self.length // 2))
        return Deferred()

    def pauseProducing(self) -> None:
        """Do nothing: the half is written at once."""

    def resumeProducing(self) -> None:
        """Do nothing: the half is written at once."""

    def stopProducing(self) -> None:
        """Do nothing: the half is written at once."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
