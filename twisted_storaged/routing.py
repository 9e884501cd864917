"""Which bucket a key belongs to, and how the lists of several buckets are merged.

`Policy` has rules by key prefix, `Registry` the buckets by name, and `Namespace` joins the buckets into one key space.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from operator import lt
from typing import NamedTuple

from twisted.internet.defer import Deferred, gatherResults

from twisted_storaged.errors import BucketFailed, UnknownBucket
from twisted_storaged.interfaces import IBucket
from twisted_storaged.model import ListPage, ListQuery, ObjectInfo

MiB = 1 << 20
GiB = 1 << 30

#: The name of the bucket for keys without a rule that names another.
PRIMARY = "primary"

#: Vector indexes: each is one object, so that it is written atomically.
VECTORS_PREFIX = "_vectors/"

#: Limits of the body of a PUT, in bytes. 4 GiB hold more than 700,000 vectors of 768 dimensions.
DEFAULT_MAX_PUT = 256 * MiB
VECTORS_MAX_PUT = 4 * GiB


@dataclass(frozen=True)
class Rule:
    """The rule for keys that start with `prefix`.

    Attributes:
        max_put: the maximum size of a body, in bytes.
        bucket: the name of the bucket that holds them.
        slots: how many of the put slots they may hold; None for all.
    """

    prefix: str
    max_put: int
    bucket: str = PRIMARY
    slots: int | None = None


DEFAULT_RULES = (Rule("", DEFAULT_MAX_PUT), Rule(VECTORS_PREFIX, VECTORS_MAX_PUT))


class Policy:
    """A set of rules, one per prefix. A later rule replaces an earlier one with the same prefix.

    Attributes:
        rules: those with the longest prefixes first.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        by_prefix = {rule.prefix: rule for rule in (*DEFAULT_RULES, *rules)}
        self.rules = sorted(by_prefix.values(), key=lambda rule: len(rule.prefix), reverse=True)

    def rule_for(self, key: str) -> Rule:
        """Return the rule with the longest prefix of `key`. The empty prefix always has one."""
        # The longest prefixes come first, and the empty one of DEFAULT_RULES last: there always is a match.
        for rule in self.rules:
            if key.startswith(rule.prefix):
                break
        return rule

    def buckets_under(self, prefix: str) -> set[str]:
        """Return the names of all buckets that can hold a key which starts with `prefix`."""
        deeper = {rule.bucket for rule in self.rules if rule.prefix.startswith(prefix)}
        return deeper | {self.rule_for(prefix).bucket}


class Registry:
    """The buckets of the daemon, by their names in the configuration."""

    def __init__(self, buckets: Iterable[IBucket]) -> None:
        self._buckets = {bucket.name: bucket for bucket in buckets}

    @property
    def buckets(self) -> list[IBucket]:
        """All of them."""
        return list(self._buckets.values())

    def get(self, name: str) -> IBucket:
        """Return the bucket of this name.

        Raises:
            UnknownBucket: there is none.
        """
        try:
            return self._buckets[name]
        except KeyError:
            raise UnknownBucket(name) from None

    def start(self) -> None:
        """Open all buckets, or none. Blocking. Raises StartError."""
        with ExitStack() as opened:
            for bucket in self._buckets.values():
                bucket.start()
                opened.callback(bucket.close)
            opened.pop_all()

    def close(self) -> None:
        """Close all buckets after a start that failed. Blocking."""
        for bucket in self._buckets.values():
            bucket.close()

    def ping(self) -> Deferred[list[None]]:
        """Wait for a thread of each bucket."""
        return gatherResults([bucket.ping() for bucket in self._buckets.values()], consumeErrors=True)

    def stop(self) -> Deferred[list[None]]:
        """Close all buckets."""
        return gatherResults([bucket.stop() for bucket in self._buckets.values()], consumeErrors=True)


#: Consecutive empty pages that are accepted. S3 returns some where many objects were deleted.
EMPTY_PAGES = 1000


class ListChecker:
    """Checks that the pages which a bucket returns can be those of one list.

    A faulty S3 engine must neither produce a wrong list, nor keep the daemon busy forever.
    """

    def __init__(self) -> None:
        self._last = ""
        self._empty = 0
        self._pages = 0
        self._kept: str | None = None
        self._keep_at = 1

    def take(self, page: ListPage) -> None:
        """Check the next page.

        Raises:
            BucketFailed: it cannot follow the pages before.
        """
        keys = [info.key for info in page.objects]
        # Some engines promise no order, which the operator says by `lists_in_order = false`.
        if page.ordered:
            self._check_order(keys, page.prefixes)
        if page.token is not None:
            self._check_token(page.token)
            # A page may be empty, but a list of empty pages might never end.
            self._empty = 0 if keys or page.prefixes else self._empty + 1
            if self._empty > EMPTY_PAGES:
                raise BucketFailed(f"{self._empty} consecutive pages of a list are empty")

    def _check_order(self, *kinds: Sequence[str]) -> None:
        # Text sorts as the bytes of its UTF-8 do.
        for names in kinds:
            if names and not (names[0] > self._last and all(map(lt, names, names[1:]))):
                raise BucketFailed(f"a list is not in the order of the bytes of its keys, after {self._last!r}")
        self._last = max([self._last, *(names[-1] for names in kinds if names)])

    def _check_token(self, token: str) -> None:
        """Detect a cycle of tokens, by Brent's algorithm, which keeps one. https://doi.org/10.1007/BF01933190 ."""
        self._pages += 1
        if token == self._kept:
            raise BucketFailed(f"a list has a cycle: its token {token[:100]!r} was returned again")
        if self._pages == self._keep_at:
            self._kept, self._keep_at = token, self._keep_at * 2


