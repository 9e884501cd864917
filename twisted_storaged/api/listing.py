"""Lists as responses: JSON or NDJSON, written page by page as fast as the client takes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from twisted.web import http

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import ListPage, ListQuery, parse_prefix
from twisted_storaged.protocol.http_fields import count, field, parameter
from twisted_storaged.runtime.concurrency import BackpressureGate, ConsumerGone
from twisted_storaged.runtime.files import Spool

# The forms that a list can have: the contract's one JSON document, or NDJSON, a line for each entry.

#: The media type of a line for each entry. https://github.com/ndjson/ndjson-spec
NDJSON = "application/x-ndjson"

_json = msgspec.json.Encoder()


class _Object(msgspec.Struct, gc=False):
    """The entry of an object. Its fields have the order of the contract."""

    key: str
    size: int
    etag: str
    last_modified: str


class _CommonPrefix(msgspec.Struct, gc=False):
    """The line of a common prefix."""

    common_prefix: str


class NdjsonWriter:
    """NDJSON: objects and common prefixes in one order, and at the end where to go on, if there is more."""

    type = NDJSON.encode("ascii")

    async def page(self, page: ListPage) -> bytes:
        """The lines of a page."""
        lines: list[_Object | _CommonPrefix] = [*_objects(page)]
        if page.prefixes:
            lines += map(_CommonPrefix, page.prefixes)
            lines.sort(key=_name)
        return _json.encode_lines(lines)

    async def end(self, next_after: str | None) -> AsyncGenerator[bytes, None]:
        """What comes after the last page."""
        if next_after is not None:
            yield _json.encode({"next_after": next_after}) + b"\n"

    async def close(self) -> None:
        """Nothing is kept."""


class DocumentWriter:
    """One JSON document: its objects, then its common prefixes, then where to go on, if there is more.

    Objects go out as they come. Common prefixes, which come among them, are kept in a spool until the objects are out:
    to list them a second time would cost as much again, and find others.
    """

    type = b"application/json"

    def __init__(self, query: ListQuery, spool: Spool) -> None:
        self._lead = b'{"prefix":%b,"objects":[' % _json.encode(query.prefix)
        self._with_prefixes = query.delimiter is not None
        self._spool = spool
        self._spooled = False

    async def page(self, page: ListPage) -> bytes:
        """The objects of a page."""
        if page.prefixes:
            comma = b"," if self._spooled else b""
            self._spooled = True
            await self._spool.add(comma + _items(page.prefixes))
        if not page.objects:
            return b""
        lead, self._lead = self._lead, b","
        return lead + _items(_objects(page))

    async def end(self, next_after: str | None) -> AsyncGenerator[bytes, None]:
        """What comes after the last page."""
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
        """Let go of what is kept."""
        await self._spool.close()


def _objects(page: ListPage) -> list[_Object]:
    return [_Object(info.key, info.size, info.etag, _timestamp(int(info.last_modified))) for info in page.objects]


def _name(line: _Object | _CommonPrefix) -> bytes:
    return (line.key if isinstance(line, _Object) else line.common_prefix).encode("utf-8")


def _items(entries: Sequence[object]) -> bytes:
    """The entries as in a JSON array, without its brackets."""
    return _json.encode(entries)[1:-1]


@lru_cache(maxsize=4096)
def _timestamp(seconds: int) -> str:
    """The time as RFC 3339 has it; objects are often put many at a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Lists as answers, written page by page as fast as the client takes them: nothing grows with the number of keys, and
# the first bytes leave before the last page has been fetched.

#: The pages of a query.
Pages = Callable[[ListQuery], AsyncGenerator[ListPage, None]]


def list_query(request: Any) -> ListQuery:
    """What a request wants listed.

    Raises:
        InvalidKey: the prefix, or `after`, cannot be the beginning of a key.
        InvalidRequest: the delimiter is empty or not UTF-8.
    """
    return ListQuery(
        prefix=parse_prefix(parameter(request, "prefix") or b""),
        delimiter=_delimiter(parameter(request, "delimiter")),
        after=parse_prefix(parameter(request, "after") or b"") or None,
    )


async def send_list(request: Any, query: ListQuery, pages: Pages, make_spool: Callable[[], Spool]) -> None:
    """Answer with a list, in the form that the client accepts, of as many entries as it asks for.

    Raises:
        InvalidRequest: the limit is no number.
    """
    limited = LimitedList(query, count(request, "limit"), pages)
    form = NdjsonWriter() if NDJSON in (field(request, "Accept") or "").lower() else DocumentWriter(query, make_spool())
    gate = BackpressureGate()
    request.registerProducer(gate, True)
    try:
        async with aclosing(_pieces(form, limited)) as pieces:
            async for piece in pieces:
                if not request.startedWriting:
                    request.start_answer(http.OK, [(b"Content-Type", form.type)])
                if piece:
                    request.write(piece)
                # On every page, also where nothing is written of it yet: is the client still there?
                await gate.opened()
                if request.gone:
                    raise ConsumerGone
    finally:
        request.unregisterProducer()
        await form.close()
    request.body_ended()


class LimitedList:
    """The first entries of a list, at most `limit`; all, for None.

    Attributes:
        next_after: the last of them, if there are more; known after the last page.
    """

    def __init__(self, query: ListQuery, limit: int | None, pages: Pages) -> None:
        if limit is not None:
            # One more than is asked for says whether there are more.
            query = replace(query, page_limit=min(query.page_limit, limit + 1), limit=limit + 1)
        self._pages = pages(query)
        self._left = limit
        self.next_after: str | None = None

    async def pages(self) -> AsyncGenerator[ListPage, None]:
        """The pages, up to the last entry that is wanted."""
        last = ""
        async with aclosing(self._pages) as pages:
            async for page in pages:
                if self._left is not None:
                    names = page.names()
                    if len(names) > self._left:
                        self.next_after = names[self._left - 1] if self._left else last
                        yield page.up_to(self.next_after)
                        return
                    self._left -= len(names)
                    last = names[-1] if names else last
                yield page


async def _pieces(form: DocumentWriter | NdjsonWriter, limited: LimitedList) -> AsyncGenerator[bytes, None]:
    async with aclosing(limited.pages()) as pages:
        async for page in pages:
            yield await form.page(page)
    async with aclosing(form.end(limited.next_after)) as end:
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
