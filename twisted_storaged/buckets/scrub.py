"""Reading all that is in an embedded bucket, and holding it against its checksums. Blocking, and changes nothing.

It works beside a daemon that has the bucket: the index is read as any other reader does, a file never changes, and
where an object was replaced while it was looked at, it is looked at again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from twisted_storaged.buckets.delivery import CHUNK
from twisted_storaged.buckets.directory import Contents, boot_id
from twisted_storaged.buckets.generation import Generation
from twisted_storaged.buckets.localreader import FileSource, damaged, verify_content, verify_size
from twisted_storaged.buckets.lookup import Entry, Lookup, is_corrupt, look_up
from twisted_storaged.buckets.objects import ListQuery, Span
from twisted_storaged.errors import DamagedObject, StartError

#: Seconds after which a running daemon has removed a file that it had replaced.
SETTLE_SECONDS = 2


@dataclass
class Report:
    """What was found.

    Attributes:
        objects: how many were read to their end and are as they were put.
        size: the bytes of these.
        unknown: how many of these have no checksum, as their storaged took none.
        damaged: how many objects, or places in the index, are not as they should be.
        missing: how many of the damaged objects have no file.
        unnamed: how many files no key names, and no upload under way has; the next start moves them to `lost/`.
        lost: how many files earlier starts have moved to `lost/`.
        strays: how many names among the files are not storaged's.
    """

    objects: int = 0
    size: int = 0
    unknown: int = 0
    damaged: int = 0
    missing: int = 0
    unnamed: int = 0
    lost: int = 0
    strays: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether there is nothing that somebody should look at."""
        return not (self.damaged or self.unnamed or self.lost or self.strays)

    def __str__(self) -> str:
        return (
            f"{self.objects} objects with {self.size} bytes are sound ({self.unknown} without a checksum), "
            f"{self.damaged} damaged, {self.missing} of them without their file; "
            f"{self.unnamed} files that no key names, {self.lost} in lost/, {self.strays} names that are not storaged's"
        )


class Scrub:
    """One look at the bucket in a folder."""

    def __init__(
        self,
        path: Path,
        complain: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Say all that somebody should look at to `complain`: each damage by its key and why, each file without one."""
        self._path = path
        self._contents = Contents(path)
        self._in_use = False
        self._sleep = sleep
        self._complain = complain
        self.report = Report()

    def run(self) -> None:
        """Read everything.

        Raises:
            StartError: there is no bucket, or it cannot be read.
        """
        try:
            self._in_use = self._contents.is_in_use()
            self._check_generation()
            with closing(look_up(self._contents.index_path)) as index:
                for look in (self._check_index, self._check_objects, self._check_files):
                    self._as_far_as_possible(look, index)
        except (OSError, sqlite3.Error) as error:
            if not is_corrupt(error):
                raise StartError(f"{self._path} cannot be scrubbed: {error}") from error
            self._damage(f"the index cannot be read: {error}")

    def _as_far_as_possible(self, look: Callable[[Lookup], None], index: Lookup) -> None:
        try:
            look(index)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self._damage(f"the index cannot be read any further: {error}")

    def _check_index(self, index: Lookup) -> None:
        for fault in index.faults():
            self._damage(f"the index: {' '.join(fault.split())}")

    def _check_generation(self) -> None:
        """What a start would refuse is damage. Beside a daemon, which has looked itself, the files are changing."""
        if not self._in_use:
            try:
                Generation(self._path, boot_id()).check_files(has_contents=any(self._contents.names()))
            except StartError as error:
                self._damage(str(error))

    def _check_objects(self, index: Lookup) -> None:
        for key in _keys(index):
            self._check(key, index)

    def _check_files(self, index: Lookup) -> None:
        for name in self._unnamed(index):
            self.report.unnamed += 1
            self._complain(f"no key names the file {name}")
        for path in self._contents.strays():
            self.report.strays += 1
            self._complain(f"{path} is not storaged's")
        for path in sorted(self._contents.lost_path.glob("*")):
            self.report.lost += 1
            self._complain(f"no key named {path.name}, which an earlier start has moved to {path.parent}")

    def _check(self, key: str, index: Lookup) -> None:
        entry = index.get(key)
        while entry is not None:
            try:
                self._verify(entry)
                return
            except (OSError, DamagedObject) as error:
                seen, entry = entry, index.get(key)
                if entry is not None and entry.info.etag == seen.info.etag:
                    self._object_is_damaged(seen, error)
                    return

    def _verify(self, entry: Entry) -> None:
        if entry.content is not None:
            verify_content(entry, entry.content)
        else:
            self._verify_file(entry)
        self.report.objects += 1
        self.report.size += entry.info.size
        self.report.unknown += entry.checksum is None

    def _verify_file(self, entry: Entry) -> None:
        descriptor, size = self._contents.open(entry.info.etag, direct=True), entry.info.size
        with closing(FileSource(descriptor, entry, Span(0, size), self._contents.memory)) as source:
            verify_size(entry, descriptor)
            # What counts is what the disk has, not what the page cache remembers.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, size, CHUNK):
                source.check(source.read(offset, min(CHUNK, size - offset)))

    def _object_is_damaged(self, entry: Entry, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):
            self.report.missing += 1
            error = damaged(entry, "there is no file")
        elif isinstance(error, OSError):
            error = damaged(entry, str(error))
        self._damage(str(error))

    def _damage(self, what: str) -> None:
        self.report.damaged += 1
        self._complain(what)

    def _unnamed(self, index: Lookup) -> list[str]:
        """Files that are not in the index, and that nobody is writing or removing."""
        found = set(self._contents.unnamed(index.files()))
        if found and self._in_use:
            # A replaced file is removed soon after its key has another: only what is there for longer has no reason.
            self._sleep(SETTLE_SECONDS)
        # Some may have been committed since, others removed; those with a note are of uploads.
        found.difference_update(self._contents.pending())
        found.difference_update(index.files())
        return sorted(found.intersection(self._contents.names()))


def _keys(index: Lookup) -> Iterator[str]:
    """All keys; between two pages the index is free, so that a daemon's log does not grow meanwhile.

    Where the index is damaged, those before that place come one by one, and then SQLite's error.
    """
    query, token, more = ListQuery(), None, True
    while more:
        try:
            page = index.page(query, token)
        except sqlite3.DatabaseError:
            if query.page_limit == 1:
                raise
            query = ListQuery(page_limit=1)
        else:
            yield from (info.key for info in page.objects)
            token, more = page.token, page.token is not None
