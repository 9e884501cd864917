"""Which conditional writes an engine checks and carries out in one step: by its setting, or by a probe.

A probe is needed because engines differ, and their documentation does not say how: some ignore conditions, some refuse
writes whose condition holds, some check first and write later. So each condition is tried when it holds and when it
does not, and in races of several writers, of whom at most one may win.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged.buckets.s3.client import DataPlane, Part, S3Request, crc32c
from twisted_storaged.buckets.s3.context import S3Context
from twisted_storaged.buckets.s3.journal import PROBE, JournalEntry
from twisted_storaged.buckets.s3.responses import RequestFailed, etag_of, storage_errors, xml_root
from twisted_storaged.buckets.s3.session import ConditionalWrites
from twisted_storaged.buckets.s3.writer import (
    COMPLETE_ABSENT,
    COMPLETE_SAME,
    DELETE_SAME,
    NO_CAPABILITIES,
    PUT_ABSENT,
    PUT_SAME,
    Capabilities,
    condition_headers,
    conditional,
)
from twisted_storaged.errors import BucketError, BucketUnreachable, ConditionUnsupported, OutcomeUnknown
from twisted_storaged.model import Condition
from twisted_storaged.protocol.http1 import AmbiguousFailure, ConnectionFailed, TimedOut, UnexpectedResponse

_T = TypeVar("_T")

#: The capabilities that a setting of `conditional_writes` states; None if a probe finds them out.
CAPABILITIES_BY_SETTING: Mapping[ConditionalWrites, Capabilities | None] = {
    "auto": None,
    "all": frozenset({PUT_ABSENT, PUT_SAME, COMPLETE_ABSENT, COMPLETE_SAME, DELETE_SAME}),
    "put_object": frozenset({PUT_ABSENT, PUT_SAME}),
    "none": NO_CAPABILITIES,
}

#: The keys of the objects that a probe writes begin with this, after the bucket's prefix.
PROBE_KEY = ".storaged-probe-"

#: Versions that are removed at the same time, and lists of up to a thousand: a probe makes some hundreds.
_AT_ONCE = 8
_LOOKS = 20
#: Statuses for a list of versions from engines that have none, or do not let us see them.
_NO_VERSIONS = {400, 403, 404, 405, 501}
_IS_PROBE = re.compile(rf"{re.escape(PROBE_KEY)}[0-9a-f]{{32}}")

#: Writers of one race, and races of one check: an engine that is not atomic has a single winner by chance, but not
#: every time. The size of the bodies, in bytes, parts a check on arrival of the headers from the write by a while.
RACERS = 8
ROUNDS = 10
BODY_SIZE = 128 << 10

_log = Logger()

#: How a write ended: carried out, refused because of its condition, or neither.
WON, LOST, NEITHER = "won", "lost", "neither"

_ABSENT = Condition()
_OTHER = Condition("0" * 32)
#: Statuses for a condition that did not hold (RFC 9110, 15.5.13), and for a write that another overtook or deleted.
_LOST_STATUS = {404, 409, 412}
#: Statuses that say nothing about conditions: the probe fails, and is repeated later.
_BUSY_STATUS = {403, 429, 503, 504}

#: The content of a write, and what makes the write on a condition.
Write = tuple[bytes, Callable[[Condition], Coroutine[Any, Any, Any]]]
New = Callable[[], Coroutine[Any, Any, Write]]


class ConditionalSupport:
    """The conditional writes that a bucket supports; found out when the first one is made, if not configured."""

    def __init__(self, capabilities: Capabilities | None, probe: Callable[[], Awaitable[Capabilities]]) -> None:
        """Support `capabilities`; if None, what `probe` returns. A failed probe is repeated for the next caller."""
        self._capabilities = capabilities
        self._probe = probe
        self._waiting: list[Deferred[Capabilities]] = []

    async def require(self, condition: Condition, *operations: str) -> Capabilities:
        """All capabilities, if at least one of these operations supports this condition.

        Raises:
            ConditionUnsupported: none of them does.
            BucketError: that could not be found out. Its class says why, as that of `storage_errors`.
        """
        capabilities = self._capabilities if self._capabilities is not None else await self._shared_probe()
        if not any(conditional(operation, condition) in capabilities for operation in operations):
            raise ConditionUnsupported(f"not {' or '.join(str(conditional(name, condition)) for name in operations)}")
        return capabilities

    def _shared_probe(self) -> Deferred[Capabilities]:
        """Share one probe among concurrent callers."""
        waiter: Deferred[Capabilities] = Deferred()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            Deferred.fromCoroutine(self._find()).addBoth(self._tell)
        return waiter

    async def _find(self) -> Capabilities:
        try:
            with storage_errors(writes=True):
                self._capabilities = await self._probe()
        except Exception as error:
            kind = type(error) if isinstance(error, BucketError) else BucketError
            # Whatever became of a write of the probe, that of the client has not begun.
            kind = BucketUnreachable if kind is OutcomeUnknown else kind
            raise kind(f"which conditional writes there are could not be found out: {error}") from error
        return self._capabilities

    def _tell(self, found: Capabilities | Failure) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(found)


def new_probe_key(prefix: str) -> str:
    """A new random key in a bucket whose objects are under `prefix`."""
    return f"{prefix}{PROBE_KEY}{uuid4().hex}"


def is_probe_key(key: str) -> bool:
    """Whether a key, in any bucket and under any prefix, is a probe's."""
    at = key.rfind(PROBE_KEY)
    return at >= 0 and _IS_PROBE.fullmatch(key, at) is not None


