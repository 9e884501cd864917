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
from twisted_storaged.deferreds import run
from twisted_storaged.namespace import Namespace
from twisted_storaged.spool import Spool
from twisted_storaged.web.request import StreamingRequest
from twisted_storaged.web.responses import answer_failure, answer_json, answer_text
from twisted_storaged.web.verbs import Verbs

Handler = Callable[[StreamingRequest], Coroutine[Deferred[Any], Any, None]]


class Tree(Resource):
    """A place in the tree that is nothing itself."""

    def getChild(self, path: bytes, request: StreamingRequest) -> Resource:
        return Tree()

    def render(self, request: StreamingRequest) -> int:
        answer_text(request, http.NOT_FOUND, "not found")
        request.finish()
        return NOT_DONE_YET


class Endpoint(Tree):
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
            answer_text(request, http.NOT_ALLOWED, "method not allowed", allow)
            request.finish()
        else:
            run(handler(request), request.finish, partial(answer_failure, request=request))
        return NOT_DONE_YET


class Buckets(Tree):
    """/buckets: a tree of its own for each of them."""

    def __init__(self, verbs_of: Callable[[str], Verbs]) -> None:
        super().__init__()
        self._verbs_of = verbs_of

    def getChild(self, path: bytes, request: StreamingRequest) -> Resource:
        verbs = self._verbs_of(path.decode("utf-8", "replace"))
        bucket = Tree()
        bucket.putChild(b"objects", _objects(verbs))
        bucket.putChild(b"list", Endpoint({b"GET": verbs.list}))
        return bucket


def make_tree(namespace: Namespace, slots: PutSlots, make_spool: Callable[[], Spool] = Spool) -> Resource:
    """The root of all paths; lists keep common prefixes in what `make_spool` makes."""
    verbs = Verbs(namespace, slots, make_spool=make_spool)
    storage = Tree()
    storage.putChild(b"put", Endpoint({b"PUT": verbs.put}, isLeaf=True))
    storage.putChild(b"get", Endpoint({b"GET": verbs.get, b"HEAD": verbs.head}, isLeaf=True))
    storage.putChild(b"delete", Endpoint({b"DELETE": verbs.delete}, isLeaf=True))
    storage.putChild(b"list", Endpoint({b"GET": verbs.list}))
    root = Tree()
    root.putChild(b"storage", storage)
    root.putChild(b"objects", _objects(verbs))
    root.putChild(b"buckets", Buckets(partial(Verbs, namespace, slots, make_spool=make_spool)))
    root.putChild(b"health", Endpoint({b"GET": _health, b"HEAD": _health}))
    return root


def _objects(verbs: Verbs) -> Endpoint:
    """One resource for each object."""
    methods = {b"GET": verbs.get, b"HEAD": verbs.head, b"PUT": verbs.put, b"DELETE": verbs.delete}
    return Endpoint(methods, isLeaf=True)


async def _health(request: StreamingRequest) -> None:
    answer_json(request, {"status": "ok"})
