"""S3Context: what uploads, the probe and the reaper of one S3 bucket share."""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted_storaged.buckets.s3.client import DataPlane, MultipartUploads
from twisted_storaged.buckets.s3.journal import Journal
from twisted_storaged.buckets.s3.meters import S3Meters
from twisted_storaged.runtime.concurrency import Run


@dataclass(frozen=True)
class S3Context:
    """The operations, threads and journal of one bucket.

    Attributes:
        run: makes blocking calls in a thread: hashing, and those of the journal.
        where: the URL of the bucket, which identifies it in the journal.
        meters: count uploads.
    """

    objects: DataPlane
    uploads: MultipartUploads
    run: Run
    journal: Journal
    where: str
    meters: S3Meters = field(default_factory=S3Meters)
