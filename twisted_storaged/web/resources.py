"""The resource tree of the verb paths, and what each verb does. All decisions about a PUT fall before its body."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from twisted_storaged.admission import PutSlots
from twisted_storaged.errors import InvalidKey, PayloadTooLarge
from twisted_storaged.keys import parse_key, parse_prefix
from twisted_storaged.namespace import Namespace
from twisted_storaged.transports import flush
from twisted_storaged.web.request import StreamingRequest
from twisted_storaged.web.responses import (
    answer_failure,
    answer_json,
    answer_list,
    answer_nothing,
    answer_text,
    start_object,
)

Handler = Callable[[StreamingRequest], Coroutine[Deferred[Any], Any, None]]

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Tree(Resource):
    """A place in the tree that is nothing itself."""

    def getChild(self, path: bytes, request: StreamingRequest) -> Resource:
        return Tree()

    def render(self, request: StreamingRequest) -> int:
        answer_text(request, http.NOT_FOUND, "not found")
        return NOT_DONE_YET


class Endpoint(Tree):
    """A resource that answers some methods, each with a coroutine. With `isLeaf`, the rest of the path is a key."""

    def __init__(self, handlers: Mapping[bytes, Handler], isLeaf: bool = False) -> None:
        super().__init__()
        self.isLeaf = isLeaf
        self._handlers = handlers

    def render(self, request: StreamingRequest) -> int:
        handler = self._handlers.get(request.method)
        if handler is None:
            allow = [(b"Allow", b", ".join(self._handlers))]
            answer_text(request, http.NOT_ALLOWED, "method not allowed", allow)
        else:
            Deferred.fromCoroutine(handler(request)).addErrback(answer_failure, request)
        return NOT_DONE_YET


class Verbs:
    """What the verb paths do."""

    def __init__(self, namespace: Namespace, slots: PutSlots) -> None:
        self._namespace = namespace
        self._slots = slots

    async def put(self, request: StreamingRequest) -> None:
        """Store the body: the key, its length, and a free slot are asked for, in this order, before it is read."""
        key = parse_key(_rest_of_path(request))
        cap = self._namespace.rule_for(key).max_put
        if request.body.declared is not None and request.body.declared > cap:
            raise PayloadTooLarge(f"{request.body.declared} bytes are declared, {cap} allowed")
        self._slots.acquire()
        try:
            request.body.limit(cap)
            info = await self._namespace.bucket_for(key).put(key, request.body, cap)
        finally:
            self._slots.release()
        answer_json(request, {"status": "ok", "key": key, "size": info.size, "etag": info.etag})

    async def get(self, request: StreamingRequest) -> None:
        """Send an object; for HEAD, only say what it is."""
        key = parse_key(_rest_of_path(request))
        reader = await self._namespace.bucket_for(key).get(key)
        if request.gone:
            reader.close()
            return
        start_object(request, reader.info)
        if request.method == b"HEAD":
            reader.close()
        else:
            await reader.deliver(request)
        if not request.gone:
            flush(request.transport)
            request.finish()

    async def list(self, request: StreamingRequest) -> None:
        """Send the list of a prefix."""
        query = http.parse_qs(request.uri.partition(b"?")[2], keep_blank_values=True)
        prefix = parse_prefix(query.get(b"prefix", [b""])[0])
        await answer_list(request, prefix, self._namespace.pages(prefix))

    async def delete(self, request: StreamingRequest) -> None:
        """See to it that the key has no object."""
        key = parse_key(_rest_of_path(request))
        await self._namespace.bucket_for(key).delete(key)
        answer_nothing(request)


def make_tree(namespace: Namespace, slots: PutSlots) -> Resource:
    """The root of all paths."""
    verbs = Verbs(namespace, slots)
    storage = Tree()
    storage.putChild(b"put", Endpoint({b"PUT": verbs.put}, isLeaf=True))
    storage.putChild(b"get", Endpoint({b"GET": verbs.get, b"HEAD": verbs.get}, isLeaf=True))
    storage.putChild(b"delete", Endpoint({b"DELETE": verbs.delete}, isLeaf=True))
    storage.putChild(b"list", Endpoint({b"GET": verbs.list}))
    root = Tree()
    root.putChild(b"storage", storage)
    root.putChild(b"health", Endpoint({b"GET": _health, b"HEAD": _health}))
    return root


async def _health(request: StreamingRequest) -> None:
    answer_json(request, {"status": "ok"})


def _rest_of_path(request: StreamingRequest) -> bytes:
    """What follows the resource in the path, percent-decoded once, embedded and doubled slashes included."""
    rest = b"/".join(request.path[1:].split(b"/")[len(request.prepath) :])
    if _BAD_ESCAPE.search(rest):
        raise InvalidKey("key has a % that is not followed by two hex digits")
    return unquote_to_bytes(rest)