async def remove_probe(objects: DataPlane, key: str) -> None:
    """Remove a probe's object and all its versions. Raises RequestFailed or ConnectionFailed."""
    try:
        await objects.delete_object(key)
    except RequestFailed as error:
        if error.response.status != 404:
            raise
    # In a bucket with versions, the delete above has only added a marker.
    for _ in range(_LOOKS):
        versions = await _versions(objects, key)
        if not versions:
            return
        for start in range(0, len(versions), _AT_ONCE):
            calls = [S3Request("DeleteObject", key, {"versionId": one}) for one in versions[start : start + _AT_ONCE]]
            await gather([_remove(objects, call) for call in calls])
    raise ConnectionFailed(f"{key!r} has versions however many are removed")


async def gather(coroutines: Sequence[Coroutine[Deferred[Any], Any, _T]]) -> list[_T]:
    """Run coroutines concurrently, and return their results. Raises what one of them raised, once all have ended."""
    # All are awaited, as a write that is still under way would come after the removal of the probe's object.
    outcomes = await DeferredList([Deferred.fromCoroutine(one) for one in coroutines], consumeErrors=True)
    for _, result in outcomes:
        if isinstance(result, Failure):
            result.raiseException()
    return [result for _, result in outcomes]


async def _remove(objects: DataPlane, call: S3Request) -> None:
    try:
        await objects.ask(call)
    except RequestFailed as error:
        if error.response.status != 404:
            raise


async def _versions(objects: DataPlane, key: str) -> list[str]:
    """The ids of the first versions and delete markers of an object; none if the engine lists none.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
    """
    try:
        response = await objects.ask(S3Request("ListObjectVersions", "", {"prefix": key, "versions": ""}))
    except RequestFailed as error:
        if error.response.status not in _NO_VERSIONS:
            raise
        return []
    root = xml_root(response)
    space = root.tag[: root.tag.find("}") + 1]
    if root.tag != f"{space}ListVersionsResult":
        return []  # an engine without versions, which lists objects instead
    entries = [*root.iterfind(f"{space}Version"), *root.iterfind(f"{space}DeleteMarker")]
    return [entry.findtext(f"{space}VersionId", "") for entry in entries if entry.findtext(f"{space}Key") == key]


