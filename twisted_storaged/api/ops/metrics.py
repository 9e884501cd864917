"""GET /metrics: the metrics of all processes of the daemon, for Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/ , or OpenMetrics for a client that accepts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.web.http import OK

from twisted_storaged.api.handlers import MethodResource, Operation
from twisted_storaged.api.responses import BY_ACCEPT, NOT_CACHED, TEXT
from twisted_storaged.protocol.http_fields import preference
from twisted_storaged.reports import Reports
from twisted_storaged.runtime.metering import Family, Labels, Snapshot, merge
from twisted_storaged.server.request import StreamingRequest

#: https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
OPENMETRICS = "application/openmetrics-text"


class SnapshotCollector(Collector):
    """A snapshot, as prometheus_client has it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its values."""
        for one in self._snapshot:
            metric = _metric(one.family)
            for labels, value in one.values:
                _add(metric, one.family, labels, value)
            yield metric


def _metric(family: Family) -> Any:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[family.kind](family.name, family.help, labels=family.labels)


def _add(metric: Any, family: Family, labels: Labels, value: Any) -> None:
    if family.kind != "histogram":
        metric.add_metric(labels, value)
        return
    *counts, total = value
    bounds = [*map(floatToGoString, family.bounds), "+Inf"]
    metric.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)


def metrics_resource(reports: Reports) -> MethodResource:
    """Make the resource of /metrics."""

    async def get(request: StreamingRequest) -> None:
        snapshot = merge(report.metrics for report in await reports.all())
        # The library's parser fails on some fields that clients may send, so that it gets one of ours.
        accepts = preference(request, (TEXT, OPENMETRICS)) == OPENMETRICS
        encode, content_type = choose_encoder(f"{OPENMETRICS}; version=1.0.0" if accepts else "")
        body = encode(SnapshotCollector(snapshot))
        headers = [
            (b"Content-Type", content_type.encode("ascii")),
            NOT_CACHED,
            BY_ACCEPT,
        ]
        request.start_response(OK, headers, len(body))
        if request.method != b"HEAD":
            request.write(body)

    return MethodResource(dict.fromkeys([b"GET", b"HEAD"], Operation("metrics", get)))
