"""What the verbs do. All decisions about a PUT fall before its body; those about a GET, on the object that is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_to_bytes

from twisted_storaged.admission import PutSlots
from twisted_storaged.api.listing import list_query, send_list
from twisted_storaged.api.preconditions import (
    READ_FIELDS,
    WRITE_FIELDS,
    NotModified,
    ReadConditions,
    read_conditions,
    write_condition,
)
from twisted_storaged.api.responses import send_empty, send_not_modified, send_stored, start_object_response
from twisted_storaged.errors import InvalidKey, InvalidRequest, PayloadTooLarge
from twisted_storaged.interfaces import IBucket, IObjectReader
from twisted_storaged.model import ByteRange, Condition, PutOptions, Span, parse_key
from twisted_storaged.protocol.http_fields import expected_digests, field, parameter, repr_digest, wanted_algorithm
from twisted_storaged.protocol.metadata import metadata_of_request
from twisted_storaged.routing import Namespace
from twisted_storaged.runtime.files import Spool
from twisted_storaged.server.request import StreamingRequest

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class ObjectHandlers:
    """What the verb paths do: in the one space of keys, or in the `bucket` of a path, or of a query."""

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
        """Store the body: the key, the other headers, its length, and a free slot are asked for before it is read."""
        key, bucket = self._place(request)
        options, algorithm = _put_options(request)
        cap = self._namespace.rule_for(key).max_put
        if request.body.declared is not None and request.body.declared > cap:
            raise PayloadTooLarge(f"{request.body.declared} bytes are declared, {cap} allowed")
        self._slots.acquire()
        try:
            request.body.limit(cap)
            info = await bucket.put(key, request.body, cap, options)
        finally:
            self._slots.release()
        digest = [] if algorithm is None else repr_digest(algorithm, info.digests)
        send_stored(request, info, digest)

    async def get(self, request: StreamingRequest) -> None:
        """Send an object, or a range of it."""
        key, bucket = self._place(request)
        conditions = None if READ_FIELDS.isdisjoint(request.fields) else read_conditions(request)
        algorithm = wanted_algorithm(request)
        try:
            reader, span = await _open(bucket, key, conditions)
        except NotModified as found:
            send_not_modified(request, found.info)
            return
        if request.gone:
            reader.close()
            return
        try:
            start_object_response(request, reader.info, span, algorithm)
        except BaseException:
            reader.close()
            raise
        await reader.deliver(request)

    async def head(self, request: StreamingRequest) -> None:
        """Say what an object is."""
        key, bucket = self._place(request)
        conditions = None if READ_FIELDS.isdisjoint(request.fields) else read_conditions(request)
        algorithm = wanted_algorithm(request)
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
        pages = partial(self._namespace.pages, name=self._bucket_of(request))
        await send_list(request, list_query(request), pages, self._make_spool)

    async def delete(self, request: StreamingRequest) -> None:
        """See to it that the key has no object."""
        key, bucket = self._place(request)
        await bucket.delete(key, _condition(request))
        send_empty(request)

    def _place(self, request: StreamingRequest) -> tuple[str, IBucket]:
        key = parse_key(_rest_of_path(request))
        return key, self._namespace.bucket_for(key, self._bucket_of(request))

    def _bucket_of(self, request: StreamingRequest) -> str | None:
        """The name that the path says, or, where the path is of no bucket, the query."""
        if self._bucket is not None:
            return self._bucket
        named = parameter(request, "bucket")
        return None if named is None else named.decode("utf-8", "replace")


def _put_options(request: StreamingRequest) -> tuple[PutOptions, str | None]:
    """What comes with a body, and the algorithm of the digest that the answer is to have."""
    if field(request, "Content-Range") is not None:
        # RFC 9110, 14.5: part of an object must not be taken for all of it.
        raise InvalidRequest("Content-Range is not for a PUT")
    algorithm = wanted_algorithm(request)
    wanted = frozenset([algorithm] if algorithm else [])
    return PutOptions(
        metadata_of_request(request), write_condition(request), expected_digests(request), wanted
    ), algorithm


def _condition(request: StreamingRequest) -> Condition | None:
    return None if WRITE_FIELDS.isdisjoint(request.fields) else write_condition(request)


async def _open(bucket: IBucket, key: str, conditions: ReadConditions | None) -> tuple[IObjectReader, Span | None]:
    """Open what is wanted, and say which span of it is sent, if not the whole.

    A look at the object comes first, where that may spare its bytes; but it is the object whose bytes are sent that
    must meet the conditions.
    """
    if conditions is None:
        return await bucket.get(key), None
    wanted = conditions.apply(await bucket.head(key)) if conditions.depends else conditions.wanted
    reader = await bucket.get(key, wanted)
    if _applied(conditions, reader) != wanted:
        # Another object by now, and no part of it goes with what the client has.
        reader.close()
        wanted, reader = None, await bucket.get(key)
        _applied(conditions, reader)
    return reader, None if wanted is None else reader.span


def _applied(conditions: ReadConditions, reader: IObjectReader) -> ByteRange | None:
    """The range that is to be sent of what is open; where a condition does not hold, it is closed."""
    try:
        return conditions.apply(reader.info)
    except BaseException:
        reader.close()
        raise


def _rest_of_path(request: StreamingRequest) -> bytes:
    """What follows the resource in the path, percent-decoded once, embedded and doubled slashes included."""
    rest = b"/".join(request.path[1:].split(b"/")[len(request.prepath) :])
    if b"%" not in rest:
        return rest
    if _BAD_ESCAPE.search(rest):
        raise InvalidKey("key has a % that is not followed by two hex digits")
    return unquote_to_bytes(rest)
