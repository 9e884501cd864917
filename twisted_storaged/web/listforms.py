"""The forms that a list can have: the contract's one JSON document, or NDJSON, a line for each entry."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring as quoted

from twisted_storaged.buckets.objects import ListPage, ListQuery, ObjectInfo
from twisted_storaged.spool import Spool

#: The media type of a line for each entry. https://github.com/ndjson/ndjson-spec
NDJSON = "application/x-ndjson"


class Lines:
    """NDJSON: objects and common prefixes in one order, and at the end where to go on, if there is more."""

    type = NDJSON.encode("ascii")

    async def page(self, page: ListPage) -> bytes:
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

    async def close(self) -> None:
        """Nothing is kept."""


class Document:
    """One JSON document: its objects, then its common prefixes, then where to go on, if there is more.

    Objects go out as they come. Common prefixes, which come among them, are kept in a spool until the objects are out:
    to list them a second time would cost as much again, and find others.
    """

    type = b"application/json"

    def __init__(self, query: ListQuery, spool: Spool) -> None:
        self._lead = f'{{"prefix":{quoted(query.prefix)},"objects":['
        self._with_prefixes = query.delimiter is not None
        self._spool = spool
        self._spooled = False

    async def page(self, page: ListPage) -> bytes:
        """The objects of a page."""
        if page.prefixes:
            comma = "," if self._spooled else ""
            self._spooled = True
            await self._spool.add((comma + ",".join(map(quoted, page.prefixes))).encode("utf-8"))
        return self._items(map(_listed, page.objects))

    async def end(self, next_after: str | None) -> AsyncGenerator[bytes, None]:
        """What comes after the last page."""
        end = self._end_items()
        if self._with_prefixes:
            yield f'{end},"common_prefixes":['.encode()
            async with aclosing(self._spool.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
            end = "]"
        if next_after is not None:
            end += f',"next_after":{quoted(next_after)}'
        yield f"{end}}}".encode()

    async def close(self) -> None:
        """Let go of what is kept."""
        await self._spool.close()

    def _items(self, items: Iterable[str]) -> bytes:
        text = ",".join(items)
        if not text:
            return b""
        lead, self._lead = self._lead, ","
        return (lead + text).encode("utf-8")

    def _end_items(self) -> str:
        return "]" if self._lead == "," else f"{self._lead}]"


def _listed(info: ObjectInfo) -> str:
    key, etag, modified = quoted(info.key), quoted(info.etag), _timestamp(int(info.last_modified))
    return f'{{"key":{key},"size":{info.size},"etag":{etag},"last_modified":"{modified}"}}'


@lru_cache(maxsize=4096)
def _timestamp(seconds: int) -> str:
    """The time as RFC 3339 has it; objects are often put many at a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
