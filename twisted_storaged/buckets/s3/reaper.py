"""The reaper: aborts orphaned multipart uploads and removes orphaned probe objects, at the start and at intervals.

Orphaned are those that the upload journal names and that no process works on any more.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged.buckets.s3.context import S3Context
from twisted_storaged.buckets.s3.journal import PROBE, UPLOAD, JournalEntry
from twisted_storaged.buckets.s3.probe import is_probe_key, remove_probe
from twisted_storaged.buckets.s3.responses import RequestFailed
from twisted_storaged.protocol.http1 import ConnectionFailed
from twisted_storaged.runtime.concurrency import deferred

#: Seconds by which our clock and S3's may differ.
SKEW = 30.0

_log = Logger()


class Reaper:
    """Removes what is orphaned in one bucket, and nothing else.

    An upload whose id is in the journal is aborted by that id. If the process ended before it knew the id, the upload
    is searched for: an upload of that key without parts, created between the time of the entry and the deadline of the
    request, with a margin for the clocks. Such an upload may also belong to a client that is about to send its first
    part. So it is aborted only if no entry of the journal has its id or may still get it, and if it has had no part for
    `abandoned_after` seconds, because daemons on other hosts have journals of their own.
    """

    def __init__(self, context: S3Context, abandoned_after: float) -> None:
        self._context = context
        self._abandoned_after = abandoned_after
        self._calling = LoopingCall(self._call)
        self._reaping: Deferred[None] = succeed(None)
        self._stopping = False

    def start(self, clock: Any, interval: float) -> None:
        """Reap when the reactor starts, and every `interval` seconds."""
        self._calling.clock = clock
        clock.callWhenRunning(self._calling.start, interval)

    async def stop(self) -> None:
        """Stop reaping, after the request in progress."""
        self._stopping = True
        if self._calling.running:
            self._calling.stop()
        await self._reaping

    @deferred
    async def reap(self) -> None:
        """Remove everything that is orphaned. What cannot be removed now stays in the journal for the next time."""
        for entry in await self._context.run(self._orphaned):
            if self._stopping:
                return
            try:
                await self._end(entry)
            except (RequestFailed, ConnectionFailed, OSError) as error:
                what = "was not aborted" if entry.kind == UPLOAD else "was not removed"
                _log.warn("{entry.kind} of {entry.key!r} {what}: {error}", entry=entry, what=what, error=error)
            except Exception:  # noqa: BLE001 (an unexpected error with one must not keep the others)
                _log_unexpected(Failure())

    def _orphaned(self) -> list[JournalEntry]:
        return self._context.journal.orphaned(self._context.where)

    async def _end(self, entry: JournalEntry) -> None:
        if entry.kind == UPLOAD:
            await self._end_upload(entry)
        # No other object is removed, whatever a file in the journal says.
        elif entry.kind == PROBE and is_probe_key(entry.key):
            await remove_probe(self._context.objects, entry.key)
            await self._context.run(entry.ended)
            _log.info("removed the orphaned probe object {entry.key!r}", entry=entry)

    async def _end_upload(self, entry: JournalEntry) -> None:
        now = time.time()
        orphans = [entry.upload_id] if entry.upload_id else await self._orphaned_ids(entry, now)
        for upload_id in orphans or []:
            try:
                await self._context.uploads.abort(entry.key, upload_id)
            except RequestFailed as error:
                # With 404, it was completed or aborted meanwhile.
                if error.response.status != 404:
                    raise
            else:
                self._context.meters.reaped()
                _log.info("aborted an orphaned upload of {entry.key!r}", entry=entry)
        # Until then, an upload that this entry caused may still become visible, or old enough to be aborted.
        over = orphans is not None and now > self._latest(entry) + self._abandoned_after
        if entry.upload_id or over:
            await self._context.run(entry.ended)

    async def _orphaned_ids(self, entry: JournalEntry, now: float) -> list[str] | None:
        """The ids of uploads that the entry may have caused and nobody uses; None if that cannot be decided yet."""
        earliest, latest = entry.began - SKEW, min(self._latest(entry), now - self._abandoned_after)
        found = await self._context.uploads.of(entry.key)
        candidates = [upload.upload_id for upload in found if earliest <= upload.began <= latest]
        empty = [one for one in candidates if not await self._context.uploads.has_parts(entry.key, one)]
        # Asked last: each of these uploads that is ours has an entry by now, though maybe without its id yet.
        known = await self._context.run(self._context.journal.known, entry.bucket, entry.key)
        return None if known is None else [one for one in empty if one not in known]

    def _latest(self, entry: JournalEntry) -> float:
        """The latest time, by S3's clock, at which S3 can have created the upload of an entry."""
        return entry.began + self._context.objects.retries.deadline + SKEW

    def _call(self) -> Deferred[None]:
        # A LoopingCall ends when a call fails.
        self._reaping = self.reap().addErrback(_log_unexpected)
        return self._reaping


def _log_unexpected(failure: Failure) -> None:
    _log.failure("unexpected error while removing orphaned uploads", failure=failure)
