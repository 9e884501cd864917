"""GET /status.json: what is under way in all processes of the daemon."""

from __future__ import annotations

from twisted_storaged.api.handlers import MethodResource, Operation
from twisted_storaged.api.responses import send_json
from twisted_storaged.server.request import StreamingRequest
from twisted_storaged.under_way import StatusCollector


def status_resource(collector: StatusCollector) -> MethodResource:
    """Make the resource of /status.json."""

    async def get(request: StreamingRequest) -> None:
        send_json(request, await collector.collect())

    return MethodResource(dict.fromkeys([b"GET", b"HEAD"], Operation("status", get)))
