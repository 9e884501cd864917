"""Conditional writes on S3 that are refused, and those whose reply is lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import pytest_twisted

from tests.buckets.s3.conditional import ABSENT, LARGE, SMALL, Made, put
from tests.engines.scripted import ERROR, Answer, Call
from twisted_storaged.errors import (
    BucketFailed,
    ObjectNotFound,
    OutcomeUnknown,
    PreconditionFailed,
    WriteConflict,
)
from twisted_storaged.model import Condition

BOTH = pytest.mark.parametrize(("data", "name"), [(SMALL, "PutObject"), (LARGE, "CompleteMultipartUpload")])


def first(name: str, answer: Answer) -> Callable[[Call], Answer | None]:
    left = [answer]
    return lambda call: left.pop() if call.name == name and left else None


class RefusalTests:
    """Conditional writes that the engine refuses."""

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_that_another_write_is_under_way(self, conditional: Made, data: bytes, name: str) -> None:
        """A refusal because of another write in progress is a conflict."""
        endpoint, make = conditional
        endpoint.script = first(name, Answer(409, ERROR % b"ConditionalRequestConflict"))
        with pytest.raises(WriteConflict):
            await put(make("all"), data, ABSENT)
        assert (endpoint.objects, endpoint.uploads) == ({}, {})

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_that_there_is_nothing_to_compare_with(self, conditional: Made, data: bytes, name: str) -> None:
        """A condition on an object that does not exist has failed."""
        endpoint, make = conditional
        with pytest.raises(PreconditionFailed):
            await put(make("all"), data, Condition("etag"))
        assert (endpoint.objects, endpoint.uploads) == ({}, {})

    @pytest_twisted.ensureDeferred
    async def test_that_there_is_no_such_upload(self, conditional: Made) -> None:
        """A missing upload is an error of the bucket, and no failed condition."""
        endpoint, make = conditional
        endpoint.script = first("CompleteMultipartUpload", Answer(404, ERROR % b"NoSuchUpload"))
        with pytest.raises(BucketFailed, match="NoSuchUpload"):
            await put(make("all"), LARGE, Condition("etag"))


class LostReplyTests:
    """Conditional writes that were carried out and whose reply was lost, so that the next attempt is refused."""

    @pytest.mark.parametrize("lost", [Answer(drop=True, do_it_first=True), Answer(500, do_it_first=True)])
    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_is_no_refusal(self, conditional: Made, data: bytes, name: str, lost: Answer) -> None:
        """A refusal because of the write's own object is a success."""
        endpoint, make = conditional
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
    async def test_of_somebody_elses_object_it_is(self, conditional: Made, data: bytes, name: str) -> None:
        """A refusal because of another client's object is one, though an earlier reply was lost."""
        endpoint, make = conditional
        endpoint.objects["k"] = b"other", "etag"
        endpoint.script = first(name, Answer(drop=True))
        with pytest.raises(PreconditionFailed):
            await put(make("all"), data, ABSENT)

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_the_same_bytes_are_no_proof(self, conditional: Made, data: bytes, name: str) -> None:
        """A refusal counts if no reply was lost, whatever bytes the object has."""
        _, make = conditional
        bucket = make("all")
        await put(bucket, data, ABSENT)
        with pytest.raises(PreconditionFailed):
            await put(bucket, data, ABSENT)

    @pytest_twisted.ensureDeferred
    async def test_of_a_delete(self, conditional: Made) -> None:
        """A conditional DELETE after a lost reply is ambiguous; without one, a missing object is a refusal."""
        endpoint, make = conditional
        bucket = make("all")
        endpoint.objects["k"] = b"x", "etag"
        endpoint.script = first("DeleteObject", Answer(drop=True, do_it_first=True))
        with pytest.raises(OutcomeUnknown):
            await bucket.delete("k", Condition("etag"))
        with pytest.raises(PreconditionFailed):
            await bucket.delete("missing", Condition("etag"))

    @pytest_twisted.ensureDeferred
    async def test_on_a_connection_that_was_kept(self, conditional: Made) -> None:
        """A request that is repeated because its connection was closed may have been carried out before."""
        endpoint, make = conditional
        bucket = make("all")
        with suppress(ObjectNotFound):
            await bucket.head("k")  # now there is one
        endpoint.script = first("PutObject", Answer(drop=True, do_it_first=True))
        info = await put(bucket, SMALL, ABSENT)
        assert info.etag == endpoint.objects["k"][1]
