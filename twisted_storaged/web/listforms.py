"""The forms that a list can have: the contract's one JSON document, or NDJSON, a line for each entry."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring as quoted

from twisted_storaged.buckets.objects import ListPage, ListQuery, ObjectInfo

#: The media type of a line for each entry. https://github.com/ndjson/ndjson-spec
NDJSON = "application/x-ndjson"
#: Common prefixes that are kept until the objects of a document are out; what comes after so many is listed again.
KEPT_PREFIXES = 10_000

_Pages = Callable[[ListQuery], AsyncGenerator[ListPage, None]]


class Lines:
    """NDJSON: objects and common prefixes in one order, and at the end where to go on, if there is more."""

    type = NDJSON.encode("ascii")

    def page(self, page: ListPage) -> bytes:
        """The lines of a page."""
        lines = [(info.key, _listed(info)) for info in page.objects]
        if page.prefixes:
            lines += [(prefix, f'{{"common_prefix":{quoted(prefix)}}}') for prefix in page.prefixes]
            lines.sort(key=lambda line: line[0].encode("utf-8"))
        return "".join(f"{line}\n" for _, line in lines).encode("utf-8")

    async def end(self, next_after: str | None) -> AsyncGenerator[bytes, None]:
        """What comes after the last page."""
        if next_after is not None:
            yield f'{{"next_after":{quoted(next_after)}}}\n'.encode()


class Document:
    """One JSON document: its objects, then its common prefixes, then where to go on, if there is more."""

    type = b"application/json"

    def __init__(self, query: ListQuery, pages: _Pages) -> None:
        self._lead = f'{{"prefix":{quoted(query.prefix)},"objects":['
        self._prefixes = None if query.delimiter is None else _Prefixes(query, pages)

    def page(self, page: ListPage) -> bytes:
        """The objects of a page."""
        if self._prefixes is not None:
            self._prefixes.add(page.prefixes)
        return self._items(map(_listed, page.objects))

    async def end(self, next_after: str | None) -> AsyncGenerator[bytes, None]:
        """What comes after the last page."""
        end = self._end_items()
        if self._prefixes is not None:
            self._lead = end + ',"common_prefixes":['
            async for prefixes in self._prefixes.all():
                yield self._items(map(quoted, prefixes))
            end = self._end_items()
        if next_after is not None:
            end += f',"next_after":{quoted(next_after)}'
        yield f"{end}}}".encode()

    def _items(self, items: Iterable[str]) -> bytes:
        text = ",".join(items)
        if not text:
            return b""
        lead, self._lead = self._lead, ","
        return (lead + text).encode("utf-8")

    def _end_items(self) -> str:
        return "]" if self._lead == "," else f"{self._lead}]"


class _Prefixes:
    """The common prefixes of a list: the first are kept, and if there are very many, the others listed again."""

    def __init__(self, query: ListQuery, pages: _Pages) -> None:
        self._query = query
        self._pages = pages
        self._kept: list[str] = []
        self._last = ""

    def add(self, prefixes: tuple[str, ...]) -> None:
        """Take those of the next page."""
        if prefixes:
            self._last = prefixes[-1]
            self._kept += prefixes[: KEPT_PREFIXES - len(self._kept)]

    async def all(self) -> AsyncGenerator[Iterable[str], None]:
        """All that were taken, some at a time."""
        yield self._kept
        if self._kept and self._kept[-1] != self._last:
            async for page in self._pages(replace(self._query, after=self._kept[-1])):
                yield page.up_to(self._last).prefixes


def _listed(info: ObjectInfo) -> str:
    key, etag, modified = quoted(info.key), quoted(info.etag), _timestamp(int(info.last_modified))
    return f'{{"key":{key},"size":{info.size},"etag":{etag},"last_modified":"{modified}"}}'


@lru_cache(maxsize=4096)
def _timestamp(seconds: int) -> str:
    """The time as RFC 3339 has it; objects are often put many at a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
