"""What S3 is told of the request of a client that it is asked for: an id in the user agent, and the trace context."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from tests.buckets.conftest import OnScripted
from tests.buckets.s3.conditional import ABSENT
from tests.engines.scripted import Answer, Call
from tests.support import Body, BytesBody, Consumer
from twisted_storaged.buckets.s3 import responses
from twisted_storaged.buckets.s3.client import AGENT
from twisted_storaged.model import ORIGIN, ListQuery, PutOptions, TraceContext

MiB = 1 << 20
SMALL, LARGE = b"small", b"x" * (12 * MiB)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Request:
    """What is known of a request."""

    id: str
    trace: TraceContext | None = None


def agents(calls: list[Call]) -> set[str | None]:
    """The user agents of calls."""
    return {call.headers.get("user-agent") for call in calls}


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_pause", lambda _: 0.0)


class OriginTests:
    """Requests to S3 that are made for one of a client."""

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    @pytest_twisted.ensureDeferred
    async def test_all_have_its_id(self, on_scripted: OnScripted, data: bytes) -> None:
        """Whatever a request needs of S3, also in threads, repeated or to find out what happened, has its id."""
        endpoint, make_bucket = on_scripted
        bucket = make_bucket(conditional_writes="all", verify_reads=True)
        name = "PutObject" if data is SMALL else "CompleteMultipartUpload"
        lost = [Answer(drop=True, do_it_first=True)]
        endpoint.script = lambda call: lost.pop() if lost and call.name == name else None
        ORIGIN.set(Request("mine", TraceContext(PARENT, "a=b")))
        await bucket.put("k", BytesBody(data), MiB << 10, PutOptions(condition=ABSENT))
        assert endpoint.names()[-1] == "HeadObject"
        await bucket.head("k")
        cut = [Answer(do_it_first=True, cut=MiB)]
        endpoint.script = lambda call: cut.pop() if cut and len(data) > MiB and call.name == "GetObject" else None
        consumer = Consumer()
        await (await bucket.get("k")).deliver(consumer)
        assert consumer.data == data
        await bucket.delete("k")
        endpoint.script = lambda call: Answer(403) if call.name == "ListObjectsV2" else None
        with pytest.raises(Exception, match="403"):
            await bucket.list(ListQuery())
        assert len(endpoint.calls) >= 6
        assert agents(endpoint.calls) == {f"{AGENT} (request mine)"}
        assert {call.headers["traceparent"] for call in endpoint.calls} == {PARENT}
        assert {call.headers["tracestate"] for call in endpoint.calls} == {"a=b"}
        # A signature that had them would not hold behind a proxy that changes them.
        assert {"user-agent" in call.headers["authorization"] for call in endpoint.calls} == {False}

    @pytest_twisted.ensureDeferred
    async def test_without_a_trace(self, on_scripted: OnScripted) -> None:
        """Without a trace context, none is passed on; and one without a state has none."""
        endpoint, make_bucket = on_scripted
        bucket = make_bucket()
        endpoint.objects["k"] = SMALL, "etag"
        for trace in (None, TraceContext(PARENT)):
            ORIGIN.set(Request("mine", trace))
            await bucket.head("k")
        first, second = (call.headers for call in endpoint.calls)
        assert (first.get("traceparent"), first.get("tracestate")) == (None, None)
        assert (second.get("traceparent"), second.get("tracestate")) == (PARENT, None)

    @pytest_twisted.ensureDeferred
    async def test_for_no_client(self, on_scripted: OnScripted) -> None:
        """What is not done for a client has the user agent without an id."""
        endpoint, make_bucket = on_scripted
        endpoint.script = lambda _: Answer(200, b"<html/>")
        with pytest.raises(Exception, match="not a list"):
            await make_bucket().list(ListQuery())
        assert agents(endpoint.calls) == {AGENT}

    @pytest_twisted.ensureDeferred
    async def test_an_upload_that_is_given_up(self, on_scripted: OnScripted) -> None:
        """The abort of an upload, whose body another event ends, has the id of its request."""
        endpoint, make_bucket = on_scripted
        bucket, body = make_bucket(), Body()
        context = copy_context()
        context.run(ORIGIN.set, Request("mine"))
        done: Deferred[object] = context.run(Deferred.fromCoroutine, bucket.put("k", body, MiB << 10))
        body.send(LARGE)
        body.fail(ValueError("gone"))
        with pytest.raises(ValueError, match="gone"):
            await done
        assert endpoint.names()[-1] == "AbortMultipartUpload"
        assert agents(endpoint.calls) == {f"{AGENT} (request mine)"}

    @pytest.mark.usefixtures("early_read_ahead")
    @pytest_twisted.ensureDeferred
    async def test_ranges_of_several_gets(self, on_scripted: OnScripted) -> None:
        """Ranges that are read ahead have the id of their own request, whoever made room for them."""
        endpoint, make_bucket = on_scripted
        bucket = make_bucket()
        endpoint.script = lambda call: Answer(do_it_first=True, seconds_per_mib=0.1)

        async def get(key: str) -> int:
            ORIGIN.set(Request(f"of-{key}"))
            consumer = Consumer()
            await (await bucket.get(key)).deliver(consumer)
            return len(consumer.data)

        keys = [f"k{number}" for number in range(8)]
        for key in keys:
            endpoint.objects[key] = bytes(2 * MiB), key
        sizes = await gatherResults([Deferred.fromCoroutine(get(key)) for key in keys])
        assert sizes == [2 * MiB] * len(keys)
        assert sum("range" in call.headers for call in endpoint.calls) > len(keys)
        assert {(call.key, call.headers["user-agent"]) for call in endpoint.calls} == {
            (key, f"{AGENT} (request of-{key})") for key in keys
        }
