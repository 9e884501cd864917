"""Lists as answers, written page by page as fast as the client takes them: nothing grows with the number of keys, and
the first bytes leave before the last page has been fetched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from twisted.web import http

from twisted_storaged.buckets.objects import ListPage, ListQuery
from twisted_storaged.deferreds import ConsumerGone, Gate
from twisted_storaged.errors import InvalidRequest
from twisted_storaged.keys import parse_prefix
from twisted_storaged.spool import Spool
from twisted_storaged.web.fields import count, field, parameter
from twisted_storaged.web.listforms import NDJSON, Document, Lines

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


async def answer_list(request: Any, query: ListQuery, pages: Pages, make_spool: Callable[[], Spool]) -> None:
    """Answer with a list, in the form that the client accepts, of as many entries as it asks for.

    Raises:
        InvalidRequest: the limit is no number.
    """
    limited = Limited(query, count(request, "limit"), pages)
    form = Lines() if NDJSON in (field(request, "Accept") or "").lower() else Document(query, make_spool())
    gate = Gate()
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


class Limited:
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


async def _pieces(form: Document | Lines, limited: Limited) -> AsyncGenerator[bytes, None]:
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
