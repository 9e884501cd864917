"""Writes to an S3 whose responses are lost or are not as S3 documents them, and what the client gets."""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from tests.buckets.conftest import OnScripted
from tests.engines.scripted import ERROR, Answer, Call, Objects, Scripted
from tests.support import BytesBody
from twisted_storaged.buckets.s3 import responses
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.journal import Journal, JournalEntry
from twisted_storaged.errors import BucketError, BucketFailed, OutcomeUnknown, OutOfSpace, PreconditionFailed
from twisted_storaged.model import Condition, ObjectInfo, PutOptions
from twisted_storaged.protocol.metadata import WRITE_ID_NAME

MiB = 1 << 20
SMALL, LARGE = b"small", b"x" * (6 * MiB)
ABSENT = Condition()
SIZES = pytest.mark.parametrize(("data", "name"), [(SMALL, "PutObject"), (LARGE, "CompleteMultipartUpload")])
LOST = pytest.mark.parametrize("lost", [Answer(drop=True), Answer(500, ERROR % b"InternalError"), Answer(200, b"<a/>")])

#: Bodies of a 200 that are none of S3's.
PAGES = [
    b" ",
    b"<html><body>OK</body></html>",
    b"<Error><Message/></Error>",
    b'<e:Error xmlns:e="x"><e:Code>InternalError</e:Code></e:Error>',
    ERROR % b"PreconditionFailed",
    b"<CompleteMultipartUploadResult>",
    b"<Other><CompleteMultipartUploadResult/></Other>",
    b"\xff",
]
#: Headers of an answer to a part or an object that do not say that it was stored.
TOLD = [{}, {"ETag": '""'}, {"ETag": '"e"', "x-amz-checksum-crc32c": "AAAAAA=="}]
LIES = [
    *[("CompleteMultipartUpload", Answer(200, page)) for page in PAGES],
    *[("CreateMultipartUpload", Answer(200, page)) for page in PAGES],
    ("CreateMultipartUpload", Answer(200, b"<InitiateMultipartUploadResult/>")),
    ("CreateMultipartUpload", Answer(200, b"<InitiateMultipartUploadResult><UploadId> </UploadId></Initiate>")),
    *[(name, Answer(200, headers=headers)) for name in ("PutObject", "UploadPart") for headers in TOLD],
]


@pytest.fixture
def made(
    on_scripted: OnScripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Scripted, S3Bucket]]:
    """A scripted endpoint that checks all conditions, and a bucket that does not pause between attempts."""
    monkeypatch.setattr(responses, "_pause", lambda _: 0.0)
    endpoint, make_bucket = on_scripted
    yield endpoint, make_bucket(conditional_writes="all")
    assert endpoint.uploads == {}
    # Entries without an id are left to the reaper.
    entries = [path for path in (tmp_path / "state" / "uploads").glob("*/*") if path.name != "lock"]
    assert [path for path in entries if "upload_id" in path.read_text("ascii")] == []


async def put(
    bucket: S3Bucket, data: bytes, condition: Condition | None = None, metadata: tuple[tuple[str, str], ...] = ()
) -> ObjectInfo:
    return await bucket.put("k", BytesBody(data, chunk=MiB), 1 << 30, PutOptions(metadata, condition=condition))


def first(name: str, answer: Answer, then: Callable[[], None] = lambda: None) -> Callable[[Call], Answer | None]:
    """A script that gives the first call of this operation this answer, after doing something."""
    left = [answer]

    def script(call: Call) -> Answer | None:
        if call.name != name or not left:
            return None
        then()
        return left.pop()

    return script


def etag_of(data: bytes) -> str:
    """The ETag that the endpoint gives a body that is put as this test puts it."""
    if data == SMALL:
        return hashlib.md5(data).hexdigest()
    parts = [data[start : start + 5 * MiB] for start in range(0, len(data), 5 * MiB)]
    return f"{hashlib.md5(b''.join(hashlib.md5(part).digest() for part in parts)).hexdigest()}-{len(parts)}"


