"""A page of the embedded bucket's list, out of an index that finds keys in their order.

What is below a common prefix is not read: the next look into the index is for what follows all of it, so that a list
with a delimiter costs what it gives, however many keys there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice

from twisted_storaged.model import ListPage, ListQuery, ObjectInfo

#: Entries of a page at most, whatever a query says: it is in memory as a whole.
PAGE_LIMIT = 1000
#: More than any byte of UTF-8: what starts with a prefix sorts before the prefix and this.
_END = b"\xff"

#: Finds up to so many objects, in key order, from the first bytes on and before the second.
Select = Callable[[bytes, bytes, int], Generator[ObjectInfo, None, None]]


def list_page(select: Select, query: ListQuery, token: str | None) -> ListPage:
    """The page of a list at `token`, which is the entry before it."""
    after = query.after if token is None else token
    limit = min(query.page_limit, PAGE_LIMIT)
    first, end = _start(query, after), query.prefix.encode() + _END
    # One more than the page: is there another?
    if not query.delimiter:
        found = list(select(first, end, limit + 1))
        return ListPage(found[:limit], found[limit - 1].key if len(found) > limit else None)
    with closing(_entries(select, query, first, end)) as entries:
        return _page(list(islice(entries, limit + 1)), limit)


def _page(found: list[ObjectInfo | str], limit: int) -> ListPage:
    entries = found[:limit]
    objects = [entry for entry in entries if isinstance(entry, ObjectInfo)]
    prefixes = tuple(entry for entry in entries if isinstance(entry, str))
    last = entries[-1] if len(found) > limit else None
    return ListPage(objects, last.key if isinstance(last, ObjectInfo) else last, prefixes)


def _entries(select: Select, query: ListQuery, first: bytes, end: bytes) -> Generator[ObjectInfo | str, None, None]:
    """Objects and common prefixes from `first` on, in their order."""
    more = True
    while more:
        more = False
        # Closed at once, as an open cursor keeps the index as it was when it was opened.
        with closing(select(first, end, -1)) as objects:
            for info in objects:
                common = _common_prefix(info.key, query)
                if common is not None:
                    yield common
                    first, more = common.encode() + _END, True
                    break
                yield info


def _start(query: ListQuery, after: str | None) -> bytes:
    """Where entries after `after` begin: an entry there may be a common prefix, and the end of what is below it."""
    first = query.prefix.encode()
    if after is None:
        return first
    common = _common_prefix(after, query) if query.delimiter and after.startswith(query.prefix) else None
    # No key is between another and the same with a zero byte.
    return max(first, after.encode() + b"\0" if common is None else common.encode() + _END)


def _common_prefix(key: str, query: ListQuery) -> str | None:
    """What a key is listed as, if not as itself."""
    assert query.delimiter
    at = key.find(query.delimiter, len(query.prefix))
    return None if at < 0 else key[: at + len(query.delimiter)]
