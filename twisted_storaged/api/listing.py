"""Lists as responses: JSON or NDJSON, written page by page as fast as the client reads them.

Memory does not grow with the number of keys, and the first bytes are sent before the last page is fetched.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from twisted.web import http

from twisted_storaged.api.responses import BY_ACCEPT, NOT_CACHED
from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import ListPage, ListQuery, parse_prefix
from twisted_storaged.protocol.http_fields import count, parameter, preference
from twisted_storaged.runtime.concurrency import BackpressureGate, ConsumerGone
from twisted_storaged.runtime.files import Spool

#: The forms of lists: one document, or one line for each entry. https://github.com/ndjson/ndjson-spec
JSON, NDJSON = "application/json", "application/x-ndjson"

#: Fetches the pages of a query.
Pages = Callable[[ListQuery], AsyncGenerator[ListPage, None]]

_json = msgspec.json.Encoder()


# Without `gc=False`, the garbage collector would track each entry, though it refers to text and numbers only.
class _Object(msgspec.Struct, gc=False):
    """The entry of an object, with its fields in the order of the wire contract."""

    key: str
    size: int
    etag: str
    last_modified: str


class _CommonPrefix(msgspec.Struct, gc=False):
    """The line of a common prefix in NDJSON."""

    common_prefix: str


class NdjsonWriter:
    """Writes a list as NDJSON: objects and common prefixes in one order, and `next_after` if there are more entries."""

    type = NDJSON.encode("ascii")

    async def page(self, page: ListPage) -> bytes:
        """Return the lines of a page."""
        lines: list[_Object | _CommonPrefix] = [*_objects(page)]
        if page.prefixes:
            # Each kind is in order on its own.
            lines += map(_CommonPrefix, page.prefixes)
            lines.sort(key=_name)
        return _json.encode_lines(lines)

    async def end(self, next_after: str | None) -> AsyncGenerator[bytes, None]:
        """Yield what follows the last page; an empty piece if it is nothing, as even an empty list is a response."""
        yield b"" if next_after is None else _json.encode({"next_after": next_after}) + b"\n"

    async def close(self) -> None:
        """Do nothing, as nothing is buffered."""


class DocumentWriter:
    """Writes a list as one JSON document: objects, then common prefixes, then `next_after` if there are more entries.

    Objects are written page by page. Common prefixes, which arrive on the same pages, are kept in a spool until all
    objects have been written: a second listing would cost as much again, and could find others.
    """

    type = JSON.encode("ascii")

    def __init__(self, query: ListQuery, spool: Spool) -> None:
        self._lead = b'{"prefix":%b,"objects":[' % _json.encode(query.prefix)
        self._with_prefixes = query.delimiter is not None
        self._spool = spool
        self._spooled = False

    async def page(self, page: ListPage) -> bytes:
        """Return the objects of a page, and spool its common prefixes."""
        if page.prefixes:
            comma = b"," if self._spooled else b""
            self._spooled = True
            await self._spool.add(comma + _items(page.prefixes))
        if not page.objects:
            return b""
        # The beginning of the document is written with the first objects, and a comma before all further ones.
        lead, self._lead = self._lead, b","
        return lead + _items(_objects(page))

    async def end(self, next_after: str | None) -> AsyncGenerator[bytes, None]:
        """Yield what follows the last page."""
        # A list without objects has not written its beginning yet.
        end = b"]" if self._lead == b"," else self._lead + b"]"
        if self._with_prefixes:
            yield end + b',"common_prefixes":['
            async with aclosing(self._spool.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
            end = b"]"
        if next_after is not None:
            end += b',"next_after":%b' % _json.encode(next_after)
        yield end + b"}"

    async def close(self) -> None:
        """Close the spool."""
        await self._spool.close()


def _objects(page: ListPage) -> list[_Object]:
    return [_Object(info.key, info.size, info.etag, _timestamp(int(info.last_modified))) for info in page.objects]


def _name(line: _Object | _CommonPrefix) -> bytes:
    return (line.key if isinstance(line, _Object) else line.common_prefix).encode("utf-8")


def _items(entries: Sequence[object]) -> bytes:
    """Encode entries as a JSON array without its brackets."""
    return _json.encode(entries)[1:-1]


@lru_cache(maxsize=4096)
def _timestamp(seconds: int) -> str:
    """Format a time as in RFC 3339. It is cached, as many objects of a list may share a second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def list_query(request: Any) -> ListQuery:
    """Parse the query parameters of a list, except `limit`.

    Raises:
        InvalidKey: `prefix` or `after` cannot be the beginning of a key.
        InvalidRequest: the delimiter is empty or not UTF-8.
    """
    return ListQuery(
        prefix=parse_prefix(parameter(request, "prefix") or b""),
        delimiter=_delimiter(parameter(request, "delimiter")),
        after=parse_prefix(parameter(request, "after") or b"") or None,
    )