class LiesTests:
    """Responses that claim success and are not S3's."""

    @pytest.mark.parametrize(("name", "lie"), LIES)
    @pytest_twisted.ensureDeferred
    async def test_are_not_believed(self, made: tuple[Scripted, S3Bucket], name: str, lie: Answer) -> None:
        """A write that gets only such responses fails, and leaves the old object and no upload."""
        endpoint, bucket = made
        endpoint.objects["k"] = b"old", "etag"
        endpoint.script = lambda call: lie if call.name == name else None
        with pytest.raises(BucketFailed, match=name):
            await put(bucket, SMALL if name == "PutObject" else LARGE)
        assert endpoint.objects["k"] == (b"old", "etag")

    @pytest.mark.parametrize(("name", "lie"), LIES)
    @pytest_twisted.ensureDeferred
    async def test_are_asked_about_again(self, made: tuple[Scripted, S3Bucket], name: str, lie: Answer) -> None:
        """A write that gets one such response is carried out by the next attempt."""
        endpoint, bucket = made
        data = SMALL if name == "PutObject" else LARGE
        endpoint.script = first(name, lie)
        info = await put(bucket, data)
        assert endpoint.objects["k"] == (data, info.etag)
        assert endpoint.names().count(name) == (2 if name != "UploadPart" else 3)

    @pytest.mark.parametrize(
        ("name", "lie"), [lie for lie in LIES if lie[0] in ("CompleteMultipartUpload", "PutObject")]
    )
    @pytest_twisted.ensureDeferred
    async def test_about_what_was_done(self, made: tuple[Scripted, S3Bucket], name: str, lie: Answer) -> None:
        """A write that was carried out despite such a response is recognised, and not repeated."""
        endpoint, bucket = made
        data = SMALL if name == "PutObject" else LARGE
        told = Answer(200, lie.body or b" ", lie.headers, do_it_first=True)
        endpoint.script = lambda call: told if call.name == name else None
        info = await put(bucket, data, ABSENT)
        assert endpoint.objects["k"] == (data, info.etag)
        assert endpoint.names().count(name) == 1

    @pytest.mark.parametrize(
        "body",
        [
            b"<CompleteMultipartUploadResult/>",
            b'  \n<?xml version="1.0"?><s:CompleteMultipartUploadResult xmlns:s="x"/>',
            b'<CompleteMultipartUploadResult xmlns="x"><ETag></ETag></CompleteMultipartUploadResult>',
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_are_not_what_other_engines_say(self, made: tuple[Scripted, S3Bucket], body: bytes) -> None:
        """A result in any namespace, with or without an ETag, after white space, is a success."""
        endpoint, bucket = made
        endpoint.script = first("CompleteMultipartUpload", Answer(200, body, do_it_first=True))
        info = await put(bucket, LARGE)
        assert endpoint.objects["k"] == (LARGE, info.etag)
        assert endpoint.names().count("CompleteMultipartUpload") == 1
        assert "HeadObject" not in endpoint.names()

    @pytest.mark.parametrize("condition", [None, Condition("etag")])
    @pytest_twisted.ensureDeferred
    async def test_about_a_delete(self, made: tuple[Scripted, S3Bucket], condition: Condition | None) -> None:
        """A page that is not S3's does not prove that an object was deleted."""
        endpoint, bucket = made
        endpoint.objects["k"] = b"old", "etag"
        endpoint.script = lambda call: Answer(200, b"<html/>") if call.name == "DeleteObject" else None
        with pytest.raises(BucketFailed, match="is not empty"):
            await bucket.delete("k", condition)


class JournalTests:
    """A journal that cannot be written."""

    @pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, OutOfSpace), (errno.EIO, BucketError)])
    @pytest.mark.parametrize("name", ["begin", "created"])
    @pytest_twisted.ensureDeferred
    async def test_is_no_error_of_s3(
        self,
        made: tuple[Scripted, S3Bucket],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        number: int,
        kind: type[BucketError],
    ) -> None:
        """A disk that is full or broken is not taken for a fault of S3, and no upload is left."""
        endpoint, bucket = made

        def fail(*_: object) -> None:
            raise OSError(number, "the disk of the journal")

        monkeypatch.setattr(Journal if name == "begin" else JournalEntry, name, fail)
        with pytest.raises(kind, match=r"cannot write the upload journal: .*the disk of the journal") as caught:
            await put(bucket, LARGE)
        assert type(caught.value) is kind
        assert "CompleteMultipartUpload" not in endpoint.names()


