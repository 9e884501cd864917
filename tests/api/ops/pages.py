"""A server with the page, and a status to show on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any

from twisted.internet.defer import Deferred, succeed

from tests.server.wire import Response, Server
from tests.support import MemoryBucket
from twisted_storaged.api.ops.cross_site import Tokens
from twisted_storaged.api.ops.page import Page
from twisted_storaged.routing import Namespace, Policy, Registry
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.status import BucketStatus, Interval, ProcessStatus, Refusal, Rule, Status, Transfer

#: A time that the status is of, in seconds since the epoch: in the middle of an interval.
NOW = 1_700_000_002.0
#: A text that means something to HTML, to attributes, to terminals, and to the direction of what follows.
HOSTILE = "<script>alert(1)</script>\"'&amp;\u202e\u2066/..b%?#"


def transfer(**changes: Any) -> Transfer:
    """A PUT that is under way."""
    given: dict[str, Any] = {
        "id": "id-1",
        "client": "127.0.0.1:5000",
        "operation": "put",
        "bucket": "primary",
        "key": "a/b",
        "size": 4 << 20,
        "done": 1 << 20,
        "rate": 2048.0,
        "age": 125.0,
        "holds_slot": True,
        "waits_for": "client",
        "worker": 7,
    }
    return Transfer(**(given | changes))


def refusal(**changes: Any) -> Refusal:
    """A PUT that was refused."""
    given: dict[str, Any] = {
        "at": NOW - 9,
        "id": "id-2",
        "client": "127.0.0.1:5001",
        "operation": "put",
        "bucket": "primary",
        "key": "a/c",
        "status": 503,
        "reason": "NoFreeSlot",
    }
    return Refusal(**(given | changes))


def status(**changes: Any) -> Status:
    """A status of one process."""
    given: dict[str, Any] = {
        "at": NOW,
        "versions": {"storaged": "1.2", "python": "3.11", "twisted": "26.10"},
        "slots_taken": 1,
        "slots": 4,
        "connections": 3,
        "requests_under_way": 2,
        "transfers": [transfer()],
        "refusals": [refusal()],
        "intervals": [Interval(1_699_999_995, 5 << 20, 10 << 10)],
        "buckets": [BucketStatus("primary", "local", True, "", 1.0)],
        "policies": [Rule("_vectors/", 4 << 30, "primary", None), Rule("", 256 << 20, "primary", 2)],
        "workers": [ProcessStatus(7, NOW - 3700, False, 3, 2, 1, [], [], [])],
    }
    return Status(**(given | changes))


class PageServer(Server):
    """A server with the page."""

    def __init__(self, bucket: MemoryBucket | None = None, others: Sequence[MemoryBucket] = (), **given: Any) -> None:
        super().__init__(bucket, others=others, **given)
        self.others = others
        self.status = status()
        self.outcome: Callable[[], Deferred[Status]] = lambda: succeed(self.status)
        self.collected = 0
        self.meters = Meters()
        self.tokens = Tokens(b"key", self.clock.seconds)
        namespace = Namespace(Policy(), Registry([self.bucket, *others]))
        names = [one.name for one in (self.bucket, *others)]
        page = Page(self._collect, namespace, self.slots, names, self.tokens, self.meters, self.clock)
        for segment, resource in page.resources().items():
            self.site.resource.putChild(segment, resource)

    def _collect(self) -> Deferred[Status]:
        self.collected += 1
        return self.outcome()

    def ask(self, request: bytes) -> Response:
        """Send one whole request and take its answer, which is made with pauses."""
        connection = self.connect()
        connection.send(request)
        for _ in range(50):
            self.clock.advance(0)
        return connection.response()

    def get(self, path: str = "/", *headers: str) -> Response:
        """The response to what a browser asks for."""
        return self.ask(request("GET", path, *headers))


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """A request of a browser on this host."""
    length = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost:3211", *length, *headers, "", ""]).encode() + body


class Html(HTMLParser):
    """A page, taken apart.

    Attributes:
        elements: the name and attributes of each element.
        texts: the text in each element that has an id.
        links: the text of each link, and where it leads.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self.links: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._link: str | None = None
        self.feed(body.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given))
        if tag == "a":
            self.links.append(("", given.get("href", "")))
        if tag not in ("meta", "link", "input", "img"):
            self._open.append(given.get("id", "") if tag != "a" else "a")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "link", "input", "img"):
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in self._open:
            self.texts[name] = self.texts.get(name, "") + data
        if "a" in self._open:
            text, href = self.links[-1]
            self.links[-1] = (text + data, href)

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of this name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def inputs(self) -> dict[str, str]:
        """The values of the fields of forms, by their names."""
        return {one["name"]: one.get("value", "") for one in self.all("input") if "name" in one}
