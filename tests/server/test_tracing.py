"""Spans of requests, with the SDK of OpenTelemetry."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, SpanKind, StatusCode

from tests.buckets.local.embedded import logged
from tests.server.wire import Server, put, request
from tests.support import MemoryBucket
from twisted_storaged.errors import BucketUnreachable
from twisted_storaged.server import tracing
from twisted_storaged.server.ended_requests import AccessLog, EndedRequest
from twisted_storaged.server.tracing import RequestSpans, configured_provider

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACED = f"traceparent: 00-{TRACE:032x}-{PARENT:016x}-01"


class Traced:
    """A server whose requests become spans."""

    def __init__(self, **provider: Any) -> None:
        self.exporter = InMemorySpanExporter()
        made = TracerProvider(shutdown_on_exit=False, **provider)
        made.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.server = Server(MemoryBucket(page=1))
        self.ended: list[EndedRequest] = []
        spans = RequestSpans(made)
        self.server.site.begin_span = spans.begin
        self.server.site._observers = [spans.add, self.ended.extend]

    def spans(self, data: bytes, leave: bool = False) -> list[ReadableSpan]:
        """The spans that have ended when this was asked, and the client may have left."""
        connection = self.server.connect()
        connection.send(data)
        if leave or connection.transport.aborted:
            connection.lose()
        self.server.site.flush_log()
        return list(self.exporter.get_finished_spans())

    def span(self, data: bytes, leave: bool = False) -> ReadableSpan:
        """The one span of a request."""
        (span,) = self.spans(data, leave)
        return span


class SpanTests:
    """The span of a request."""

    def test_of_a_put(self) -> None:
        """It is that of a server, named by the operation, with the attributes that the conventions require."""
        traced = Traced()
        traced.server.now = 1000.5
        span = traced.span(put("a%20b?X-Amz-Signature=hunter2", b"hello", "User-Agent: curl/8", "X-Request-Id: mine"))
        assert (span.name, span.kind, span.parent) == ("put", SpanKind.SERVER, None)
        assert span.attributes == {
            "http.request.method": "PUT",
            "url.scheme": "http",
            "url.path": "/storage/put/a%20b",
            "url.query": "X-Amz-Signature=[redacted]",
            "network.protocol.version": "1.1",
            "client.address": "192.168.1.1",
            "user_agent.original": "curl/8",
            "http.request.body.size": 5,
            "http.response.body.size": traced.ended[0].sent,
            "http.response.status_code": 200,
            "storaged.request_id": "mine",
            "storaged.bucket": "primary",
            "storaged.outcome": "complete",
        }
        assert span.status.status_code is StatusCode.UNSET
        assert span.end_time == 1000.5e9

    def test_its_parent(self) -> None:
        """It is a child of the span in a valid traceparent, and of none that is not valid."""
        parent = Traced().span(request("GET", "/health", TRACED, "tracestate: a=b")).parent
        assert parent is not None
        assert (parent.trace_id, parent.span_id, parent.is_remote) == (TRACE, PARENT, True)
        assert parent.trace_state.to_header() == "a=b"
        assert Traced().span(request("GET", "/health", f"{TRACED}-more")).parent is None

    @pytest.mark.parametrize("lines", [[], [TRACED, "tracestate: a=b"]])
    def test_what_is_passed_on(self, lines: list[str]) -> None:
        """The trace of the request is that of its span, which is the parent of what S3 makes of it."""
        traced = Traced()
        context = traced.span(request("GET", "/health", *lines)).get_span_context()
        assert context is not None
        (ended,) = traced.ended
        assert ended.trace is not None
        assert ended.trace.parent == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        assert ended.trace.state == ("a=b" if lines else "")
        assert f" trace={context.trace_id:032x} " in AccessLog().line(ended)

    def test_not_sampled(self) -> None:
        """A trace that the sampler leaves out has no span, and is passed on as not sampled."""
        traced = Traced(sampler=ALWAYS_OFF)
        assert traced.spans(request("GET", "/health", TRACED)) == []
        (ended,) = traced.ended
        assert ended.trace is not None
        assert (ended.trace.trace_id, ended.trace.parent[-3:]) == (f"{TRACE:032x}", "-00")

    @pytest.mark.parametrize("path", ["/objects/none", "/nothing"])
    def test_an_error_of_the_client(self, path: str) -> None:
        """A 404 is no error of the server."""
        span = Traced().span(request("GET", path))
        assert span.attributes is not None
        assert span.attributes["http.response.status_code"] == 404
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in span.attributes

    def test_an_error_of_storage(self) -> None:
        """A 5xx is an error, by the name that it has in the log."""
        traced = Traced()
        traced.server.bucket.failing = BucketUnreachable("no connection to host:port")
        span = traced.span(request("GET", "/objects/a"))
        assert span.attributes is not None
        assert span.attributes["error.type"] == "BucketUnreachable"
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "BucketUnreachable")

    def test_a_response_that_was_cut(self) -> None:
        """A response that broke off is an error, whatever its status."""
        traced = Traced()
        bucket = traced.server.bucket
        bucket.objects = {"a": b"", "b": b""}
        listed = bucket.list

        def fails_later(query: Any, token: str | None = None) -> Any:
            bucket.failing = None if token is None else BucketUnreachable("gone")
            return listed(query, token)

        bucket.list = fails_later  # type: ignore[method-assign]
        span = traced.span(request("GET", "/storage/list"))
        assert span.attributes is not None
        assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (
            200,
            "BucketUnreachable",
        )
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "cut: S3 BucketUnreachable")

    def test_a_client_that_left(self) -> None:
        """A request whose client has left ends its span, without a status."""
        span = Traced().span(put("a", b"he", length=5), leave=True)
        assert span.attributes is not None
        assert span.attributes["storaged.outcome"] == "client gone"
        assert "http.response.status_code" not in span.attributes

    def test_a_method_that_is_unknown(self) -> None:
        """Of methods, as of names, there are only a few."""
        span = Traced().span(request("BREW", "/objects/a"))
        assert span.attributes is not None
        assert (span.name, span.attributes["http.request.method"]) == ("other", "_OTHER")

    def test_what_is_no_request(self) -> None:
        """Bytes that are no request have no span."""
        assert Traced().spans(b"no request\r\n\r\n") == []


class ConfiguredTests:
    """Whether there is anything to make spans for."""

    @pytest.mark.parametrize("provider", [ProxyTracerProvider(), NoOpTracerProvider()])
    def test_no_sdk(self, monkeypatch: pytest.MonkeyPatch, provider: Any) -> None:
        """Without a configured SDK, no spans are made."""
        monkeypatch.setattr(tracing, "get_tracer_provider", lambda: provider)
        assert configured_provider() is None

    def test_an_sdk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With one, its provider is used."""
        provider = TracerProvider(shutdown_on_exit=False)
        monkeypatch.setattr(tracing, "get_tracer_provider", lambda: provider)
        assert configured_provider() is provider

    def test_one_that_cannot_be_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A provider that fails leaves the daemon without spans, and the log says so."""

        def fail() -> None:
            raise StopIteration("no entry point")

        monkeypatch.setattr(tracing, "get_tracer_provider", fail)
        with logged() as lines:
            assert configured_provider() is None
        assert ["no spans are made" in line for line in lines] == [True]
