"""Lists as responses: JSON or NDJSON, written page by page as fast as the client takes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from typing import Any

from twisted.web import http

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import ListPage, ListQuery, ObjectInfo, parse_prefix
from twisted_storaged.protocol.http_fields import count, field, parameter
from twisted_storaged.runtime.concurrency import BackpressureGate, ConsumerGone
from twisted_storaged.runtime.files import Spool

# The forms that a list can have: the contract's one JSON document, or NDJSON, a line for each entry.

#: The media type of a line for each entry. https://github.com/ndjson/ndjson-spec
NDJSON = "application/x-ndjson"


class NdjsonWriter:
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


class DocumentWriter:
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
