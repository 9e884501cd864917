"""GET /status.json and GET /ready."""

from __future__ import annotations

import re

import pytest
from msgspec.json import decode
from msgspec.structs import fields

from tests.daemon import ROOT
from tests.server.wire import Response, Server, put, request
from twisted_storaged.api.ops.status import ready_resource, status_resource
from twisted_storaged.errors import BucketTimedOut
from twisted_storaged.readiness import Readiness
from twisted_storaged.reports import Reports
from twisted_storaged.routing import Policy, Registry
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.status import BucketStatus, Interval, ProcessStatus, Refusal, Rule, Status, Transfer
from twisted_storaged.under_way import StatusCollector, UnderWay


def test_status() -> None:
    """The document is the status, and no cache keeps it; HEAD has its headers."""
    server = Server()
    reports = Reports(Meters())
    reports.status = UnderWay(server.site, server.slots, server.past, {}, server.clock).status
    collector = StatusCollector(reports, server.slots, Policy(), list)
    server.site.resource.putChild(b"status.json", status_resource(collector))
    server.connect().send(put("k%22", length=100))
    response = server.ask(request("GET", "/status.json"))
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    status = decode(response.body, type=Status)
    assert [one.key for one in status.transfers] == ['k"']
    head = server.ask(request("HEAD", "/status.json"))
    assert (head.status, head.body) == (200, b"")
    assert abs(int(head.headers["content-length"]) - len(response.body)) < 50
    server.site.flush_log()


@pytest.mark.parametrize(
    ("table", "struct"),
    [
        ("field", Status),
        ("field of `transfers`", Transfer),
        ("field of `refusals`", Refusal),
        ("field of `intervals`", Interval),
        ("field of `buckets`", BucketStatus),
        ("field of `policies`", Rule),
        ("field of `workers`", ProcessStatus),
    ],
)
def test_documented(table: str, struct: type) -> None:
    """The page on the status has each field."""
    page = (ROOT / "docs" / "status.md").read_text("utf-8")
    rows = page.partition(f"| {table} | meaning |\n|---|---|\n")[2].partition("\n\n")[0]
    documented = {name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    # The lists of a process are those of the document.
    of_all = {"transfers", "refusals", "intervals"} if struct is ProcessStatus else set()
    assert documented == {field.name for field in fields(struct)} - of_all


class ReadyTests:
    """GET /ready."""

    def ask(self, failing: Exception | None = None, stops: bool = False, method: str = "GET") -> Response:
        """Ask a process with one bucket."""
        server = Server()
        server.bucket.failing = failing
        readiness = Readiness(Registry([server.bucket]), {"primary": "s3"}, Meters(), server.clock)
        readiness.check()
        if stops:
            readiness.stop()
        server.site.resource.putChild(b"ready", ready_resource(readiness))
        return server.ask(request(method, "/ready"))

    def test_ready(self) -> None:
        """Ready is a 200 that no cache keeps."""
        response = self.ask()
        assert (response.status, response.body) == (200, b'{"status":"ready"}')
        assert response.headers["cache-control"] == "no-store"
        assert "retry-after" not in response.headers

    def test_a_bucket_that_fails(self) -> None:
        """A bucket that does not answer makes it a 503, which names it, and says why without its text."""
        response = self.ask(BucketTimedOut("secret.host hangs"))
        assert response.status == 503
        assert response.body == b'{"status":"not ready","buckets":{"primary":"bucket timed out"}}'
        assert (response.headers["retry-after"], response.headers["content-type"]) == ("3", "application/json")
        assert response.headers["cache-control"] == "no-store"

    def test_a_stop(self) -> None:
        """A process that stops is not ready, whatever its buckets answer."""
        response = self.ask(stops=True)
        assert (response.status, response.body) == (503, b'{"status":"stopping","buckets":{}}')

    def test_head(self) -> None:
        """HEAD has the status and headers of GET."""
        response = self.ask(BucketTimedOut("x"), method="HEAD")
        assert (response.status, response.body) == (503, b"")
