"""The way of a body into an embedded bucket, up to the commit: kept for the index if small, else in a new file."""

from __future__ import annotations

import time

from awscrt.checksums import crc32c
from twisted.internet.defer import Deferred, succeed

from twisted_storaged.buckets.checksums import BLOCK, block_checksums, combined, pack
from twisted_storaged.buckets.directory import ContentFile, Directory, new_name
from twisted_storaged.buckets.lookup import Entry
from twisted_storaged.buckets.multipart import InThreads
from twisted_storaged.buckets.objects import ObjectInfo
from twisted_storaged.buckets.threads import Run

#: Bytes that are written at once: whole blocks, as each has a checksum.
PART_SIZE = 8 * BLOCK
#: Bytes of the largest content that is kept in the index.
SMALL = 64 << 10


class LocalUpload(InThreads):
    """A PartSink. After `whole` or `complete`, `entry` is what is to be committed: durable, but for what it has itself.

    Its ETag is a name that no content ever had or will have, which makes it a strong validator. RFC 9110, 8.8.1
    """

    def __init__(self, key: str, directory: Directory, run: Run) -> None:
        self._key = key
        self._file = _NewFile(key, directory)
        self._content: bytearray | None = None
        super().__init__(self._file, run)

    def whole(self, body: bytearray) -> Deferred[ObjectInfo]:
        if len(body) > SMALL:
            return super().whole(body)
        # No thread for this: it takes microseconds.
        self._content = body
        return succeed(ObjectInfo(self._key, len(body), new_name(), time.time()))

    def entry(self, info: ObjectInfo) -> Entry:
        """The entry of what was stored, with what else is known of it by now."""
        if self._content is not None:
            return Entry(info, self._content, crc32c(self._content))
        checksums = self._file.checksums
        return Entry(info, None, combined(checksums, info.size), pack(checksums))


class _NewFile:
    """The parts of one PUT, in a new file. What `complete` leaves is durable, and named by the ETag it gives."""

    def __init__(self, key: str, directory: Directory) -> None:
        self._file: ContentFile | None = None
        self._key = key
        self._directory = directory
        self._checksums: dict[int, list[int]] = {}

    @property
    def checksums(self) -> list[int]:
        """The CRC-32C of each block of all parts."""
        return [checksum for _, checksums in sorted(self._checksums.items()) for checksum in checksums]

    def whole(self, body: bytearray) -> ObjectInfo:
        self.begin()
        try:
            self.part(1, body)
            return self.complete()
        except BaseException:
            self.abort()
            raise

    def begin(self) -> None:
        self._file = self._directory.create()

    def part(self, number: int, body: bytearray) -> None:
        assert self._file is not None
        # Of what came, not of what was written: between the two, memory and disk may go wrong.
        self._checksums[number] = block_checksums(body)
        self._file.write(body, (number - 1) * PART_SIZE)

    def complete(self) -> ObjectInfo:
        assert self._file is not None
        return ObjectInfo(self._key, self._file.seal(), self._file.name, time.time())

    def abort(self) -> None:
        if self._file is not None:
            self._file.discard()
