"""Giving objects of older versions the checksums that they lack. Blocking; may be done beside a running daemon.

Each is committed again as it is, on the condition that it is still the same object: a write of the daemon's that comes
between wins. SQLite lets one of the two commit at a time, and a commit of a hundred objects takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted_storaged.buckets.checksums import combined, pack
from twisted_storaged.buckets.index import Change, Index
from twisted_storaged.buckets.lookup import Entry
from twisted_storaged.buckets.objects import Condition
from twisted_storaged.errors import StorageError

#: Objects that are committed together.
TOGETHER = 100


class ChecksumRepair:
    """The objects that have been read and are to be given their checksums."""

    def __init__(self, index_path: Path) -> None:
        """Open the index, which is of this layout.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        self._index = Index(index_path)
        self._changes: list[Change] = []
        self._repaired = 0

    def add(self, entry: Entry, checksums: Sequence[int]) -> None:
        """Take note of the checksums of the blocks of an object; of one in the index, that of its content.

        Raises:
            sqlite3.Error: earlier ones could not be committed.
        """
        if entry.content is not None:
            full = entry._replace(checksum=checksums[0])
        else:
            full = entry._replace(checksum=combined(checksums, entry.info.size), blocks=pack(checksums))
        self._changes.append(Change(entry.info.key, full, Condition(entry.info.etag)))
        if len(self._changes) >= TOGETHER:
            self._commit()

    def finish(self) -> int:
        """Commit what is left; returns how many objects have been given their checksums.

        Raises:
            sqlite3.Error: it could not be committed.
        """
        self._commit()
        return self._repaired

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def _commit(self) -> None:
        if self._changes:
            # The file that an object had is the one that it has.
            outcomes = self._index.commit(self._changes)
            self._repaired += sum(not isinstance(outcome, StorageError) for outcome in outcomes)
            self._changes.clear()
