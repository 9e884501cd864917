"""The one space of keys that clients see, over however many buckets the policy spreads it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from twisted.internet.defer import Deferred

from twisted_storaged.buckets.interface import IBucket
from twisted_storaged.buckets.objects import ListQuery, ObjectInfo
from twisted_storaged.buckets.registry import Registry
from twisted_storaged.policy import Policy, Rule


class Namespace:
    """Finds the bucket of a key, and lists as if all buckets were one."""

    def __init__(self, policy: Policy, registry: Registry) -> None:
        self._policy = policy
        self._registry = registry

    def rule_for(self, key: str) -> Rule:
        """What the policy says of a key."""
        return self._policy.rule_for(key)

    def bucket_for(self, key: str) -> IBucket:
        """The bucket that holds a key, if any does. Raises UnknownBucket."""
        return self._registry.get(self._policy.rule_for(key).bucket)

    async def pages(self, prefix: str) -> AsyncIterator[list[ObjectInfo]]:
        """All objects whose keys start with `prefix`, in key order (bytes of UTF-8), a page at a time.

        Raises:
            UnknownBucket: the policy names a bucket that is not there.
            BucketError: a bucket failed.
        """
        lists = [_Pages(self._registry.get(name), prefix) for name in self._policy.buckets_under(prefix)]
        if len(lists) == 1:
            async for objects in lists[0].all():
                yield objects
            return
        async for page in _merge(lists):
            # A bucket may hold, from other times or of other hosts, keys that the policy now finds elsewhere.
            yield [item for item, name in page if self._policy.rule_for(item.key).bucket == name]


class _Pages:
    """The list of one bucket: the rest of the page that was fetched last, and the pages to come."""

    def __init__(self, bucket: IBucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._token: str | None = None
        self._more = True
        self.objects: list[tuple[ObjectInfo, str]] = []

    async def all(self) -> AsyncIterator[list[ObjectInfo]]:
        """The pages as the bucket gives them; while one is looked at, the next is fetched."""
        coming: Deferred[list[ObjectInfo]] | None = self._ask()
        try:
            while coming is not None:
                objects = await coming
                coming = self._ask() if self._more else None
                yield objects
        finally:
            if coming is not None:
                coming.addErrback(lambda _: [])

    async def fill(self) -> None:
        """Fetch pages until there are objects, or no more pages."""
        while not self.objects and self._more:
            self.objects = [(item, self._bucket.name) for item in await self._next()]

    def _ask(self) -> Deferred[list[ObjectInfo]]:
        return Deferred.fromCoroutine(self._next())

    async def _next(self) -> list[ObjectInfo]:
        page = await self._bucket.list(ListQuery(self._prefix), self._token)
        self._token = page.token
        self._more = page.token is not None
        return page.objects

    def take_to(self, last: bytes) -> list[tuple[ObjectInfo, str]]:
        """Remove and return what is here of the keys up to `last`."""
        count = sum(_order(entry) <= last for entry in self.objects)
        taken, self.objects = self.objects[:count], self.objects[count:]
        return taken


async def _merge(lists: list[_Pages]) -> AsyncIterator[list[tuple[ObjectInfo, str]]]:
    """Pages of all lists in one order: up to the key to which every list is known."""
    while True:
        for pages in lists:
            await pages.fill()
        full = [pages for pages in lists if pages.objects]
        if not full:
            return
        last = min(_order(pages.objects[-1]) for pages in full)
        yield sorted((entry for pages in full for entry in pages.take_to(last)), key=_order)


def _order(entry: tuple[ObjectInfo, str]) -> bytes:
    return entry[0].key.encode("utf-8")
