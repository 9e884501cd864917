"""Which conditional writes a bucket supports: by its setting, or by a probe of the engine."""

from __future__ import annotations

import errno
from collections.abc import Awaitable

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.buckets.s3.conditional import ABSENT, LARGE, SMALL, Made, MiB, put
from tests.buckets.test_contract import CLAIMED
from tests.conftest import Engines
from tests.engines.scripted import ERROR, Answer, Call
from tests.support import UPKEEP, Body, BytesBody, reactor, result
from twisted_storaged.buckets.s3 import probe as s3probe
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.probe import CAPABILITIES_BY_SETTING, PROBE_KEY, ConditionalSupport
from twisted_storaged.buckets.s3.responses import RequestFailed
from twisted_storaged.buckets.s3.writer import (
    COMPLETE_ABSENT,
    COMPLETE_SAME,
    DELETE_SAME,
    NO_CAPABILITIES,
    PUT_ABSENT,
    PUT_SAME,
    Capabilities,
)
from twisted_storaged.errors import (
    BucketError,
    BucketFailed,
    BucketOverloaded,
    BucketTimedOut,
    BucketUnreachable,
    ConditionUnsupported,
    OutOfSpace,
)
from twisted_storaged.model import Condition, ListQuery, PutOptions
from twisted_storaged.protocol.http1 import AmbiguousFailure, ConnectionFailed, Response, TimedOut


def _requiring(conditions: ConditionalSupport, condition: Condition, *operations: str) -> Deferred[Capabilities]:
    return Deferred.fromCoroutine(conditions.require(condition, *operations))


