"""Finding out which conditional writes an engine checks and carries out in one step.

Engines differ, and documentation does not help: some ignore conditions, some refuse what holds, some look first and
write then. So each condition is tried where it holds and where it does not; and several writers who may not all have
it are sent off at once, more than once. What passes is claimed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

from twisted.logger import Logger

from twisted_storaged.buckets.journal import PROBE, Begun
from twisted_storaged.buckets.objects import Condition
from twisted_storaged.buckets.probes import all_of, remove_probe
from twisted_storaged.buckets.s3access import Access
from twisted_storaged.buckets.s3conditions import (
    COMPLETE_ABSENT,
    COMPLETE_SAME,
    DELETE_SAME,
    PUT_ABSENT,
    PUT_SAME,
    Claims,
    condition_headers,
)
from twisted_storaged.s3.answers import etag_of
from twisted_storaged.s3.client import crc32c
from twisted_storaged.s3.retries import RequestFailed
from twisted_storaged.s3.uploads import Part
from twisted_storaged.s3.wire import ConnectionFailed, NotAsDocumented, Undecided

#: Writers at once, and how often: an engine that is not atomic has one winner by chance, not every time. With as many
#: bytes, what is looked at before the body is there is looked at long before the write.
RACERS = 8
ROUNDS = 10
BODY_SIZE = 128 << 10

_log = Logger()

#: How a write ended: carried out, refused for its condition, or neither.
WON, LOST, NEITHER = "won", "lost", "neither"

_ABSENT = Condition()
_OTHER = Condition("0" * 32)
#: Statuses that say that a condition did not hold: RFC 9110, 15.5.13; and that somebody else was faster, or deleted it.
_LOST_STATUS = {404, 409, 412}
#: Statuses that say nothing of conditions: the probe is to be made again.
_BUSY_STATUS = {403, 429, 503, 504}

#: A write that is ready but for its condition, and what the object then is.
Write = tuple[bytes, Callable[[Condition], Coroutine[Any, Any, Any]]]
New = Callable[[], Coroutine[Any, Any, Write]]


class Probe:
    """Writes to a key of its own, and removes it again."""

    def __init__(self, access: Access, key: str) -> None:
        self._access = access
        self._objects = access.objects
        self._multipart = access.uploads
        self._key = key
        self._uploads: dict[str, Begun] = {}

    async def claims(self) -> Claims:
        """What the engine can. Raises what the data plane and boto3 raise when that cannot be found out."""
        checks: dict[Any, Callable[[], Awaitable[bool]]] = {
            PUT_ABSENT: partial(self._absent, self._new_put),
            PUT_SAME: partial(self._same, self._new_put),
            COMPLETE_ABSENT: partial(self._absent, self._new_upload),
            COMPLETE_SAME: partial(self._same, self._new_upload),
            DELETE_SAME: self._delete_same,
        }
        run, journal = self._access.run, self._access.journal
        begun = await run(journal.begin, self._access.where, self._key, PROBE)
        done = False
        try:
            claims = frozenset([one for one, check in checks.items() if await check()])
            done = True
        finally:
            # What failed may be carried out later than it is removed: then the reaper looks again.
            await self._clean(begun, done)
        return claims

    async def _absent(self, new: New) -> bool:
        """Who comes first has it, and nobody later. Of several who come at once, one has it."""
        await self._objects.delete_object(self._key)
        # Engines that ignore conditions are not raced: rclone's lists go wrong when one key is written by several.
        if [await self._one(new, _ABSENT) for _ in range(2)] != [WON, LOST]:
            return False
        for _ in range(ROUNDS):
            await self._objects.delete_object(self._key)
            if not await self._race(new, _ABSENT):
                return False
        return True

    async def _same(self, new: New) -> bool:
        """Of several who saw the object that is there, one has it; nobody who saw another, or when it is gone."""
        for _ in range(ROUNDS):
            same = Condition(await self._overwrite())
            if await self._one(new, _OTHER) != LOST or not await self._race(new, same):
                return False
        await self._objects.delete_object(self._key)
        return await self._one(new, same) == LOST

    async def _delete_same(self) -> bool:
        """A delete takes the object that it means, never one that was put meanwhile."""
        for _ in range(ROUNDS):
            same = Condition(await self._overwrite())
            if await self._outcome(self._delete(_OTHER)) != LOST:
                return False
            attempts = [attempt for _ in range(RACERS // 2) for attempt in (self._delete(same), self._overwrite())]
            outcomes = await self._together(attempts)
            if NEITHER in outcomes[::2] or outcomes[::2].count(WON) > 1 or not await self._content():
                return False
        same = Condition(await self._overwrite())
        return [await self._outcome(self._delete(same)) for _ in range(2)] == [WON, LOST]

    async def _race(self, new: New, condition: Condition) -> bool:
        """Whether one wins and all others lose, and the object is the winner's."""
        writes = await all_of([new() for _ in range(RACERS)])
        outcomes = await self._together([write(condition) for _, write in writes])
        if sorted(outcomes) != [LOST] * (RACERS - 1) + [WON]:
            return False
        return await self._content() == writes[outcomes.index(WON)][0]

    async def _one(self, new: New, condition: Condition) -> str:
        _, write = await new()
        return await self._outcome(write(condition))

    async def _together(self, attempts: Sequence[Coroutine[Any, Any, Any]]) -> list[str]:
        return await all_of([self._outcome(attempt) for attempt in attempts])

    async def _outcome(self, attempt: Awaitable[Any]) -> str:
        try:
            await attempt
        except RequestFailed as error:
            status = error.answer.status
            if status in _BUSY_STATUS:
                raise
            return LOST if status in _LOST_STATUS else NEITHER
        except (Undecided, NotAsDocumented):
            return NEITHER  # Swift gives a write no ETag that another has overtaken
        return WON

    async def _new_put(self) -> Write:
        content = _new_content()
        return content, lambda condition: self._objects.put_object(
            self._key, bytearray(content), condition_headers(condition)
        )

    async def _new_upload(self) -> Write:
        upload_id = await self._new_upload_id()
        content = _new_content()
        checksum = crc32c(bytearray(content))
        answer = await self._objects.upload_part(self._key, upload_id, 1, bytearray(content), checksum)
        part = Part(1, answer.headers.get("etag", ""), checksum)

        async def write(condition: Condition) -> None:
            await self._multipart.complete(self._key, upload_id, [part], condition_headers(condition))
            await self._access.run(self._uploads.pop(upload_id).ended)

        return content, write

    async def _new_upload_id(self) -> str:
        run, journal = self._access.run, self._access.journal
        begun = await run(journal.begin, self._access.where, self._key)
        try:
            upload_id, again = await self._multipart.create(self._key, {})
        except BaseException:
            journal.give_up(begun)
            raise
        lost, self._uploads[upload_id] = begun if again else None, begun
        if lost is not None:
            begun = self._uploads[upload_id] = await run(journal.begin, self._access.where, self._key)
        await run(begun.created, upload_id)
        if lost is not None:
            journal.give_up(lost)  # as in `S3Upload.begin`
        return upload_id

    async def _overwrite(self) -> str:
        """Put something new, and give its ETag."""
        return etag_of(await self._objects.put_object(self._key, bytearray(_new_content())))

    async def _delete(self, condition: Condition) -> None:
        await self._objects.delete_object(self._key, condition_headers(condition))

    async def _content(self) -> bytes | None:
        """What the object is now; None where there is none."""
        try:
            return (await self._objects.read_object(self._key)).body
        except RequestFailed as error:
            if error.answer.status != 404:
                raise
            return None

    async def _clean(self, probe: Begun, done: bool) -> None:
        """Leave nothing; what cannot be removed now is the reaper's, and does not make what was found out wrong."""
        run, left = self._access.run, {probe.path: probe, **{begun.path: begun for begun in self._uploads.values()}}
        try:
            for upload_id, begun in self._uploads.items():
                with suppress(RequestFailed):  # one that was completed and did not say so
                    await self._multipart.abort(self._key, upload_id)
                await run(begun.ended)
                del left[begun.path]
            await remove_probe(self._objects, self._key)
            if done:
                await run(probe.ended)
                del left[probe.path]
        except (RequestFailed, ConnectionFailed, OSError) as error:
            _log.warn("the probe {key!r} is not removed yet: {error}", key=self._key, error=error)
        finally:
            for begun in left.values():
                self._access.journal.give_up(begun)


def _new_content() -> bytes:
    return uuid4().bytes * (BODY_SIZE // 16)
