"""Which bucket a key belongs to, and how the lists of several buckets become one.

The policy has rules by key prefix, the registry buckets by name; the namespace joins several buckets into one space of
keys. Lists are checked page by page before they are merged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from operator import lt
from typing import NamedTuple

from twisted.internet.defer import Deferred, gatherResults

from twisted_storaged.errors import BucketError, UnknownBucket
from twisted_storaged.interfaces import IBucket
from twisted_storaged.model import ListPage, ListQuery, ObjectInfo

# Rules by key prefix: how large a body may be, and which bucket it goes to. The longest matching prefix wins.

MiB = 1 << 20
GiB = 1 << 30

#: The bucket of every key that no rule sends elsewhere.
PRIMARY = "primary"

#: A vector index is written as ONE object, so that it can never be half there.
VECTORS_PREFIX = "_vectors/"

#: Caps on one body, in bytes. 4 GiB covers more than 700 K vectors at d=768.
DEFAULT_MAX_PUT = 256 * MiB
VECTORS_MAX_PUT = 4 * GiB


@dataclass(frozen=True)
class Rule:
    """What holds for the keys that start with `prefix`: the cap in bytes, and the name of their bucket."""

    prefix: str
    max_put: int
    bucket: str = PRIMARY


DEFAULT_RULES = (Rule("", DEFAULT_MAX_PUT), Rule(VECTORS_PREFIX, VECTORS_MAX_PUT))


class Policy:
    """A set of rules, one per prefix; a later rule takes the place of an earlier one with the same prefix."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        by_prefix = {rule.prefix: rule for rule in (*DEFAULT_RULES, *rules)}
        self._rules = sorted(by_prefix.values(), key=lambda rule: len(rule.prefix), reverse=True)

    def rule_for(self, key: str) -> Rule:
        """The rule with the longest prefix of `key`. There always is one: the empty prefix has a rule."""
        for rule in self._rules:
            if key.startswith(rule.prefix):
                break
        return rule

    def buckets_under(self, prefix: str) -> set[str]:
        """The names of all buckets that can hold a key which starts with `prefix`."""
        deeper = {rule.bucket for rule in self._rules if rule.prefix.startswith(prefix)}
        return deeper | {self.rule_for(prefix).bucket}


# Names to buckets: which there are, and all of them at once.


class Registry:
    """The buckets of this daemon, by the names that the configuration gives them."""

    def __init__(self, buckets: Iterable[IBucket]) -> None:
        self._buckets = {bucket.name: bucket for bucket in buckets}

    def get(self, name: str) -> IBucket:
        """The bucket of this name.

        Raises:
            UnknownBucket: there is none.
        """
        try:
            return self._buckets[name]
        except KeyError:
            raise UnknownBucket(name) from None

    def start(self) -> None:
        """Open all of them, or none, blocking. Raises StartError."""
        with ExitStack() as opened:
            for bucket in self._buckets.values():
                bucket.start()
                opened.callback(bucket.close)
            opened.pop_all()

    def close(self) -> None:
        """Close all of them, blocking, where the daemon could not start after all."""
        for bucket in self._buckets.values():
            bucket.close()

    def stop(self) -> Deferred[list[None]]:
        """Close all of them."""
        return gatherResults([bucket.stop() for bucket in self._buckets.values()], consumeErrors=True)


# Following a list from page to page, and telling where what comes cannot be pages of one list: a bucket of S3 is as
# good as its engine, and what an engine makes up must not become a client's list, nor keep the daemon busy for ever.

#: Pages without an entry that may follow each other. S3 gives some where much was deleted.
EMPTY_PAGES = 1000


class ListChecker:
    """The pages of one list that came until now."""

    def __init__(self) -> None:
        self._last = ""
        self._empty = 0
        self._pages = 0
        self._kept: str | None = None
        self._keep_at = 1

    def take(self, page: ListPage) -> None:
        """The next page.

        Raises:
            BucketError: it cannot be that.
        """
        keys = [info.key for info in page.objects]
        if page.ordered:
            self._check_order(keys, page.prefixes)
        if page.token is not None:
            self._check_token(page.token)
            self._empty = 0 if keys or page.prefixes else self._empty + 1
            if self._empty > EMPTY_PAGES:
                raise BucketError(f"{self._empty} pages of a list without an entry follow each other")

    def _check_order(self, *kinds: Sequence[str]) -> None:
        """Text sorts as the bytes of its UTF-8 do."""
        for names in kinds:
            if names and not (names[0] > self._last and all(map(lt, names, names[1:]))):
                raise BucketError(f"a list is not in the order of the bytes of its keys, after {self._last!r}")
        self._last = max([self._last, *(names[-1] for names in kinds if names)])

    def _check_token(self, token: str) -> None:
        """Find any cycle of tokens, while one is kept: Brent's way, https://doi.org/10.1007/BF01933190 ."""
        self._pages += 1
        if token == self._kept:
            raise BucketError(f"a list goes round in a circle: its token {token[:100]!r} is there again")
        if self._pages == self._keep_at:
            self._kept, self._keep_at = token, self._keep_at * 2


# The one space of keys that clients see, over however many buckets the policy spreads it; or one of those alone.


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
        self._walk = ListChecker()
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
