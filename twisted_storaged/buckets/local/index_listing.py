"""A page of the embedded bucket's list, out of an index that is ordered by key.

Keys below a common prefix are skipped by the next query: the cost of a list with a delimiter is that of its entries,
however many keys there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice

from twisted_storaged.model import ListPage, ListQuery, ObjectInfo

#: The maximum number of entries of a page, which is in memory as a whole.
PAGE_LIMIT = 1000
#: Greater than any byte of UTF-8: all keys with a prefix sort before the prefix followed by this.
_END = b"\xff"

#: Selects objects in key order: those from the first key, inclusive, to the second, exclusive; at most so many.
Select = Callable[[bytes, bytes, int], Generator[ObjectInfo, None, None]]


def list_page(select: Select, query: ListQuery, token: str | None) -> ListPage:
    """Return the page at `token`, which is the last entry of the page before; None for the first page."""
    after = query.after if token is None else token
    limit = min(query.page_limit, PAGE_LIMIT)
    first, end = _start(query, after), query.prefix.encode() + _END
    # One entry more than the page has, to know whether there is a next page.
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
    """Yield objects and common prefixes from `first` on, in order."""
    more = True
    while more:
        more = False
        # Closed at once, since an open cursor holds a snapshot of the index, which keeps its log from being reset.
        with closing(select(first, end, -1)) as objects:
            for info in objects:
                common = _common_prefix(info.key, query)
                if common is not None:
                    yield common
                    first, more = common.encode() + _END, True
                    break
                yield info


def _start(query: ListQuery, after: str | None) -> bytes:
    """Return the first possible key after the entry `after`: after all keys below it, if it is a common prefix."""
    first = query.prefix.encode()
    if after is None:
        return first
    common = _common_prefix(after, query) if query.delimiter and after.startswith(query.prefix) else None
    # No key sorts between a key and the same key with a zero byte.
    return max(first, after.encode() + b"\0" if common is None else common.encode() + _END)


def _common_prefix(key: str, query: ListQuery) -> str | None:
    """Return the common prefix that a key is listed under; None if it is listed itself."""
    assert query.delimiter
    at = key.find(query.delimiter, len(query.prefix))
    return None if at < 0 else key[: at + len(query.delimiter)]
