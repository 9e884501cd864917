"""What all that works on one bucket of S3 shares: the ways to it, the threads, and the upload journal."""

from __future__ import annotations

from dataclasses import dataclass

from twisted_storaged.buckets.journal import Journal
from twisted_storaged.buckets.threads import Run
from twisted_storaged.s3.client import DataPlane
from twisted_storaged.s3.uploads import Uploads


@dataclass(frozen=True)
class Access:
    """The ways to one bucket.

    Attributes:
        run: makes blocking calls in a thread: hashing, and the journal's.
        where: the bucket, as the journal names it.
    """

    objects: DataPlane
    uploads: Uploads
    run: Run
    journal: Journal
    where: str