class SameBytesTests:
    """Two writers of the same bytes, one of whose replies was lost."""

    @LOST
    @SIZES
    @pytest_twisted.ensureDeferred
    async def test_create_only_of_what_was_there(
        self, made: tuple[Scripted, S3Bucket], data: bytes, name: str, lost: Answer
    ) -> None:
        """A create-only PUT is refused if the object is older than it, or its upload was not completed."""
        endpoint, bucket = made
        endpoint.objects["k"] = data, hashlib.md5(data).hexdigest() if data == SMALL else etag_of(data)
        endpoint.script = first(name, lost)
        with pytest.raises(PreconditionFailed):
            await put(bucket, data, ABSENT)

    @LOST
    @SIZES
    @pytest_twisted.ensureDeferred
    async def test_create_only_that_lost_the_race(
        self, made: tuple[Scripted, S3Bucket], data: bytes, name: str, lost: Answer
    ) -> None:
        """A create-only PUT that another writer overtook is ambiguous, or refused if its upload was not completed."""
        endpoint, bucket = made
        endpoint.script = first(name, lost, lambda: endpoint.objects.keep("k", (data, etag_of(data)), {}))
        with pytest.raises(OutcomeUnknown if data == SMALL else PreconditionFailed):
            await put(bucket, data, ABSENT)

    @LOST
    @SIZES
    @pytest_twisted.ensureDeferred
    async def test_compare_and_swap(
        self, made: tuple[Scripted, S3Bucket], data: bytes, name: str, lost: Answer
    ) -> None:
        """A PUT with If-Match is not a success because another writer put the same bytes."""
        endpoint, bucket = made
        endpoint.objects["k"] = b"old", "etag"
        endpoint.script = first(name, lost, lambda: endpoint.objects.keep("k", (data, etag_of(data)), {}))
        with pytest.raises(OutcomeUnknown if data == SMALL else PreconditionFailed):
            await put(bucket, data, Condition("etag"))

    @SIZES
    @pytest_twisted.ensureDeferred
    async def test_a_write_that_was_replaced_is_unknown(
        self, made: tuple[Scripted, S3Bucket], data: bytes, name: str
    ) -> None:
        """A write that was carried out and then replaced is ambiguous."""
        endpoint, bucket = made
        lost = first(name, Answer(drop=True, do_it_first=True))

        def script(call: Call) -> Answer | None:
            if call.name == "HeadObject":
                endpoint.objects.keep("k", (data, etag_of(data)), {WRITE_ID_NAME: "another"})
            return lost(call)

        endpoint.script = script
        with pytest.raises(OutcomeUnknown, match="a reply was lost"):
            await put(bucket, data, ABSENT)

    @LOST
    @pytest.mark.parametrize("done", [True, False])
    @pytest_twisted.ensureDeferred
    async def test_conditional_delete(self, made: tuple[Scripted, S3Bucket], lost: Answer, done: bool) -> None:
        """A missing object does not prove that a conditional DELETE was carried out."""
        endpoint, bucket = made
        endpoint.objects["k"] = b"x", "etag"
        endpoint.script = first("DeleteObject", replace(lost, do_it_first=done))
        if done:
            with pytest.raises(OutcomeUnknown):
                await bucket.delete("k", Condition("etag"))
        else:
            await bucket.delete("k", Condition("etag"))
            assert endpoint.objects == {}

    @pytest_twisted.ensureDeferred
    async def test_conditional_delete_of_what_was_replaced(self, made: tuple[Scripted, S3Bucket]) -> None:
        """An object that was replaced does not prove whether a conditional DELETE was carried out."""
        endpoint, bucket = made
        endpoint.objects["k"] = b"x", "another"
        endpoint.script = first("DeleteObject", Answer(drop=True))
        with pytest.raises(OutcomeUnknown):
            await bucket.delete("k", Condition("etag"))


