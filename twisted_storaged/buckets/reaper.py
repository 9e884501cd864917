"""Aborting the multipart uploads that the journal says were left behind, at the start and every so often."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged.buckets.journal import Begun
from twisted_storaged.buckets.s3access import Access
from twisted_storaged.deferreds import deferred
from twisted_storaged.s3.retries import RequestFailed
from twisted_storaged.s3.wire import ConnectionFailed

#: Seconds that our clock and S3's may be apart.
SKEW = 30.0

_log = Logger()


class Reaper:
    """Ends what was left behind in one bucket, and nothing else there.

    An upload whose id was noted is aborted by that. Where the process ended before it had the id, what it can have
    created is an upload of that key, from about that time, without parts, and of nobody else whom the journal knows.
    An S3 that hung may create it later than it was asked to, so that it is looked for until that time is over.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
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
        for begun in await self._access.run(self._left_behind):
            if self._stopping:
                return
            try:
                await self._end(begun)
            except (RequestFailed, ConnectionFailed, OSError) as error:
                _log.warn("an upload of {begun.key!r} was not aborted: {error}", begun=begun, error=error)

    def _left_behind(self) -> list[Begun]:
        return list(self._access.journal.left_behind(self._access.where))

    async def _end(self, begun: Begun) -> None:
        for upload_id in [begun.upload_id] if begun.upload_id else await self._strays(begun):
            try:
                await self._access.uploads.abort(begun.key, upload_id)
            except RequestFailed as error:
                if error.answer.status != 404:
                    raise
            else:
                _log.info("an upload of {begun.key!r} that was left behind is aborted", begun=begun)
        if begun.upload_id or time.time() > self._latest(begun):
            await self._access.run(begun.ended)

    async def _strays(self, begun: Begun) -> list[str]:
        earliest, latest = begun.began - SKEW, self._latest(begun)
        found = await self._access.uploads.of(begun.key)
        candidates = [upload.upload_id for upload in found if earliest <= upload.began <= latest]
        empty = [one for one in candidates if not await self._access.uploads.has_parts(begun.key, one)]
        # Asked last: whoever creates one at this moment has noted its id by now.
        known = await self._access.run(self._access.journal.upload_ids)
        return [one for one in empty if one not in known]

    def _latest(self, begun: Begun) -> float:
        """When S3 can have created it at the latest, by its own clock."""
        return begun.began + self._access.objects.deadline + SKEW

    def _call(self) -> Deferred[None]:
        self._reaping = self.reap().addErrback(_failed)
        return self._reaping


def _failed(failure: Failure) -> None:
    _log.failure("the reaper met a defect", failure=failure)