class Probe:
    """Tries conditional writes on a key of its own, and removes the object afterwards."""

    def __init__(self, context: S3Context, key: str) -> None:
        self._context = context
        self._objects = context.objects
        self._multipart = context.uploads
        self._key = key
        self._uploads: dict[str, JournalEntry] = {}

    async def capabilities(self) -> Capabilities:
        """What the engine supports. Raises what the data plane raises if that cannot be found out."""
        checks: dict[Any, Callable[[], Awaitable[bool]]] = {
            PUT_ABSENT: partial(self._absent, self._new_put),
            PUT_SAME: partial(self._same, self._new_put),
            COMPLETE_ABSENT: partial(self._absent, self._new_upload),
            COMPLETE_SAME: partial(self._same, self._new_upload),
            DELETE_SAME: self._delete_same,
        }
        run, journal = self._context.run, self._context.journal
        entry = await run(journal.begin, self._context.where, self._key, PROBE)
        try:
            capabilities = frozenset([one for one, check in checks.items() if await check()])
        except TimedOut:
            # A removal would only time out, too, while the client of the write waits.
            self._defer_to_reaper([entry, *self._uploads.values()])
            raise
        except BaseException:
            # A write that failed may be carried out after the removal, so the entry stays for the reaper.
            await self._clean(entry, done=False)
            raise
        await self._clean(entry, done=True)
        return capabilities

    async def _absent(self, new: New) -> bool:
        """Whether only the first write of an absent object wins, and exactly one of several at the same time."""
        await self._objects.delete_object(self._key)
        # No race if the engine ignores conditions: rclone's lists break when several clients write one key.
        if [await self._one(new, _ABSENT) for _ in range(2)] != [WON, LOST]:
            return False
        for _ in range(ROUNDS):
            await self._objects.delete_object(self._key)
            if not await self._race(new, _ABSENT):
                return False
        return True

    async def _same(self, new: New) -> bool:
        """Whether one of several writes with the right ETag wins, and none with another ETag or after a delete."""
        for _ in range(ROUNDS):
            same = Condition(await self._overwrite())
            if await self._one(new, _OTHER) != LOST or not await self._race(new, same):
                return False
        await self._objects.delete_object(self._key)
        return await self._one(new, same) == LOST

    async def _delete_same(self) -> bool:
        """Whether a delete with an ETag removes only the object with that ETag, never one that was put meanwhile."""
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
        """Whether one of several concurrent writes wins, all others lose, and the object is the winner's."""
        # Parts are uploaded first, so that the conditional requests are sent at the same moment.
        writes = await gather([new() for _ in range(RACERS)])
        outcomes = await self._together([write(condition) for _, write in writes])
        if sorted(outcomes) != [LOST] * (RACERS - 1) + [WON]:
            return False
        return await self._content() == writes[outcomes.index(WON)][0]

    async def _one(self, new: New, condition: Condition) -> str:
        _, write = await new()
        return await self._outcome(write(condition))

    async def _together(self, attempts: Sequence[Coroutine[Any, Any, Any]]) -> list[str]:
        return await gather([self._outcome(attempt) for attempt in attempts])

    async def _outcome(self, attempt: Awaitable[Any]) -> str:
        try:
            await attempt
        except RequestFailed as error:
            status = error.response.status
            if status in _BUSY_STATUS:
                raise
            return LOST if status in _LOST_STATUS else NEITHER
        except (AmbiguousFailure, UnexpectedResponse):
            return NEITHER  # Swift answers without an ETag if another write has overtaken this one
        return WON

    async def _new_put(self) -> Write:
        content = _new_content()
        return content, lambda condition: self._objects.put_object(self._key, content, condition_headers(condition))

    async def _new_upload(self) -> Write:
        upload_id = await self._new_upload_id()
        content = _new_content()
        checksum = crc32c(content)
        response = await self._objects.upload_part(self._key, upload_id, 1, content, checksum)
        part = Part(1, response.headers.get("etag", ""), checksum)

        async def write(condition: Condition) -> None:
            await self._multipart.complete(self._key, upload_id, [part], condition_headers(condition))
            await self._context.run(self._uploads.pop(upload_id).ended)

        return content, write

    async def _new_upload_id(self) -> str:
        run, journal = self._context.run, self._context.journal
        entry = await run(journal.begin, self._context.where, self._key)
        try:
            upload_id, again = await self._multipart.create(self._key, {})
        except BaseException:
            journal.defer_to_reaper(entry)
            raise
        lost, self._uploads[upload_id] = entry if again else None, entry
        if lost is not None:
            entry = self._uploads[upload_id] = await run(journal.begin, self._context.where, self._key)
        await run(entry.created, upload_id)
        if lost is not None:
            journal.defer_to_reaper(lost)  # as in `S3Upload.begin`
        return upload_id

    async def _overwrite(self) -> str:
        """Put new content, and return its ETag."""
        return etag_of(await self._objects.put_object(self._key, _new_content()))

    async def _delete(self, condition: Condition) -> None:
        await self._objects.delete_object(self._key, condition_headers(condition))

    async def _content(self) -> bytes | None:
        """The current content of the object; None if there is no object."""
        try:
            return (await self._objects.read_object(self._key)).body
        except RequestFailed as error:
            if error.response.status != 404:
                raise
            return None

    async def _clean(self, probe: JournalEntry, done: bool) -> None:
        """Remove all traces. What cannot be removed now is left to the reaper, and does not fail the probe."""
        run, left = self._context.run, {probe.path: probe, **{entry.path: entry for entry in self._uploads.values()}}
        try:
            for upload_id, entry in self._uploads.items():
                with suppress(RequestFailed):  # it was completed, and the reply was lost
                    await self._multipart.abort(self._key, upload_id)
                await run(entry.ended)
                del left[entry.path]
            await remove_probe(self._objects, self._key)
            if done:
                await run(probe.ended)
                del left[probe.path]
        except (RequestFailed, ConnectionFailed, OSError) as error:
            _log.warn("probe object {key!r} is left to the reaper: {error}", key=self._key, error=error)
        finally:
            self._defer_to_reaper(left.values())

    def _defer_to_reaper(self, entries: Iterable[JournalEntry]) -> None:
        for entry in entries:
            self._context.journal.defer_to_reaper(entry)


def _new_content() -> bytes:
    return uuid4().bytes * (BODY_SIZE // 16)