class AgainTests:
    """A large body that is put again, where the reply to CompleteMultipartUpload is lost and nothing was completed."""

    @LOST
    @pytest_twisted.ensureDeferred
    async def test_is_completed(self, made: tuple[Scripted, S3Bucket], lost: Answer) -> None:
        """The old object with the same bytes is not taken for the new one, which has its new metadata."""
        endpoint, bucket = made
        await put(bucket, LARGE)
        endpoint.script = first("CompleteMultipartUpload", lost)
        await put(bucket, LARGE, metadata=(("x-amz-meta-new", "1"),))
        assert endpoint.names().count("CompleteMultipartUpload") == 3
        assert (await bucket.head("k")).metadata == (("x-amz-meta-new", "1"),)

    @LOST
    @pytest_twisted.ensureDeferred
    async def test_create_only_is_refused(self, made: tuple[Scripted, S3Bucket], lost: Answer) -> None:
        """A create-only PUT right after the first is refused, as its upload still existed."""
        endpoint, bucket = made
        await put(bucket, LARGE)
        endpoint.script = first("CompleteMultipartUpload", lost)
        with pytest.raises(PreconditionFailed):
            await put(bucket, LARGE, ABSENT)


class OwnTests:
    """The write id."""

    @LOST
    @SIZES
    @pytest_twisted.ensureDeferred
    async def test_does_not_depend_on_etags(
        self, made: tuple[Scripted, S3Bucket], data: bytes, name: str, lost: Answer
    ) -> None:
        """A write is recognised by its id if ETags are no MD5s, as with encryption."""
        endpoint, bucket = made
        endpoint.etag_of = lambda _: secrets.token_hex(16)
        for condition in (ABSENT, None):
            endpoint.script = first(name, replace(lost, do_it_first=True))
            before = endpoint.names().count(name)
            info = await put(bucket, data, condition)
            assert endpoint.objects["k"] == (data, info.etag)
            assert endpoint.names().count(name) == before + 1

    @SIZES
    @pytest_twisted.ensureDeferred
    async def test_is_not_shown(self, made: tuple[Scripted, S3Bucket], data: bytes, name: str) -> None:
        """Each object has a random write id, which clients do not see."""
        endpoint, bucket = made
        seen = set()
        for _ in range(2):
            await put(bucket, data)
            seen.add(endpoint.objects.kept["k"][WRITE_ID_NAME])
            assert (await bucket.head("k")).metadata == ()
        assert len(seen) == 2

    @pytest_twisted.ensureDeferred
    async def test_has_no_room(self, made: tuple[Scripted, S3Bucket]) -> None:
        """A write whose metadata leave no room for an id recognises nothing."""
        endpoint, bucket = made
        name = "x-amz-meta-a"
        metadata = ((name, "x" * (2048 - len(name))),)
        lost = Answer(drop=True, do_it_first=True)
        endpoint.script = first("PutObject", lost)
        with pytest.raises(OutcomeUnknown):
            await put(bucket, SMALL, ABSENT, metadata)
        assert WRITE_ID_NAME not in endpoint.objects.kept["k"]
        endpoint.script = first("PutObject", lost)
        await put(bucket, SMALL, None, metadata)
        assert endpoint.names().count("PutObject") == 4


class DeleteTests:
    """An unconditional DELETE whose reply was lost."""

    async def lose(self, made: tuple[Scripted, S3Bucket], then: Callable[[Objects], None]) -> int:
        """Delete, lose the reply after a change of the objects; returns how often it was sent."""
        endpoint, bucket = made
        endpoint.objects["k"] = b"old", "etag"
        endpoint.script = first("DeleteObject", Answer(drop=True), lambda: then(endpoint.objects))
        await bucket.delete("k")
        return endpoint.names().count("DeleteObject")

    @pytest_twisted.ensureDeferred
    async def test_of_what_is_gone_is_not_sent_again(self, made: tuple[Scripted, S3Bucket]) -> None:
        """A DELETE is not repeated if the object is gone."""
        assert await self.lose(made, Objects.clear) == 1

    @pytest_twisted.ensureDeferred
    async def test_leaves_what_was_put_since(self, made: tuple[Scripted, S3Bucket]) -> None:
        """A DELETE is not repeated if the object was put after it began."""

        def put_another(objects: Objects) -> None:
            objects.keep("k", (b"new", "new"), {})
            objects.put_at["k"] += 10

        assert await self.lose(made, put_another) == 1
        assert made[0].objects["k"] == (b"new", "new")

    @pytest_twisted.ensureDeferred
    async def test_that_was_not_carried_out_is_sent_again(self, made: tuple[Scripted, S3Bucket]) -> None:
        """A DELETE is repeated if the old object is there."""
        assert await self.lose(made, lambda _: None) == 2
        assert made[0].objects == {}