class ConditionsTests:
    """How a bucket finds out what it supports."""

    def make(self) -> tuple[ConditionalSupport, list[Deferred[Capabilities]]]:
        """A ConditionalSupport that needs a probe, and the probes in progress."""
        probes: list[Deferred[Capabilities]] = []

        def probe() -> Awaitable[Capabilities]:
            probes.append(Deferred())
            return probes[-1]

        return ConditionalSupport(None, probe), probes

    def test_is_found_out_once_for_all_who_ask(self) -> None:
        """Concurrent and later callers share one probe."""
        conditions, probes = self.make()
        asked = [_requiring(conditions, ABSENT, "PutObject") for _ in range(3)]
        refused = _requiring(conditions, ABSENT, "CompleteMultipartUpload")
        (probe,) = probes
        probe.callback(frozenset({PUT_ABSENT}))
        assert [result(one) for one in asked] == [{PUT_ABSENT}] * 3
        with pytest.raises(ConditionUnsupported, match="CompleteMultipartUpload with if-none-match"):
            result(refused)
        result(_requiring(conditions, ABSENT, "PutObject"))
        assert len(probes) == 1

    def test_a_probe_that_fails_is_made_again(self) -> None:
        """A failed probe fails all who wait for it, and is repeated for the next caller."""
        conditions, probes = self.make()
        asked = [_requiring(conditions, ABSENT, "PutObject") for _ in range(2)]
        probes[0].errback(ZeroDivisionError("no engine"))
        for one in asked:
            with pytest.raises(BucketError, match="could not be found out: no engine"):
                result(one)
        again = _requiring(conditions, ABSENT, "PutObject")
        probes[1].callback(frozenset({PUT_ABSENT}))
        result(again)

    @pytest.mark.parametrize(
        ("failure", "kind"),
        [
            (TimedOut("late"), BucketTimedOut),
            (ConnectionFailed("gone"), BucketUnreachable),
            (AmbiguousFailure("PutObject", ConnectionFailed("gone")), BucketUnreachable),
            (RequestFailed("PutObject", Response(503, {}), again=False), BucketOverloaded),
            (RequestFailed("PutObject", Response(403, {}), again=False), BucketFailed),
            (OSError(errno.ENOSPC, "the journal"), OutOfSpace),
            (ZeroDivisionError("a defect"), BucketError),
        ],
    )
    def test_why_a_probe_failed(self, failure: Exception, kind: type[BucketError]) -> None:
        """The error of a probe says what is wrong, as that of a write does; but no write of a client is in doubt."""
        conditions, probes = self.make()
        asked = _requiring(conditions, ABSENT, "PutObject")
        probes[0].errback(failure)
        with pytest.raises(kind, match="could not be found out") as caught:
            result(asked)
        assert type(caught.value) is kind

    def test_one_of_several_operations_will_do(self) -> None:
        """A condition is accepted if one of the operations that may be needed supports it."""
        conditions = ConditionalSupport(frozenset({PUT_SAME}), self.make)  # type: ignore[arg-type]
        result(_requiring(conditions, Condition("e"), "PutObject", "CompleteMultipartUpload"))
        with pytest.raises(ConditionUnsupported):
            result(_requiring(conditions, ABSENT, "PutObject", "CompleteMultipartUpload"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fewer races, for an endpoint whose faults are not left to chance."""
    monkeypatch.setattr(s3probe, "RACERS", 4)
    monkeypatch.setattr(s3probe, "ROUNDS", 1)


class ProbeTests:
    """The probe."""

    @pytest.mark.parametrize("name", ["rclone", "swift", "ceph"])
    @pytest_twisted.ensureDeferred
    async def test_finds_what_engines_keep(self, all_engines: Engines, name: str) -> None:
        """The probe finds what real engines support, and leaves nothing."""
        engine = all_engines.get(name)
        made = engine.new_bucket()
        bucket = S3Bucket("s3", engine.settings(made, "p/"), reactor, 4, UPKEEP)
        bucket.start()
        assert await bucket._probe() == CLAIMED[name]
        assert (await bucket.list(ListQuery())).objects == []
        if name != "rclone":  # which says 404 to this where there are none
            assert "Uploads" not in engine.client().list_multipart_uploads(Bucket=made)
        await bucket.stop()

    @pytest_twisted.ensureDeferred
    async def test_all_where_all_are_kept(self, conditional: Made) -> None:
        """The first conditional write probes an engine, on keys of the probe's own, and later ones do not."""
        endpoint, make = conditional
        bucket = make("auto")
        await bucket.put("k", BytesBody(SMALL), 100)
        assert endpoint.names() == ["PutObject"]
        await put(bucket, SMALL, Condition(endpoint.objects["k"][1]))
        assert bucket._conditions._capabilities == CAPABILITIES_BY_SETTING["all"]
        probed = {call.key for call in endpoint.calls if call.key != "k" and call.name != "ListObjectVersions"}
        assert {key.startswith(PROBE_KEY) for key in probed} == {True}
        assert (set(endpoint.objects), endpoint.uploads) == ({"k"}, {})
        calls = len(endpoint.calls)
        await bucket.delete("k", Condition(endpoint.objects["k"][1]))
        assert len(endpoint.calls) == calls + 1

    @pytest.mark.usefixtures("few")
    @pytest.mark.parametrize("one", sorted(CAPABILITIES_BY_SETTING["all"] or ()), ids=str)
    @pytest.mark.parametrize("fault", ["ignored", "refused", "not implemented"])
    @pytest_twisted.ensureDeferred
    async def test_what_is_not_kept_is_not_claimed(self, conditional: Made, one: tuple[str, str], fault: str) -> None:
        """A condition that the engine ignores or refuses is not supported, and all others are."""
        endpoint, make = conditional
        name, header = one

        def script(call: Call) -> Answer | None:
            if call.name == name and header in call.headers:
                if fault == "ignored":
                    call.headers.pop(header)
                    return None
                return Answer(501 if fault == "not implemented" else 412, ERROR % b"NotImplemented")
            return None

        endpoint.script = script
        assert await make("auto")._probe() == (CAPABILITIES_BY_SETTING["all"] or NO_CAPABILITIES) - {one}
        assert (endpoint.objects, endpoint.uploads) == ({}, {})

    @pytest.mark.usefixtures("few")
    @pytest.mark.parametrize("one", [PUT_ABSENT, PUT_SAME, COMPLETE_ABSENT, COMPLETE_SAME, DELETE_SAME], ids=str)
    @pytest_twisted.ensureDeferred
    async def test_a_look_followed_by_a_write_is_not_enough(self, conditional: Made, one: tuple[str, str]) -> None:
        """A condition is not supported if the engine checks it in one step and writes in another."""
        endpoint, make = conditional
        endpoint.look_first = one
        assert one not in await make("auto")._probe()

    @pytest.mark.usefixtures("few")
    @pytest.mark.parametrize("answer", [Answer(403, ERROR % b"AccessDenied"), Answer(404, ERROR % b"NoSuchBucket")])
    @pytest_twisted.ensureDeferred
    async def test_that_fails_fails_the_write(self, conditional: Made, answer: Answer) -> None:
        """A failed probe fails the write as an error of the bucket, and the next write probes again."""
        endpoint, make = conditional
        bucket = make("auto")
        endpoint.script = lambda _: answer
        for _ in range(2):
            with pytest.raises(BucketError, match="could not be found out"):
                await put(bucket, SMALL, ABSENT)
        endpoint.script = lambda _: None
        await put(bucket, SMALL, ABSENT)


class ClaimedTests:
    """Conditional writes that the configuration states."""

    @pytest.mark.parametrize(
        ("claimed", "small", "large", "deletes"),
        [("all", True, True, True), ("put_object", True, False, False), ("none", False, False, False)],
    )
    @pytest_twisted.ensureDeferred
    async def test_is_taken(self, conditional: Made, claimed: str, small: bool, large: bool, deletes: bool) -> None:
        """A setting is used without a probe, and conditions that it excludes are not sent to the engine."""
        endpoint, make = conditional
        bucket = make(claimed)
        for data, allowed in ((SMALL, small), (LARGE, large)):
            endpoint.reset()
            if allowed:
                await put(bucket, data, ABSENT)
                await put(bucket, data, Condition(endpoint.objects["k"][1]))
            else:
                with pytest.raises(ConditionUnsupported):
                    await put(bucket, data, ABSENT)
                assert endpoint.calls == []
        endpoint.reset()
        endpoint.objects["k"] = b"x", "etag"
        if deletes:
            await bucket.delete("k", Condition("etag"))
        else:
            with pytest.raises(ConditionUnsupported):
                await bucket.delete("k", Condition("etag"))
        assert len(endpoint.calls) == deletes

    @pytest_twisted.ensureDeferred
    async def test_a_body_is_not_read_for_nothing(self, conditional: Made) -> None:
        """A body whose length requires an unsupported condition is refused unread."""
        _, make = conditional
        body = Body(6 * MiB)
        with pytest.raises(ConditionUnsupported):
            await make("put_object").put("k", body, 1 << 30, PutOptions(condition=ABSENT))
        assert not hasattr(body, "_consumer")

    @pytest_twisted.ensureDeferred
    async def test_a_chunked_body_that_gets_too_long(self, conditional: Made) -> None:
        """A body without a length is refused once it needs an unsupported condition, before anything is sent."""
        endpoint, make = conditional
        bucket = make("put_object")
        with pytest.raises(ConditionUnsupported):
            await put(bucket, LARGE, ABSENT, chunked=True)
        assert endpoint.calls == []
        await put(bucket, SMALL, ABSENT, chunked=True)
        assert endpoint.names() == ["PutObject"]
