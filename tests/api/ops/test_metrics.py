"""GET /metrics."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.internet.defer import Deferred, fail, succeed
from twisted.web.resource import Resource

from tests.server.wire import Response, Server, request
from twisted_storaged.api.ops.metrics import metrics_resource
from twisted_storaged.errors import SupervisorSilent
from twisted_storaged.reports import OtherReports, Report, Reports
from twisted_storaged.runtime.metering import Meters

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def example(number: int) -> Meters:
    """The metrics of a process: one of each kind."""
    meters = Meters()
    meters.counter("storaged_x", 'X "of" \\ Y.', ("key",)).add(number, 'a"\n\\b')
    meters.gauge("storaged_open", "Open.").watch(lambda: number)
    meters.histogram("storaged_x_seconds", "Seconds.", bounds=(1, 2)).observe(number)
    return meters


class Others:
    """The reports of another process."""

    def collect(self) -> Deferred[list[Report]]:
        return succeed([Report(1, 2.0, example(2).snapshot())])


OTHERS = Others()


class Silent:
    """A supervisor that does not answer."""

    def collect(self) -> Deferred[list[Report]]:
        return fail(SupervisorSilent())


def scrape(method: str = "GET", accept: str = "*/*", others: OtherReports = OTHERS) -> Response:
    """The response to a scrape."""
    server = Server()
    root: Resource = server.site.resource
    root.putChild(b"metrics", metrics_resource(Reports(example(1), others)))
    return server.ask(request(method, "/metrics", f"Accept: {accept}"))


def samples(families: object) -> Mapping[tuple[str, str], float]:
    """The values by name and labels."""
    return {
        (one.name, ",".join(one.labels.values())): one.value
        for family in families  # type: ignore[attr-defined]
        for one in family.samples
    }


EXPECTED = {
    ("storaged_x_total", 'a"\n\\b'): 3,
    ("storaged_open", ""): 3,
    ("storaged_x_seconds_bucket", "1.0"): 1,
    ("storaged_x_seconds_bucket", "2.0"): 2,
    ("storaged_x_seconds_bucket", "+Inf"): 2,
    ("storaged_x_seconds_count", ""): 2,
    ("storaged_x_seconds_sum", ""): 3,
}


def test_text() -> None:
    """The metrics of all processes are merged, in the text format of Prometheus."""
    response = scrape()
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert (response.headers["cache-control"], response.headers["vary"]) == ("no-store", "Accept")
    assert samples(parse_text(response.body.decode())) == EXPECTED


def test_openmetrics() -> None:
    """OpenMetrics is sent to a client that accepts it."""
    response = scrape(accept=OPENMETRICS)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.body.endswith(b"# EOF\n")
    assert samples(parse_openmetrics(response.body.decode())) == EXPECTED


@pytest.mark.parametrize("accept", ["", "text/html", "nonsense;;q=x", "application/openmetrics-text; version=\\"])
def test_other_accepts(accept: str) -> None:
    """Whatever a client accepts, there is an answer that can be parsed."""
    response = scrape(accept=accept)
    assert response.status == 200
    assert b"storaged_x_total" in response.body


def test_head() -> None:
    """HEAD has the headers of GET, and no body."""
    response = scrape("HEAD")
    assert response.headers["content-length"] == scrape().headers["content-length"]
    assert response.body == b""


def test_others_that_are_not_known() -> None:
    """Without the reports of the other processes, a scrape fails: else counters would go back."""
    assert scrape(others=Silent()).status == 503
