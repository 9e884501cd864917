"""S3Meters: what is counted of one bucket in S3: requests, retries, resumes, connections and multipart uploads."""

from __future__ import annotations

from typing import Literal, Protocol

from twisted_storaged.runtime.metering import Meters

#: How a request to S3 ends, in terms of storage; see `responses.outcome_of`.
Outcome = Literal[
    "ok",
    "not_found",
    "precondition_failed",
    "conflict",
    "range_not_satisfiable",
    "denied",
    "busy",
    "timed_out",
    "unreachable",
    "unknown",
    "cancelled",
    "error",
]
#: How a multipart upload ends: the reaper aborts later what S3 does not abort now.
UploadEnd = Literal["completed", "aborted", "left"]


class Connections(Protocol):
    """A pool of connections."""

    @property
    def open_count(self) -> int:
        """Connections that are open, in use or idle."""

    @property
    def idle_count(self) -> int:
        """Connections that wait for a request."""


class S3Meters:
    """Counts what one bucket does, on the reactor's thread.

    Attributes:
        bucket: its name, which is the first label of each metric.
        requests: requests to S3 that have ended, by operation and outcome, and `seconds`, their durations by operation.
        parts_in_flight: parts that are being sent.
    """

    def __init__(self, meters: Meters | None = None, bucket: str = "") -> None:
        """Count in `meters`, or in meters of its own, for the bucket of this name."""
        meters = Meters() if meters is None else meters
        labels, operation, outcome = ("bucket",), ("bucket", "operation"), ("bucket", "operation", "outcome")
        self.bucket = bucket
        self.requests = meters.counter("storaged_s3_requests", "Requests to S3 that have ended.", outcome)
        self.seconds = meters.histogram(
            "storaged_s3_request_seconds",
            "Time of a request to S3, with its retries and the pauses between.",
            operation,
        )
        self._retries = meters.counter("storaged_s3_retries", "Attempts of requests to S3 that were repeated.", outcome)
        self._resumes = meters.counter("storaged_s3_resumes", "Reads from S3 that broke off and were resumed.", labels)
        self._uploads = meters.counter(
            "storaged_s3_uploads", "Multipart uploads that have ended.", ("bucket", "outcome")
        )
        self._reaped = meters.counter(
            "storaged_s3_uploads_reaped", "Orphaned multipart uploads that the reaper has aborted.", labels
        )
        for counter in (self._resumes, self._reaped):
            counter.add(0, bucket)
        for end in ("completed", "aborted", "left"):
            self._uploads.add(0, bucket, end)
        self.parts_in_flight = 0
        meters.gauge("storaged_s3_parts_in_flight", "Parts that are being sent to S3.", labels).watch(
            lambda: self.parts_in_flight, bucket
        )
        self._open = meters.gauge("storaged_s3_connections", "Connections to S3 that are open.", labels)
        self._idle = meters.gauge("storaged_s3_connections_idle", "Connections to S3 that are open and idle.", labels)

    def watch(self, connections: Connections) -> None:
        """Let gauges tell how many connections there are, beside those of other pools."""
        self._open.watch(lambda: connections.open_count, self.bucket)
        self._idle.watch(lambda: connections.idle_count, self.bucket)

    def retried(self, operation: str, outcome: Outcome) -> None:
        """Count an attempt that is repeated, by how it ended."""
        self._retries.add(1, self.bucket, operation, outcome)

    def resumed(self) -> None:
        """Count a read that is resumed."""
        self._resumes.add(1, self.bucket)

    def upload_ended(self, how: UploadEnd) -> None:
        """Count a multipart upload."""
        self._uploads.add(1, self.bucket, how)

    def reaped(self) -> None:
        """Count an upload that the reaper has aborted."""
        self._reaped.add(1, self.bucket)
