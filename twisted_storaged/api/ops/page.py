"""GET /: a page that shows what is under way, and browses, uploads and deletes objects.

It is for people on this host: nothing of it is loaded from elsewhere. No stored byte is part of it, and keys are texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.http import OK, SEE_OTHER
from twisted.web.resource import Resource
from twisted.web.template import Element, flattenString
from zope.interface import implementer

from twisted_storaged.admission import PutSlots
from twisted_storaged.api.handlers import Branch, Handler, MethodResource, ObjectHandlers, Operation
from twisted_storaged.api.listing import LimitedList
from twisted_storaged.api.ops.cross_site import Tokens, check_host, check_same_site
from twisted_storaged.api.ops.page_elements import (
    ConfirmElement,
    Entry,
    Listing,
    PageElement,
    folder_of,
    list_url,
    name_of,
)
from twisted_storaged.api.ops.page_events import EventStreams
from twisted_storaged.api.ops.page_view import view
from twisted_storaged.api.responses import NOT_CACHED
from twisted_storaged.errors import BucketError, InvalidKey, PayloadTooLarge, StorageError, in_words
from twisted_storaged.model import ListQuery, parse_key, parse_prefix
from twisted_storaged.protocol.http_fields import field, parameter, query_value
from twisted_storaged.routing import Namespace
from twisted_storaged.runtime.concurrency import deferred
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.server.request import StreamingRequest
from twisted_storaged.status import Status

#: Entries of a list on one page.
PAGE_ENTRIES = 50
#: Seconds that the page waits for a list.
LIST_SECONDS = 5
#: Bytes of a form: a key of 1 KiB has three times as many when it is encoded.
MOST_FORM = 8 << 10
#: The field with the token of an upload, which no other site can send without having asked.
TOKEN_FIELD = "X-Storaged-Token"  # noqa: S105 (a name)

#: All that a browser may load or do: https://www.w3.org/TR/CSP3/ . Trusted Types make it refuse HTML that a script has
#: put together: https://www.w3.org/TR/trusted-types/
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    b"base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    (b"Content-Type", b"text/html; charset=utf-8"),
    (b"Content-Security-Policy", POLICY),
    (b"X-Content-Type-Options", b"nosniff"),
    # With `no-referrer`, browsers would not tell the origin of a form.
    (b"Referrer-Policy", b"same-origin"),
    NOT_CACHED,
)

_FOLDER = Path(__file__).parent
_ASSETS = {"page.css": "text/css", "page.js": "text/javascript", "page.svg": "image/svg+xml"}

_T = TypeVar("_T")

_log = Logger()


class Page:
    """The handlers of the page."""

    def __init__(  # noqa: PLR0913 (its parts)
        self,
        collect: Callable[[], Deferred[Status]],
        namespace: Namespace,
        slots: PutSlots,
        buckets: Sequence[str],
        tokens: Tokens,
        meters: Meters,
        reactor: Any,
    ) -> None:
        """Show what `collect` returns, and the objects of `namespace`, in all or one of `buckets`."""
        self._collect = collect
        self._namespace = namespace
        self._objects = ObjectHandlers(namespace, slots)
        self._buckets = buckets
        self._tokens = tokens
        self._reactor = reactor
        self._streams = EventStreams(self._event, meters, reactor)

    def resources(self) -> Mapping[bytes, Resource]:
        """Make the resources, by the first segment of the path."""
        page = Branch()
        for name, media_type in _ASSETS.items():
            page.putChild(name.encode("ascii"), _asset(_FOLDER / name, media_type))
        page.putChild(b"events", _read_only("page_events", self.events))
        page.putChild(
            b"delete",
            MethodResource(
                {
                    b"GET": Operation("page", self.confirm),
                    b"HEAD": Operation("page", self.confirm),
                    b"POST": Operation("delete", self.delete),
                }
            ),
        )
        page.putChild(b"upload", MethodResource({b"PUT": Operation("put", self.upload)}, isLeaf=True))
        return {b"": _read_only("page", self.show), b"page": page}

    async def show(self, request: StreamingRequest) -> None:
        """Send the page."""
        check_host(request)
        listing = await self._list(request)
        status = await self._collect()
        await _send(request, PageElement(view(status, self._tokens.make()), listing, self._pause))

    async def events(self, request: StreamingRequest) -> None:
        """Send what the page shows, each second."""
        check_same_site(request)
        await self._streams.serve(request)

    async def confirm(self, request: StreamingRequest) -> None:
        """Ask whether the object is to be deleted."""
        check_host(request)
        named = _text(parameter(request, "bucket"))
        key = parse_key(parameter(request, "key") or b"")
        bucket = self._namespace.bucket_for(key, named or None)
        info = await bucket.head(key)
        await _send(request, ConfirmElement(info, bucket.name, named, self._tokens.make()))

    async def delete(self, request: StreamingRequest) -> None:
        """Remove the object that a form names."""
        check_same_site(request)
        form = await _read(request, MOST_FORM)
        self._tokens.check(_text(query_value(form, "token")))
        named = _text(query_value(form, "bucket"))
        key = request.key = parse_key(query_value(form, "key") or b"")
        bucket = self._namespace.bucket_for(key, named or None)
        request.bucket = bucket.name
        await bucket.delete(key)
        location = list_url(named, folder_of(key)).encode("ascii")
        request.start_response(SEE_OTHER, [(b"Location", location), NOT_CACHED], 0)

    async def upload(self, request: StreamingRequest) -> None:
        """Store the body, as a PUT of the object does."""
        # Before anything of the body is read.
        check_same_site(request)
        self._tokens.check(field(request, TOKEN_FIELD))
        await self._objects.put(request)

    @deferred
    async def _event(self) -> bytes:
        return msgspec.json.encode(view(await self._collect(), self._tokens.make()))

    async def _list(self, request: StreamingRequest) -> Listing:
        """List what the query asks for. Whatever fails, the rest of the page is shown."""
        buckets, bucket = self._buckets, _text(parameter(request, "bucket"))
        try:
            prefix = parse_prefix(parameter(request, "prefix") or b"")
            after = parse_prefix(parameter(request, "after") or b"")
        except InvalidKey as error:
            return Listing(buckets, bucket, error=str(error))
        query = ListQuery(prefix, "/", after or None)
        try:
            entries, next_after = await self._within(LIST_SECONDS, self._entries(query, bucket or None))
        except DeferredTimeout:
            return Listing(buckets, bucket, prefix, error=f"There is no answer within {LIST_SECONDS} s.")
        except StorageError as error:
            if isinstance(error, BucketError):
                _log.error("the page has no list: {kind}: {error}", kind=type(error).__name__, error=error)
            return Listing(buckets, bucket, prefix, error=f"There is no list: {in_words(type(error))}.")
        return Listing(buckets, bucket, prefix, entries, next_after)

    @deferred
    async def _entries(self, query: ListQuery, bucket: str | None) -> tuple[Sequence[Entry], str | None]:
        limited = LimitedList(query, PAGE_ENTRIES, partial(self._namespace.pages, name=bucket))
        entries: list[Entry] = []
        async for page in limited.pages():
            entries += [*page.objects, *page.prefixes]
        # Each kind is in order on its own.
        return sorted(entries, key=lambda entry: name_of(entry).encode("utf-8")), limited.next_after

    def _pause(self) -> Deferred[str]:
        return deferLater(self._reactor, 0, lambda: "")

    def _within(self, seconds: float, work: Deferred[_T]) -> Deferred[_T]:
        """Wait for `work` for a limited time. It is not cancelled, as it may hold a connection."""
        outcome: Deferred[_T] = Deferred()
        work.addBoth(outcome.callback)
        return outcome.addTimeout(seconds, self._reactor)


async def _send(request: StreamingRequest, element: Element) -> None:
    """Send a page of HTML, with a policy of its own in place of that of stored objects."""
    body = b"<!DOCTYPE html>\n" + await flattenString(None, element)
    request.is_inert = False
    request.start_response(OK, _HEADERS, len(body))
    if request.method != b"HEAD":
        request.write(body)


def _asset(path: Path, media_type: str) -> Resource:
    """Make the resource of a file of this package, which is read now."""
    content = path.read_bytes()
    headers = [(b"Content-Type", f"{media_type}; charset=utf-8".encode("ascii")), NOT_CACHED]

    async def get(request: StreamingRequest) -> None:
        request.start_response(OK, headers, len(content))
        if request.method != b"HEAD":
            request.write(content)

    return _read_only("page", get)


def _read_only(operation: str, handler: Handler) -> Resource:
    return MethodResource(dict.fromkeys([b"GET", b"HEAD"], Operation(operation, handler)))


@implementer(IConsumer)
class _Collector:
    """Keeps what a body has."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """Add some."""
        self.data += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Do nothing: it takes what comes."""

    def unregisterProducer(self) -> None:
        """Do nothing."""


async def _read(request: StreamingRequest, most: int) -> bytes:
    """Read a small body.

    Raises:
        PayloadTooLarge: it has more than `most` bytes.
        BodyLost, BodyStalled: it did not come.
    """
    if (request.body.declared or 0) > most:
        raise PayloadTooLarge(f"{request.body.declared} bytes are declared, {most} allowed")
    request.body.limit(most)
    collector = _Collector()
    await request.body.startProducing(collector)
    return collector.data


def _text(value: bytes | None) -> str:
    """A parameter as text, which is compared with texts only."""
    return (value or b"").decode("utf-8", "replace")
