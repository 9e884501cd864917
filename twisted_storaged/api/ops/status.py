"""GET /status.json: what is under way in all processes; and GET /ready: whether the one that answers can serve."""

from __future__ import annotations

from math import ceil

from twisted.web.http import SERVICE_UNAVAILABLE

from twisted_storaged.api.handlers import Handler, MethodResource, Operation
from twisted_storaged.api.responses import send_json
from twisted_storaged.readiness import CHECK_INTERVAL, Readiness
from twisted_storaged.server.request import StreamingRequest
from twisted_storaged.under_way import StatusCollector


def status_resource(collector: StatusCollector) -> MethodResource:
    """Make the resource of /status.json."""

    async def get(request: StreamingRequest) -> None:
        send_json(request, await collector.collect())

    return _resource("status", get)


def ready_resource(readiness: Readiness) -> MethodResource:
    """Make the resource of /ready."""

    async def get(request: StreamingRequest) -> None:
        reasons = {bucket.name: bucket.reason for bucket in readiness.buckets() if not bucket.ready}
        if not reasons and not readiness.stopping:
            send_json(request, {"status": "ready"})
            return
        document = {"status": "stopping" if readiness.stopping else "not ready", "buckets": reasons}
        retry = (b"Retry-After", b"%d" % ceil(CHECK_INTERVAL))
        send_json(request, document, SERVICE_UNAVAILABLE, [retry])

    return _resource("ready", get)


def _resource(name: str, get: Handler) -> MethodResource:
    return MethodResource(dict.fromkeys([b"GET", b"HEAD"], Operation(name, get)))