async def send_list(request: Any, query: ListQuery, pages: Pages, make_spool: Callable[[], Spool]) -> None:
    """Send a list in the form that the client accepts, with at most `limit` entries; for a HEAD, its headers.

    Raises:
        InvalidRequest: `limit` is not a positive integer.
    """
    is_head = request.method == b"HEAD"
    if is_head:
        # The first page decides on the status.
        query = replace(query, page_limit=1, limit=1)
    limited = LimitedList(query, count(request, "limit"), pages)
    ndjson = preference(request, (JSON, NDJSON)) == NDJSON
    writer = NdjsonWriter() if ndjson else DocumentWriter(query, make_spool())
    gate = BackpressureGate()
    request.registerProducer(gate, True)
    try:
        # A generator that is left early runs its `finally` blocks only when it is closed.
        async with aclosing(_pieces(writer, limited)) as pieces:
            async for piece in pieces:
                if not request.startedWriting:
                    # Not earlier, so that a list whose first page fails has the status of its error.
                    request.start_response(http.OK, [(b"Content-Type", writer.type), NOT_CACHED, BY_ACCEPT])
                if is_head:
                    break
                if piece:
                    request.write(piece)
                # Check on every page whether the client is still connected, even if nothing was written of the page.
                await gate.opened()
                if request.gone:
                    raise ConsumerGone
    finally:
        request.unregisterProducer()
        await writer.close()
    request.body_ended()


class LimitedList:
    """The first `limit` entries of a list, or all for None.

    Attributes:
        next_after: the last of these entries, if the list has more; set after the last page.
    """

    def __init__(self, query: ListQuery, limit: int | None, pages: Pages) -> None:
        if limit is not None:
            # One more entry than requested shows whether there are more.
            query = replace(query, page_limit=min(query.page_limit, limit + 1), limit=limit + 1)
        self._pages = pages(query)
        self._left = limit
        self.next_after: str | None = None

    async def pages(self) -> AsyncGenerator[ListPage, None]:
        """Yield the pages, cut after the last entry."""
        last = ""
        async with aclosing(self._pages) as pages:
            async for page in pages:
                if self._left is not None:
                    names = page.names()
                    if len(names) > self._left:
                        # If nothing is left of the limit, the last entry was on an earlier page.
                        self.next_after = names[self._left - 1] if self._left else last
                        yield page.up_to(self.next_after)
                        return
                    self._left -= len(names)
                    last = names[-1] if names else last
                yield page


async def _pieces(writer: DocumentWriter | NdjsonWriter, limited: LimitedList) -> AsyncGenerator[bytes, None]:
    async with aclosing(limited.pages()) as pages:
        async for page in pages:
            yield await writer.page(page)
    async with aclosing(writer.end(limited.next_after)) as end:
        async for piece in end:
            yield piece


def _delimiter(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    try:
        delimiter = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("delimiter is not UTF-8") from None
    if not delimiter:
        raise InvalidRequest("delimiter is empty")
    return delimiter
