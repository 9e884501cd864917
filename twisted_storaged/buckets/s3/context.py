"""What all that works on one bucket of S3 shares: the ways to it, the threads, and the upload journal."""

from __future__ import annotations

from dataclasses import dataclass

from twisted_storaged.buckets.s3.client import DataPlane, MultipartUploads
from twisted_storaged.buckets.s3.journal import Journal
from twisted_storaged.runtime.concurrency import Run


@dataclass(frozen=True)
class S3Context:
    """The ways to one bucket.

    Attributes:
        run: makes blocking calls in a thread: hashing, and the journal's.
        where: the bucket, as the journal names it.
    """

    objects: DataPlane
    uploads: MultipartUploads
    run: Run
    journal: Journal
    where: str
