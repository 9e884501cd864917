"""Conditional writes on S3 that are refused, and those whose reply is lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import pytest_twisted

from tests.buckets.conftest import OnScripted
from tests.engines.scripted import ERROR, Answer, Call, Scripted
from tests.support import BytesBody
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.errors import (
    BucketError,
    ObjectNotFound,
    OutcomeUnknown,
    PreconditionFailed,
    WriteConflict,
)
from twisted_storaged.model import Condition, ObjectInfo, PutOptions

MiB = 1 << 20
SMALL, LARGE = b"small", b"x" * (6 * MiB)
ABSENT = Condition()

Made = tuple[Scripted, Callable[[str], S3Bucket]]


@pytest.fixture
def made(on_scripted: OnScripted) -> Made:
    """A scripted endpoint that checks all conditions, and a function that makes a bucket with a setting."""
    endpoint, make_bucket = on_scripted
    return endpoint, lambda claimed: make_bucket(conditional_writes=claimed)


async def put(bucket: S3Bucket, data: bytes, condition: Condition, chunked: bool = False) -> ObjectInfo:
    body = BytesBody(data, chunk=MiB, chunked=chunked)
    return await bucket.put("k", body, 1 << 30, PutOptions(condition=condition))


BOTH = pytest.mark.parametrize(("data", "name"), [(SMALL, "PutObject"), (LARGE, "CompleteMultipartUpload")])


def first(name: str, answer: Answer) -> Callable[[Call], Answer | None]:
    left = [answer]
    return lambda call: left.pop() if call.name == name and left else None


class RefusalTests:
    """Conditional writes that the engine refuses."""

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_that_another_write_is_under_way(self, made: Made, data: bytes, name: str) -> None:
        """A refusal because of another write in progress is a conflict."""
        endpoint, make = made
        endpoint.script = first(name, Answer(409, ERROR % b"ConditionalRequestConflict"))
        with pytest.raises(WriteConflict):
            await put(make("all"), data, ABSENT)
        assert (endpoint.objects, endpoint.uploads) == ({}, {})

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_that_there_is_nothing_to_compare_with(self, made: Made, data: bytes, name: str) -> None:
        """A condition on an object that does not exist has failed."""
        endpoint, make = made
        with pytest.raises(PreconditionFailed):
            await put(make("all"), data, Condition("etag"))
        assert (endpoint.objects, endpoint.uploads) == ({}, {})

    @pytest_twisted.ensureDeferred
    async def test_that_there_is_no_such_upload(self, made: Made) -> None:
        """A missing upload is an error of the bucket, and no failed condition."""
        endpoint, make = made
        endpoint.script = first("CompleteMultipartUpload", Answer(404, ERROR % b"NoSuchUpload"))
        with pytest.raises(BucketError, match="NoSuchUpload"):
            await put(make("all"), LARGE, Condition("etag"))


class LostReplyTests:
    """Conditional writes that were carried out and whose reply was lost, so that the next attempt is refused."""

    @pytest.mark.parametrize("lost", [Answer(drop=True, do_it_first=True), Answer(500, do_it_first=True)])
    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_is_no_refusal(self, made: Made, data: bytes, name: str, lost: Answer) -> None:
        """A refusal because of the write's own object is a success."""
        endpoint, make = made
        bucket = make("all")
        endpoint.script = first(name, lost)
        info = await put(bucket, data, ABSENT)
        assert endpoint.objects["k"] == (data, info.etag)
        assert "HeadObject" in endpoint.names()
        endpoint.script = first(name, lost)
        again = await put(bucket, data + b"2", Condition(info.etag))
        assert endpoint.objects["k"] == (data + b"2", again.etag)

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_of_somebody_elses_object_it_is(self, made: Made, data: bytes, name: str) -> None:
        """A refusal because of another client's object is one, though an earlier reply was lost."""
        endpoint, make = made
        endpoint.objects["k"] = b"other", "etag"
        endpoint.script = first(name, Answer(drop=True))
        with pytest.raises(PreconditionFailed):
            await put(make("all"), data, ABSENT)

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_the_same_bytes_are_no_proof(self, made: Made, data: bytes, name: str) -> None:
        """A refusal counts if no reply was lost, whatever bytes the object has."""
        _, make = made
        bucket = make("all")
        await put(bucket, data, ABSENT)
        with pytest.raises(PreconditionFailed):
            await put(bucket, data, ABSENT)

    @pytest_twisted.ensureDeferred
    async def test_of_a_delete(self, made: Made) -> None:
        """A conditional DELETE after a lost reply is ambiguous; without one, a missing object is a refusal."""
        endpoint, make = made
        bucket = make("all")
        endpoint.objects["k"] = b"x", "etag"
        endpoint.script = first("DeleteObject", Answer(drop=True, do_it_first=True))
        with pytest.raises(OutcomeUnknown):
            await bucket.delete("k", Condition("etag"))
        with pytest.raises(PreconditionFailed):
            await bucket.delete("missing", Condition("etag"))

    @pytest_twisted.ensureDeferred
    async def test_on_a_connection_that_was_kept(self, made: Made) -> None:
        """A request that is repeated because its connection was closed may have been carried out before."""
        endpoint, make = made
        bucket = make("all")
        with suppress(ObjectNotFound):
            await bucket.head("k")  # now there is one
        endpoint.script = first("PutObject", Answer(drop=True, do_it_first=True))
        info = await put(bucket, SMALL, ABSENT)
        assert info.etag == endpoint.objects["k"][1]
