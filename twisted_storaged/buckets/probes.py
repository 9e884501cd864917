"""The objects that conditional writes are tried on: what they are called, and how nothing is left of them, in a bucket
that keeps versions, too."""

from __future__ import annotations

import re
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar
from uuid import uuid4
from xml.etree import ElementTree

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from twisted_storaged.s3.client import Call, DataPlane
from twisted_storaged.s3.retries import RequestFailed
from twisted_storaged.s3.wire import ConnectionFailed

_T = TypeVar("_T")

#: What their keys begin with, after the bucket's prefix.
PROBE_KEY = ".storaged-probe-"

#: Versions that are removed at once; and looks at what is left, of up to a thousand each: a probe makes some hundreds.
_AT_ONCE = 8
_LOOKS = 20
#: Statuses by which an engine says that it has no versions, or that we may not know of any.
_NO_VERSIONS = {400, 403, 404, 405, 501}
_IS_PROBE = re.compile(rf"{re.escape(PROBE_KEY)}[0-9a-f]{{32}}")


def new_probe_key(prefix: str) -> str:
    """A key that nobody has, in a bucket whose objects are under `prefix`."""
    return f"{prefix}{PROBE_KEY}{uuid4().hex}"


def is_probe_key(key: str) -> bool:
    """Whether an object of this key, in whatever bucket, is a probe's."""
    at = key.rfind(PROBE_KEY)
    return at >= 0 and _IS_PROBE.fullmatch(key, at) is not None


async def remove_probe(objects: DataPlane, key: str) -> None:
    """Remove a probe's object, and all versions of it. Raises RequestFailed or ConnectionFailed."""
    try:
        await objects.delete_object(key)
    except RequestFailed as error:
        if error.answer.status != 404:
            raise
    for _ in range(_LOOKS):
        versions = await _versions(objects, key)
        if not versions:
            return
        for start in range(0, len(versions), _AT_ONCE):
            calls = [Call("DeleteObject", key, {"versionId": one}) for one in versions[start : start + _AT_ONCE]]
            await all_of([_remove(objects, call) for call in calls])
    raise ConnectionFailed(f"{key!r} has versions however many are removed")


async def all_of(coroutines: Sequence[Coroutine[Deferred[Any], Any, _T]]) -> list[_T]:
    """What coroutines return that run at the same time. Raises what one raised, once all have ended."""
    outcomes = await DeferredList([Deferred.fromCoroutine(one) for one in coroutines], consumeErrors=True)
    for _, result in outcomes:
        if isinstance(result, Failure):
            result.raiseException()
    return [result for _, result in outcomes]


async def _remove(objects: DataPlane, call: Call) -> None:
    try:
        await objects.ask(call)
    except RequestFailed as error:
        if error.answer.status != 404:
            raise


async def _versions(objects: DataPlane, key: str) -> list[str]:
    """The ids of the first versions and delete markers of an object; none where the engine does not tell of any.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
    """
    try:
        answer = await objects.ask(Call("ListObjectVersions", "", {"prefix": key, "versions": ""}))
    except RequestFailed as error:
        if error.answer.status not in _NO_VERSIONS:
            raise
        return []
    try:
        root = ElementTree.fromstring(answer.body)  # noqa: S314 (from our S3, and expat refuses entity bombs)
    except ElementTree.ParseError as error:
        raise ConnectionFailed(f"not XML: {error}") from error
    space = root.tag[: root.tag.find("}") + 1]
    if root.tag != f"{space}ListVersionsResult":
        return []  # it knows no versions, and gives a list of objects
    entries = [*root.iterfind(f"{space}Version"), *root.iterfind(f"{space}DeleteMarker")]
    return [entry.findtext(f"{space}VersionId", "") for entry in entries if entry.findtext(f"{space}Key") == key]
