"""The resource tree: which path answers which methods, and with which verb."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from twisted_storaged.admission import PutSlots
from twisted_storaged.api.handlers import ObjectHandlers
from twisted_storaged.api.responses import send_failure, send_json, send_text
from twisted_storaged.routing import Namespace
from twisted_storaged.runtime.concurrency import run_coroutine
from twisted_storaged.runtime.files import Spool
from twisted_storaged.server.request import StreamingRequest

Handler = Callable[[StreamingRequest], Coroutine[Deferred[Any], Any, None]]


class Branch(Resource):
    """A place in the tree that is nothing itself."""

    def getChild(self, path: bytes, request: StreamingRequest) -> Resource:
        return Branch()

    def render(self, request: StreamingRequest) -> int:
        send_text(request, http.NOT_FOUND, "not found")
        request.finish()
        return NOT_DONE_YET


class MethodResource(Branch):
    """A resource that answers some methods, each with a coroutine. With `isLeaf`, the rest of the path is a key.

    A handler begins an answer and writes its body. It does not end it: that is done when the handler has returned, by
    `StreamingRequest.finish`, which looks whether the body is whole.
    """

    def __init__(self, handlers: Mapping[bytes, Handler], isLeaf: bool = False) -> None:
        super().__init__()
        self.isLeaf = isLeaf
        self._handlers = handlers

    def render(self, request: StreamingRequest) -> int:
        handler = self._handlers.get(request.method)
        if handler is None:
            allow = [(b"Allow", b", ".join(self._handlers))]
            send_text(request, http.NOT_ALLOWED, "method not allowed", allow)
            request.finish()
        else:
            run_coroutine(handler(request), request.finish, partial(send_failure, request=request))
        return NOT_DONE_YET


class BucketsResource(Branch):
    """/buckets: a tree of its own for each of them."""

    def __init__(self, verbs_of: Callable[[str], ObjectHandlers]) -> None:
        super().__init__()
        self._verbs_of = verbs_of

    def getChild(self, path: bytes, request: StreamingRequest) -> Resource:
        verbs = self._verbs_of(path.decode("utf-8", "replace"))
        bucket = Branch()
        bucket.putChild(b"objects", _objects(verbs))
        bucket.putChild(b"list", MethodResource({b"GET": verbs.list}))
        return bucket


def make_tree(namespace: Namespace, slots: PutSlots, make_spool: Callable[[], Spool] = Spool) -> Resource:
    """The root of all paths; lists keep common prefixes in what `make_spool` makes."""
    verbs = ObjectHandlers(namespace, slots, make_spool=make_spool)
    storage = Branch()
    storage.putChild(b"put", MethodResource({b"PUT": verbs.put}, isLeaf=True))
    storage.putChild(b"get", MethodResource({b"GET": verbs.get, b"HEAD": verbs.head}, isLeaf=True))
    storage.putChild(b"delete", MethodResource({b"DELETE": verbs.delete}, isLeaf=True))
    storage.putChild(b"list", MethodResource({b"GET": verbs.list}))
    root = Branch()
    root.putChild(b"storage", storage)
    root.putChild(b"objects", _objects(verbs))
    root.putChild(b"buckets", BucketsResource(partial(ObjectHandlers, namespace, slots, make_spool=make_spool)))
    root.putChild(b"health", MethodResource({b"GET": _health, b"HEAD": _health}))
    return root


def _objects(verbs: ObjectHandlers) -> MethodResource:
    """One resource for each object."""
    methods = {b"GET": verbs.get, b"HEAD": verbs.head, b"PUT": verbs.put, b"DELETE": verbs.delete}
    return MethodResource(methods, isLeaf=True)


async def _health(request: StreamingRequest) -> None:
    send_json(request, {"status": "ok"})
