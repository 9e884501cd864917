"""LocalMeters: what is counted of one embedded bucket, and what its last check has found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from twisted_storaged.buckets.local.index_reads import Totals
from twisted_storaged.buckets.local.index_writes import Outcome
from twisted_storaged.errors import StorageError
from twisted_storaged.runtime.metering import Combine, Meters

_LABELS = ("bucket",)


class FolderState(NamedTuple):
    """What a check has found in the folder of a bucket.

    Attributes:
        space: bytes that can still be written.
        totals: how much is kept, if that is known.
        lost: files in `lost/`.
        index_bytes: those of the index.
        log_bytes: those of its write-ahead log.
    """

    space: int
    totals: Totals | None
    lost: int
    index_bytes: int
    log_bytes: int


class LocalMeters:
    """What is counted of one bucket.

    Attributes:
        found: what the last check has found. Any thread may set it.
    """

    def __init__(self, meters: Meters | None = None, bucket: str = "") -> None:
        """Count in `meters`, or in meters of its own, for the bucket of this name."""
        meters = Meters() if meters is None else meters
        self._bucket = bucket
        self.found: FolderState | None = None
        self._seconds = meters.histogram("storaged_embedded_commit_seconds", "Commits that succeeded.", _LABELS)
        self._writes = meters.counter("storaged_embedded_writes", "PUTs and DELETEs that were committed.", _LABELS)
        self._aborted = meters.counter("storaged_embedded_uploads_aborted", "PUTs whose body was not stored.", _LABELS)
        for counter in (self._writes, self._aborted):
            counter.add(0, bucket)

        def watch(name: str, text: str, read: Callable[[FolderState], int | None], combine: Combine = "max") -> None:
            # Each process finds the same.
            gauge = meters.gauge(f"storaged_embedded_{name}", text, _LABELS, combine)
            gauge.watch(lambda: None if self.found is None else read(self.found), bucket)

        watch("objects", "Objects that are kept.", lambda found: found.totals and found.totals.objects)
        watch("object_bytes", "Bytes of these objects.", lambda found: found.totals and found.totals.bytes)
        watch("index_bytes", "Bytes of the index.", lambda found: found.index_bytes)
        watch("index_log_bytes", "Bytes of the write-ahead log of the index.", lambda found: found.log_bytes)
        watch("lost_files", "Files in lost/, which no key names.", lambda found: found.lost)
        watch("free_bytes", "Bytes that can still be written.", lambda found: found.space, "min")

    def committed(self, timed: tuple[float, Sequence[Outcome]]) -> Sequence[Outcome]:
        """Count a commit, by the seconds that it took and its outcomes; returns these."""
        seconds, outcomes = timed
        self._seconds.observe(seconds, self._bucket)
        self._writes.add(sum(not isinstance(outcome, StorageError) for outcome in outcomes), self._bucket)
        return outcomes

    def aborted(self) -> None:
        """Count an upload that was given up."""
        self._aborted.add(1, self._bucket)
