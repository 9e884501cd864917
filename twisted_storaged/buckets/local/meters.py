"""LocalMeters: what is counted of one embedded bucket, and what its last check has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted_storaged.buckets.local.index_reads import Totals
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
        seconds: durations of commits, and `writes`, the changes that they made.
        aborted: PUTs whose body was not stored.
        found: what the last check has found. Any thread may set it.
    """

    def __init__(self, meters: Meters | None = None, bucket: str = "") -> None:
        """Count in `meters`, or in meters of its own, for the bucket of this name."""
        meters = Meters() if meters is None else meters
        self.found: FolderState | None = None
        self.seconds = meters.histogram("storaged_embedded_commit_seconds", "Commits that succeeded.", _LABELS)
        self.writes = meters.counter("storaged_embedded_writes", "PUTs and DELETEs that were committed.", _LABELS)
        self.aborted = meters.counter("storaged_embedded_uploads_aborted", "PUTs whose body was not stored.", _LABELS)
        for counter in (self.writes, self.aborted):
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
