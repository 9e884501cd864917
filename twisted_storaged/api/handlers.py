"""The resource tree, and what each method does with a bucket. Responses and lists are made elsewhere in `api`.

Everything about a PUT is decided before its body is read; everything about a GET, on the object whose bytes are sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from twisted_storaged.admission import PutSlots
from twisted_storaged.api.listing import list_query, send_list
from twisted_storaged.api.preconditions import (
    NotModified,
    ReadConditions,
    read_conditions,
    write_condition,
)
from twisted_storaged.api.responses import (
    send_empty,
    send_error,
    send_failure,
    send_json,
    send_not_modified,
    send_stored,
    start_object_response,
)
from twisted_storaged.errors import InvalidKey, InvalidRequest, MethodNotAllowed, PayloadTooLarge, UnknownPath
from twisted_storaged.interfaces import IBucket, IObjectReader
from twisted_storaged.model import NO_OPTIONS, ORIGIN, ByteRange, PutOptions, Span, parse_key
from twisted_storaged.protocol.http_fields import expected_digests, field, parameter, repr_digest, wanted_algorithm
from twisted_storaged.protocol.metadata import metadata_of_request
from twisted_storaged.routing import Namespace
from twisted_storaged.runtime.concurrency import run_coroutine
from twisted_storaged.runtime.files import Spool
from twisted_storaged.server.request import StreamingRequest

Handler = Callable[[StreamingRequest], Coroutine[Deferred[Any], Any, None]]


class Operation(NamedTuple):
    """What a method of a resource does: its name, for logs and metrics, and its handler."""

    name: str
    handler: Handler


#: Header fields on which no handler of objects acts: those that the server has acted on already, and those that only a
#: list needs. A request without others, as most are, skips the parsers of conditions, digests and metadata. To leave a
#: field out costs only time; to list one that a parser acts on would make storaged ignore it.
PLAIN_FIELDS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "traceparent",
        "tracestate",
        "transfer-encoding",
        "user-agent",
        "x-request-id",
    }
)

#: No resources for operators.
NO_OPS: Mapping[bytes, Resource] = MappingProxyType({})

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class ObjectHandlers:
    """The handlers of objects and lists: in the one space of keys, or in the `bucket` that a path or query names."""

    def __init__(
        self,
        namespace: Namespace,
        slots: PutSlots,
        bucket: str | None = None,
        make_spool: Callable[[], Spool] = Spool,
    ) -> None:
        self._namespace = namespace
        self._slots = slots
        self._bucket = bucket
        self._make_spool = make_spool

    async def put(self, request: StreamingRequest) -> None:
        """Store the body, which is read once key, headers, declared length and a free slot have been checked."""
        key, bucket = self._target(request)
        options, algorithm = _put_options(request)
        rule = self._namespace.rule_for(key)
        cap = rule.max_put
        # A declared length is refused before a slot is taken; `limit` refuses a chunked body once it exceeds the cap.
        if request.body.declared is not None and request.body.declared > cap:
            raise PayloadTooLarge(f"{request.body.declared} bytes are declared, {cap} allowed")
        slot = self._slots.acquire(rule.prefix, rule.slots)
        slot.holder = request
        try:
            request.body.limit(cap)
            info = await bucket.put(key, request.body, cap, options)
        finally:
            # A bucket fails only after it has aborted, so its memory is free when the slot is taken again.
            slot.release()
        send_stored(request, info, [] if algorithm is None else repr_digest(algorithm, info.digests))

    async def get(self, request: StreamingRequest) -> None:
        """Send an object, or a range of it."""
        key, bucket = self._target(request)
        conditions, algorithm = _read_options(request)
        try:
            reader, span = await _open(bucket, key, conditions)
        except NotModified as found:
            send_not_modified(request, found.info)
            return
        if request.gone:
            # The client disconnected while the object was being opened.
            reader.close()
            return
        try:
            start_object_response(request, reader.info, span, algorithm)
        except BaseException:
            reader.close()
            raise
        await reader.deliver(request)

    async def head(self, request: StreamingRequest) -> None:
        """Send the headers that a GET of the whole object would have."""
        key, bucket = self._target(request)
        conditions, algorithm = _read_options(request)
        try:
            info = await bucket.head(key)
            if conditions is not None:
                conditions.apply(info)
        except NotModified as found:
            send_not_modified(request, found.info)
            return
        start_object_response(request, info, None, algorithm)

    async def list(self, request: StreamingRequest) -> None:
        """Send the list of a prefix."""
        pages = partial(self._namespace.pages, name=self._bucket_name(request))
        await send_list(request, list_query(request), pages, self._make_spool)

    async def delete(self, request: StreamingRequest) -> None:
        """Remove the object, if there is one."""
        key, bucket = self._target(request)
        await bucket.delete(key, write_condition(request))
        send_empty(request)

    def _target(self, request: StreamingRequest) -> tuple[str, IBucket]:
        key = request.key = parse_key(_rest_of_path(request))
        bucket = self._namespace.bucket_for(key, self._bucket_name(request))
        request.bucket = bucket.name
        return key, bucket

    def _bucket_name(self, request: StreamingRequest) -> str | None:
        """The bucket that the path names or, if the path names none, the query."""
        # Compared with None: `/buckets//objects/k` names the empty bucket, which does not exist, and not the query's.
        if self._bucket is not None or b"?" not in request.uri:
            return self._bucket
        named = parameter(request, "bucket")
        return None if named is None else named.decode("utf-8", "replace")


def _put_options(request: StreamingRequest) -> tuple[PutOptions, str | None]:
    """Parse what a PUT says of its body, and the algorithm of the digest that its response is to have."""
    if PLAIN_FIELDS.issuperset(request.fields):
        return NO_OPTIONS, None
    if field(request, "Content-Range") is not None:
        # RFC 9110, 14.5: part of an object must not be taken for all of it.
        raise InvalidRequest("Content-Range is not for a PUT")
    algorithm = wanted_algorithm(request)
    wanted = frozenset([algorithm] if algorithm else [])
    metadata = metadata_of_request(request)
    return PutOptions(metadata, write_condition(request), expected_digests(request), wanted), algorithm


def _read_options(request: StreamingRequest) -> tuple[ReadConditions | None, str | None]:
    """Parse the conditions and range of a GET or HEAD, and the algorithm of the digest that its response is to have."""
    if PLAIN_FIELDS.issuperset(request.fields):
        return None, None
    return read_conditions(request), wanted_algorithm(request)


async def _open(bucket: IBucket, key: str, conditions: ReadConditions | None) -> tuple[IObjectReader, Span | None]:
    """Open what is to be sent; the span is None for the whole object."""
    if conditions is None:
        return await bucket.get(key), None
    # A HEAD comes first if a condition may spare the bytes. The object may be replaced before the GET, so that the
    # conditions are applied once more, to what was opened.
    wanted = conditions.apply(await bucket.head(key)) if conditions.depends else conditions.wanted
    reader = await bucket.get(key, wanted)
    if _applied(conditions, reader) != wanted:
        # The object was replaced after the HEAD, and the range is not to be taken from the new one.
        reader.close()
        wanted, reader = None, await bucket.get(key)
        _applied(conditions, reader)
    return reader, None if wanted is None else reader.span


def _applied(conditions: ReadConditions, reader: IObjectReader) -> ByteRange | None:
    """Apply conditions to an open object; returns the range to send, and closes it if one does not hold."""
    try:
        return conditions.apply(reader.info)
    except BaseException:
        reader.close()
        raise


def _rest_of_path(request: StreamingRequest) -> bytes:
    """The path after the resource, percent-decoded once, with embedded and doubled slashes."""
    # Not `postpath`, whose segments were decoded without a check of their escapes.
    rest = b"/".join(request.path[1:].split(b"/")[len(request.prepath) :])
    if b"%" not in rest:
        return rest
    if _BAD_ESCAPE.search(rest):
        raise InvalidKey("key has a % that is not followed by two hex digits")
    return unquote_to_bytes(rest)


class Branch(Resource):
    """A path that has no methods of its own: 404."""

    def getChild(self, path: bytes, request: StreamingRequest) -> Resource:
        # Not Twisted's NoResource, whose page is HTML.
        return Branch()

    def render(self, request: StreamingRequest) -> int:
        send_error(request, UnknownPath())
        request.finish()
        return NOT_DONE_YET


class MethodResource(Branch):
    """A resource with a handler for each of its methods. With `isLeaf`, the rest of the path is a key.

    A handler begins a response and writes its body. It does not end it: `StreamingRequest.finish` does when the handler
    has returned, and checks that the body is complete.
    """

    def __init__(self, operations: Mapping[bytes, Operation], isLeaf: bool = False) -> None:
        super().__init__()
        self.isLeaf = isLeaf
        self._operations = operations

    def render(self, request: StreamingRequest) -> int:
        operation = self._operations.get(request.method)
        if operation is None:
            send_error(request, MethodNotAllowed(self._operations))
            request.finish()
        else:
            request.operation = operation.name
            context = copy_context()
            context.run(ORIGIN.set, request)
            run_coroutine(operation.handler(request), request.finish, partial(send_failure, request=request), context)
        return NOT_DONE_YET


class BucketsResource(Branch):
    """/buckets: a subtree for each name, whether or not there is such a bucket."""

    def __init__(self, handlers_of: Callable[[str], ObjectHandlers]) -> None:
        super().__init__()
        self._handlers_of = handlers_of

    def getChild(self, path: bytes, request: StreamingRequest) -> Resource:
        # Made for each request, since there are no resources for names that the registry does not know.
        handlers = self._handlers_of(path.decode("utf-8", "replace"))
        bucket = Branch()
        bucket.putChild(b"objects", MethodResource(_operations(handlers), isLeaf=True))
        bucket.putChild(b"list", MethodResource(dict.fromkeys([b"GET", b"HEAD"], Operation("list", handlers.list))))
        return bucket


def make_tree(
    namespace: Namespace,
    slots: PutSlots,
    make_spool: Callable[[], Spool] = Spool,
    ops: Mapping[bytes, Resource] = NO_OPS,
) -> Resource:
    """Make the root of all paths.

    Lists buffer common prefixes in what `make_spool` returns. `ops` are what operators ask for, by the first segment
    of the path.
    """
    handlers = ObjectHandlers(namespace, slots, make_spool=make_spool)
    objects = _operations(handlers)
    storage = Branch()
    storage.putChild(b"put", MethodResource({b"PUT": objects[b"PUT"]}, isLeaf=True))
    storage.putChild(b"get", MethodResource({name: objects[name] for name in (b"GET", b"HEAD")}, isLeaf=True))
    storage.putChild(b"delete", MethodResource({b"DELETE": objects[b"DELETE"]}, isLeaf=True))
    storage.putChild(b"list", MethodResource(dict.fromkeys([b"GET", b"HEAD"], Operation("list", handlers.list))))
    root = Branch()
    root.putChild(b"storage", storage)
    root.putChild(b"objects", MethodResource(objects, isLeaf=True))
    root.putChild(b"buckets", BucketsResource(partial(ObjectHandlers, namespace, slots, make_spool=make_spool)))
    root.putChild(b"health", MethodResource(dict.fromkeys([b"GET", b"HEAD"], Operation("health", _health))))
    for segment, resource in ops.items():
        root.putChild(segment, resource)
    return root


def _operations(handlers: ObjectHandlers) -> Mapping[bytes, Operation]:
    """The methods of an object."""
    return {
        b"GET": Operation("get", handlers.get),
        b"HEAD": Operation("head", handlers.head),
        b"PUT": Operation("put", handlers.put),
        b"DELETE": Operation("delete", handlers.delete),
    }


async def _health(request: StreamingRequest) -> None:
    send_json(request, {"status": "ok"})