class Namespace:
    """The key space that clients see: finds the bucket of a key, and lists all buckets as one."""

    def __init__(self, policy: Policy, registry: Registry) -> None:
        self._policy = policy
        self._registry = registry

    def rule_for(self, key: str) -> Rule:
        """Return the rule for a key."""
        return self._policy.rule_for(key)

    def bucket_for(self, key: str, name: str | None = None) -> IBucket:
        """Return the bucket for a key, or the one of this `name`. Raises UnknownBucket."""
        return self._registry.get(self._policy.rule_for(key).bucket if name is None else name)

    async def pages(self, query: ListQuery, name: str | None = None) -> AsyncGenerator[ListPage, None]:
        """Yield the pages of a list of all buckets, or of the one of this `name`.

        All entries of a page sort before those of the next.

        Raises:
            UnknownBucket: there is no bucket of this name.
            BucketError: a bucket failed.
        """
        # Only buckets that can have such keys are asked, so that the others may even be unreachable.
        names = self._policy.buckets_under(query.prefix) if name is None else [name]
        lists = [_Pages(self._registry.get(one), query) for one in names]
        async with aclosing(lists[0].all() if len(lists) == 1 else _merge(lists, self._policy)) as pages:
            async for page in pages:
                yield page


class _Pages:
    """The list of one bucket, read page by page.

    Attributes:
        entries: the rest of the last page.
    """

    def __init__(self, bucket: IBucket, query: ListQuery) -> None:
        self._bucket = bucket
        self._query = query
        self._token: str | None = None
        self._more = True
        self._checker = ListChecker()
        self.entries: list[_Entry] = []

    async def all(self) -> AsyncGenerator[ListPage, None]:
        """Yield the pages as the bucket returns them. The next one, if needed, is fetched meanwhile."""
        remaining = self._query.limit
        upcoming: Deferred[ListPage] | None = self._fetch(remaining)
        try:
            while upcoming is not None:
                page = await upcoming
                if remaining is not None:
                    remaining -= len(page.objects) + len(page.prefixes)
                upcoming = self._fetch(remaining) if self._more and (remaining is None or remaining > 0) else None
                yield page
        finally:
            # The caller wants no more pages: the one that is being fetched is not awaited, nor is its failure reported.
            if upcoming is not None:
                upcoming.addErrback(lambda _: None)

    async def fill(self) -> None:
        """Fetch pages until there are entries, or no more pages."""
        while not self.entries and self._more:
            page = await self._next(self._query)
            entries = [_Entry(info.key.encode("utf-8"), self._bucket.name, info) for info in page.objects]
            entries += [_Entry(prefix.encode("utf-8"), self._bucket.name, None) for prefix in page.prefixes]
            self.entries = sorted(entries, key=_order)

    def take_to(self, last: bytes) -> list[_Entry]:
        """Remove and return the fetched entries up to `last`."""
        count = sum(entry.name <= last for entry in self.entries)
        taken, self.entries = self.entries[:count], self.entries[count:]
        return taken

    def _fetch(self, wanted: int | None) -> Deferred[ListPage]:
        query = self._query
        # The last page need not be longer than what is left of the limit.
        if wanted is not None and wanted < query.page_limit:
            query = replace(query, page_limit=wanted)
        # A Deferred begins at once, a coroutine only when it is awaited.
        return Deferred.fromCoroutine(self._next(query))

    async def _next(self, query: ListQuery) -> ListPage:
        page = await self._bucket.list(query, self._token)
        self._checker.take(page)
        self._token = page.token
        self._more = page.token is not None
        return page


class _Entry(NamedTuple):
    """An entry of the list of a bucket: an object, or a common prefix, which has no `info`."""

    name: bytes
    bucket: str
    info: ObjectInfo | None


async def _merge(lists: list[_Pages], policy: Policy) -> AsyncGenerator[ListPage, None]:
    """Merge lists. Each page ends at the last entry up to which every list was fetched."""
    while True:
        for pages in lists:
            await pages.fill()
        # A list that has ended does not limit the page.
        full = [pages for pages in lists if pages.entries]
        if not full:
            return
        last = min(pages.entries[-1].name for pages in full)
        yield _visible(sorted((entry for pages in full for entry in pages.take_to(last)), key=_order), policy)


def _visible(entries: list[_Entry], policy: Policy) -> ListPage:
    """Make a page without the keys that, by the policy, belong to another bucket than the one which has them."""
    # A bucket may hold keys of others, for example from before the policy was changed.
    objects = [entry.info for entry in entries if entry.info and policy.rule_for(entry.info.key).bucket == entry.bucket]
    prefixes = [(entry.name.decode("utf-8"), entry.bucket) for entry in entries if entry.info is None]
    # Several buckets may have keys below one common prefix, which is listed once.
    shown = dict.fromkeys(prefix for prefix, bucket in prefixes if bucket in policy.buckets_under(prefix))
    return ListPage(objects, None, tuple(shown))


def _order(entry: _Entry) -> bytes:
    return entry.name
