"""Spans of OpenTelemetry, one for each request. Imported only if its API is installed.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_tracer_provider,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from twisted.logger import Logger

from twisted_storaged import __version__
from twisted_storaged.model import TraceContext
from twisted_storaged.runtime.log_format import redacted
from twisted_storaged.server.ended_requests import LONGEST_FIELD, EndedRequest
from twisted_storaged.server.request import StreamingRequest

#: The methods that the conventions know. All others are one for them.
_METHODS = frozenset(
    {b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT", b"QUERY", b"TRACE"}
)

_log = Logger()
_propagator = TraceContextTextMapPropagator()


def configured_provider() -> TracerProvider | None:
    """The provider of an SDK that was configured for this process; None if there is none, so that spans go nowhere."""
    try:
        # The first call loads the one that the environment names.
        provider = get_tracer_provider()
    except Exception:  # noqa: BLE001 (whatever is wrong with it, objects are served)
        _log.failure("no spans are made, as the provider of OpenTelemetry cannot be loaded")
        return None
    return None if isinstance(provider, (NoOpTracerProvider, ProxyTracerProvider)) else provider


class RequestSpans:
    """Makes a span of each request, which is a child of the client's span, and the parent of what S3 makes of it."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("storaged", __version__)

    def begin(self, request: StreamingRequest) -> None:
        """Begin the span of a request, and set its `span` and its `trace`."""
        given = {}
        if request.trace is not None:
            given = {"traceparent": request.trace.parent, "tracestate": request.trace.state}
        # Neither a context of this process nor what it may have in common with others is taken for a parent.
        parent = _propagator.extract(given, Context())
        span = self._tracer.start_span("request", parent, SpanKind.SERVER, _attributes(request))
        passed_on: dict[str, str] = {}
        _propagator.inject(passed_on, set_span_in_context(span, Context()))
        if passed_on:
            request.trace = TraceContext(passed_on["traceparent"], passed_on.get("tracestate", ""))
        request.span = span

    def add(self, ended: Sequence[EndedRequest]) -> None:
        """End the spans of requests that have ended."""
        for request in ended:
            span: Span | None = request.span
            if span is None:
                continue
            if span.is_recording():
                _complete(span, request)
            span.end(int(request.at * 1e9))


def _attributes(request: StreamingRequest) -> Mapping[str, str]:
    path, _, query = request.uri.decode("latin-1").partition("?")
    found = {
        "http.request.method": request.method.decode("ascii") if request.method in _METHODS else "_OTHER",
        "url.scheme": "https" if request.isSecure() else "http",
        "url.path": redacted(path),
        "network.protocol.version": request.clientproto.decode("latin-1").partition("/")[2],
        "storaged.request_id": request.id,
    }
    if query:
        # With the question mark, by which parameters are recognised.
        found["url.query"] = redacted(f"?{query}")[1:]
    client = getattr(request.client, "host", None)
    if client:
        found["client.address"] = client
    agent = request.fields.get("user-agent")
    if agent:
        found["user_agent.original"] = redacted(agent[0])[:LONGEST_FIELD]
    return found


def _complete(span: Span, request: EndedRequest) -> None:
    """Add what is known only at the end of a request."""
    span.update_name(request.operation)
    span.set_attribute("http.request.body.size", request.received)
    span.set_attribute("http.response.body.size", request.sent)
    span.set_attribute("storaged.outcome", request.outcome)
    if request.bucket:
        span.set_attribute("storaged.bucket", request.bucket)
    if request.status is not None:
        span.set_attribute("http.response.status_code", request.status)
    is_cut = request.outcome.startswith("cut")
    # That a client asks for what it cannot have is no error of a server.
    if is_cut or (request.status or 0) >= 500:
        span.set_attribute("error.type", request.reason or ("cut" if is_cut else str(request.status)))
        span.set_status(StatusCode.ERROR, request.outcome if is_cut else request.reason)
