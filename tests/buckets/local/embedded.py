"""Helpers of the tests of the embedded bucket: creating one, putting, reading, and damaging it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher
from zope.interface import provider

from tests.support import BytesBody, Consumer, reactor
from twisted_storaged.buckets.local.bucket import LocalBucket, LocalSettings
from twisted_storaged.buckets.local.index_schema import add_functions
from twisted_storaged.buckets.local.writer import SMALL
from twisted_storaged.model import NO_OPTIONS, ObjectInfo, PutOptions


def make(path: Path) -> LocalBucket:
    return LocalBucket("local", LocalSettings(path), reactor, 4)


async def put(bucket: LocalBucket, key: str, data: bytes, options: PutOptions = NO_OPTIONS) -> ObjectInfo:
    return await bucket.put(key, BytesBody(data, chunk=1 << 20), 1 << 30, options)


def large(data: bytes) -> bytes:
    """Make a body with this content that is too large for the index."""
    return data + b" " * SMALL


async def read(bucket: LocalBucket, key: str) -> bytes:
    consumer = Consumer()
    reader = await bucket.get(key)
    await reader.deliver(consumer)
    return consumer.data


def contents(path: Path) -> set[str]:
    return {file.name for file in (path / "objects").glob("*/*")}


async def until(condition: Any) -> bool:
    """Wait until a condition holds, for as long as a slow machine may need; returns whether it does."""
    for _ in range(1000):
        if condition():
            return True
        await deferLater(reactor, 0.01)
    return False


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def forget_checksums(bucket: LocalBucket, *columns: str) -> None:
    """Remove the checksums of all objects without metadata and digests, as an older version would have written them."""
    writer = bucket._index._writer
    add_functions(writer)
    writer.execute(f"UPDATE objects SET {', '.join(f'{column} = NULL' for column in (*columns, 'blocks'))}")
    columns_of_row = "key, size, etag, last_modified, row, NULL, checksum, NULL, NULL"
    writer.execute(f"UPDATE objects SET row_crc = row_checksum({columns_of_row})")


@contextmanager
def logged(level: Any = LogLevel.error) -> Generator[list[str], None, None]:
    """Collect the events that are logged in the context, from a level on."""
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: Any) -> None:
        if event["log_level"] >= level:
            lines.append(str(formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


def spoil_index(path: Path, info: ObjectInfo) -> None:
    """Overwrite the beginning of the page of the index that has an object."""
    place = path.read_bytes().index(info.etag.encode())
    with path.open("r+b") as file:
        file.seek(place // 4096 * 4096)
        file.write(b"\xff" * 100)
