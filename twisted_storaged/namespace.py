"""The one space of keys that clients see, over however many buckets the policy spreads it; or one of those alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from twisted.internet.defer import Deferred

from twisted_storaged.buckets.interface import IBucket
from twisted_storaged.buckets.objects import ListPage, ListQuery, ObjectInfo
from twisted_storaged.buckets.registry import Registry
from twisted_storaged.buckets.walk import Walk
from twisted_storaged.policy import Policy, Rule


class Namespace:
    """Finds the bucket of a key, and lists as if all buckets were one."""

    def __init__(self, policy: Policy, registry: Registry) -> None:
        self._policy = policy
        self._registry = registry

    def rule_for(self, key: str) -> Rule:
        """What the policy says of a key."""
        return self._policy.rule_for(key)

    def bucket_for(self, key: str, name: str | None = None) -> IBucket:
        """The bucket that holds a key, if any does; or the one of this `name`. Raises UnknownBucket."""
        return self._registry.get(self._policy.rule_for(key).bucket if name is None else name)

    async def pages(self, query: ListQuery, name: str | None = None) -> AsyncGenerator[ListPage, None]:
        """The entries of a list, a page at a time: of all buckets, or of the one of this `name`.

        Everything on a page comes before everything on the next.

        Raises:
            UnknownBucket: there is none of this name.
            BucketError: a bucket failed.
        """
        names = self._policy.buckets_under(query.prefix) if name is None else [name]
        lists = [_Pages(self._registry.get(one), query) for one in names]
        async with aclosing(lists[0].all() if len(lists) == 1 else _merge(lists, self._policy)) as pages:
            async for page in pages:
                yield page


class _Pages:
    """The list of one bucket: the rest of the page that was fetched last, and the pages to come."""

    def __init__(self, bucket: IBucket, query: ListQuery) -> None:
        self._bucket = bucket
        self._query = query
        self._token: str | None = None
        self._more = True
        self._walk = Walk()
        self.entries: list[_Entry] = []

    async def all(self) -> AsyncGenerator[ListPage, None]:
        """The pages as the bucket gives them; while one is looked at, the next is fetched, if anybody looks at that."""
        left = self._query.limit
        coming: Deferred[ListPage] | None = self._ask(left)
        try:
            while coming is not None:
                page = await coming
                if left is not None:
                    left -= len(page.objects) + len(page.prefixes)
                coming = self._ask(left) if self._more and (left is None or left > 0) else None
                yield page
        finally:
            if coming is not None:
                coming.addErrback(lambda _: None)

    async def fill(self) -> None:
        """Fetch pages until there are entries, or no more pages."""
        while not self.entries and self._more:
            page = await self._next(self._query)
            entries = [_Entry(info.key.encode("utf-8"), self._bucket.name, info) for info in page.objects]
            entries += [_Entry(prefix.encode("utf-8"), self._bucket.name, None) for prefix in page.prefixes]
            self.entries = sorted(entries, key=_order)

    def take_to(self, last: bytes) -> list[_Entry]:
        """Remove and return what is here of the entries up to `last`."""
        count = sum(entry.name <= last for entry in self.entries)
        taken, self.entries = self.entries[:count], self.entries[count:]
        return taken

    def _ask(self, wanted: int | None) -> Deferred[ListPage]:
        query = self._query
        if wanted is not None and wanted < query.page_limit:
            query = replace(query, page_limit=wanted)
        return Deferred.fromCoroutine(self._next(query))

    async def _next(self, query: ListQuery) -> ListPage:
        page = await self._bucket.list(query, self._token)
        self._walk.take(page)
        self._token = page.token
        self._more = page.token is not None
        return page


class _Entry(NamedTuple):
    """An object in the list of a bucket, or, without an `info`, a common prefix."""

    name: bytes
    bucket: str
    info: ObjectInfo | None


async def _merge(lists: list[_Pages], policy: Policy) -> AsyncGenerator[ListPage, None]:
    """Pages of all lists in one order: up to the entry to which every list is known."""
    while True:
        for pages in lists:
            await pages.fill()
        full = [pages for pages in lists if pages.entries]
        if not full:
            return
        last = min(pages.entries[-1].name for pages in full)
        yield _visible(sorted((entry for pages in full for entry in pages.take_to(last)), key=_order), policy)


def _visible(entries: list[_Entry], policy: Policy) -> ListPage:
    """A page without what a bucket holds, from other times or of other hosts, that the policy now finds elsewhere."""
    objects = [entry.info for entry in entries if entry.info and policy.rule_for(entry.info.key).bucket == entry.bucket]
    prefixes = [(entry.name.decode("utf-8"), entry.bucket) for entry in entries if entry.info is None]
    shown = dict.fromkeys(prefix for prefix, bucket in prefixes if bucket in policy.buckets_under(prefix))
    return ListPage(objects, None, tuple(shown))


def _order(entry: _Entry) -> bytes:
    return entry.name
