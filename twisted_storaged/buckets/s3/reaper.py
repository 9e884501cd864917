"""Aborting the multipart uploads, and removing the probes, that the journal says were left behind, at the start and
every so often."""

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

#: Seconds that our clock and S3's may be apart.
SKEW = 30.0

_log = Logger()


class Reaper:
    """Ends what was left behind in one bucket, and nothing else there.

    An upload whose id was noted is aborted by that: nobody sends it any more. Where the process ended before it had
    the id, what it can have created is an upload of that key, from about that time (an S3 that hung may create it later
    than it was asked to), without parts. One like that may as well be somebody's who is just about to send a part. So
    it must not be, nor be able to be, an upload of anybody whom the journal knows; and, as others have journals of
    their own, it must have had no part for `abandoned_after` seconds, so long that nobody can be sending one.
    """

    def __init__(self, context: S3Context, abandoned_after: float) -> None:
        self._context = context
        self._abandoned_after = abandoned_after
        self._calling = LoopingCall(self._call)
        self._reaping: Deferred[None] = succeed(None)
        self._stopping = False

    def start(self, clock: Any, interval: float) -> None:
        """Reap as soon as the reactor runs, and every `interval` seconds."""
        self._calling.clock = clock
        clock.callWhenRunning(self._calling.start, interval)

    async def stop(self) -> None:
        """Reap no more, once the request that is under way has ended."""
        self._stopping = True
        if self._calling.running:
            self._calling.stop()
        await self._reaping

    @deferred
    async def reap(self) -> None:
        """End all that was left behind; what cannot be ended now stays for the next time."""
        for entry in await self._context.run(self._orphaned):
            if self._stopping:
                return
            try:
                await self._end(entry)
            except (RequestFailed, ConnectionFailed, OSError) as error:
                what = "was not aborted" if entry.kind == UPLOAD else "was not removed"
                _log.warn("{entry.kind} of {entry.key!r} {what}: {error}", entry=entry, what=what, error=error)
            except Exception:  # noqa: BLE001 (one that meets a defect must not keep the others)
                _failed(Failure())

    def _orphaned(self) -> list[JournalEntry]:
        return self._context.journal.orphaned(self._context.where)

    async def _end(self, entry: JournalEntry) -> None:
        if entry.kind == UPLOAD:
            await self._end_upload(entry)
        elif entry.kind == PROBE and is_probe_key(entry.key):
            await remove_probe(self._context.objects, entry.key)
            await self._context.run(entry.ended)
            _log.info("what was left behind of the probe {entry.key!r} is removed", entry=entry)

    async def _end_upload(self, entry: JournalEntry) -> None:
        now = time.time()
        strays = [entry.upload_id] if entry.upload_id else await self._strays(entry, now)
        for upload_id in strays or []:
            try:
                await self._context.uploads.abort(entry.key, upload_id)
            except RequestFailed as error:
                if error.response.status != 404:
                    raise
            else:
                _log.info("an upload of {entry.key!r} that was left behind is aborted", entry=entry)
        over = strays is not None and now > self._latest(entry) + self._abandoned_after
        if entry.upload_id or over:
            await self._context.run(entry.ended)

    async def _strays(self, entry: JournalEntry, now: float) -> list[str] | None:
        """The ids of what may be the upload that was begun, and is nobody else's; None where nobody can tell yet."""
        earliest, latest = entry.began - SKEW, min(self._latest(entry), now - self._abandoned_after)
        found = await self._context.uploads.of(entry.key)
        candidates = [upload.upload_id for upload in found if earliest <= upload.began <= latest]
        empty = [one for one in candidates if not await self._context.uploads.has_parts(entry.key, one)]
        # Asked last: whoever has created one of these has an entry by now, if only one that does not say its id yet.
        known = await self._context.run(self._context.journal.known, entry.bucket, entry.key)
        return None if known is None else [one for one in empty if one not in known]

    def _latest(self, entry: JournalEntry) -> float:
        """When S3 can have created it at the latest, by its own clock."""
        return entry.began + self._context.objects.deadline + SKEW

    def _call(self) -> Deferred[None]:
        self._reaping = self.reap().addErrback(_failed)
        return self._reaping


def _failed(failure: Failure) -> None:
    _log.failure("the reaper met a defect", failure=failure)
