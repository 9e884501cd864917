"""S3Bucket against a scripted endpoint: what it sends, how faults end, and where credentials come from."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.conftest import Engines
from tests.engines.scripted import ERROR, Answer, Call, Scripted, scripted
from tests.support import UPKEEP, Body, BytesBody, Consumer, reactor
from twisted_storaged.buckets.s3 import bucket as s3
from twisted_storaged.buckets.s3.bucket import MAX_PARTS, MIN_PART_SIZE, S3Bucket, part_size
from twisted_storaged.buckets.s3.client import Part
from twisted_storaged.buckets.s3.session import CONNECT_TIMEOUT, READ_TIMEOUT, S3Settings, Upkeep, make_client
from twisted_storaged.buckets.s3.writer import combined_etag
from twisted_storaged.errors import (
    BodyLost,
    BucketFailed,
    BucketOverloaded,
    BucketTimedOut,
    BucketUnreachable,
    InvalidKey,
    ObjectNotFound,
    StartError,
)
from twisted_storaged.model import ListQuery, PutOptions
from twisted_storaged.protocol.metadata import metadata_headers

MiB = 1 << 20
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
LIMIT = 1 << 30
BIG = b"x" * (12 * MiB)


#: Prints credentials that will expire within botocore's ten minutes, each time others.
EXPIRING = """
import datetime, json, uuid
soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)
print(json.dumps({
    "Version": 1, "AccessKeyId": uuid.uuid4().hex, "SecretAccessKey": "s", "SessionToken": "t",
    "Expiration": soon.isoformat(),
}))
"""


@pytest.fixture
def endpoint(tmp_path: Path) -> Generator[tuple[Scripted, S3Bucket], None, None]:
    with scripted() as (endpoint, engine):
        bucket = S3Bucket("primary", engine.settings("bucket"), reactor, 4, Upkeep(tmp_path / "state"))
        bucket.start()
        yield endpoint, bucket
        pytest_twisted.blockon(bucket.stop())


def once(name: str, answer: Answer) -> Any:
    """A script that gives the first call of this operation this answer."""
    left = [answer]

    def script(call: Call) -> Answer | None:
        return left.pop() if call.name == name and left else None

    return script


def always(name: str, answer: Answer) -> Any:
    """A script that gives every call of this operation this answer."""
    return lambda call: answer if call.name == name else None


async def put(bucket: Any, data: bytes, key: str = "key") -> Any:
    return await bucket.put(key, BytesBody(data, chunk=MiB), LIMIT)


class PartSizeTests:
    """The size of parts."""

    @given(st.integers(0, 50 << 40))
    def test_there_is_never_a_part_too_many(self, longest: int) -> None:
        """The size of parts is one that S3 allows, gives at most 10,000 parts, and is no larger than necessary."""
        size = part_size(longest)
        assert size >= MIN_PART_SIZE
        assert size * MAX_PARTS >= longest
        assert size == MIN_PART_SIZE or (size - MiB) * MAX_PARTS < longest

    def test_limits_are_those_of_s3(self) -> None:
        """The limits are 5 MiB and 10,000 parts."""
        assert (5 * MiB, 10_000) == (MIN_PART_SIZE, MAX_PARTS)
        assert part_size(4 << 30) == 5 * MiB
        assert part_size(50_000 * MiB + 1) == 6 * MiB

    @pytest_twisted.ensureDeferred
    async def test_a_chunked_body_gets_parts_for_its_cap(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A body without a declared length gets parts for the largest length that is allowed."""
        made, bucket = endpoint
        await bucket.put("key", BytesBody(BIG + BIG, chunk=MiB, chunked=True), 100_000 * MiB)
        sizes = sorted(len(call.body) for call in made.calls if call.name == "UploadPart")
        assert sizes == [4 * MiB, 10 * MiB, 10 * MiB]


class CheckTests:
    """Checks of whether the storage can be used now."""

    @pytest_twisted.ensureDeferred
    async def test_one_key_is_listed(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A check is one list of one key, also of an empty bucket."""
        made, bucket = endpoint
        await bucket.check()
        assert made.names() == ["ListObjectsV2"]
        assert "max-keys=1&" in made.calls[0].target

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (Answer(503, ERROR % b"SlowDown"), BucketOverloaded),
            (Answer(403, ERROR % b"AccessDenied"), BucketFailed),
            (Answer(404), BucketFailed),
            (Answer(404, ERROR % b"NoSuchBucket"), BucketFailed),
            (Answer(500, ERROR % b"InternalError"), BucketFailed),
            (Answer(200, b"<html>Welcome</html>"), BucketFailed),
            (Answer(drop=True), BucketUnreachable),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_failure_is_not_retried(
        self, endpoint: tuple[Scripted, S3Bucket], answer: Answer, error: type[BucketFailed]
    ) -> None:
        """A check fails with the first response, or without one, and says why."""
        made, bucket = endpoint
        made.script = always("ListObjectsV2", answer)
        with pytest.raises(BucketFailed) as raised:
            await bucket.check()
        assert type(raised.value) is error
        assert made.names() == ["ListObjectsV2"]

    @pytest_twisted.ensureDeferred
    async def test_a_hanging_s3(self, endpoint: tuple[Scripted, S3Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
        """A check of an S3 that accepts the connection and sends nothing ends by its time limit."""
        made, bucket = endpoint
        monkeypatch.setattr(s3, "CHECK_SECONDS", 0.3)
        released = threading.Event()
        made.script = lambda _: Answer(503 if released.wait(30) else 500)
        with pytest.raises(BucketTimedOut, match="no response within"):
            await bucket.check()
        released.set()

    @pytest_twisted.ensureDeferred
    async def test_hanging_threads(self, endpoint: tuple[Scripted, S3Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
        """A check of a bucket whose threads all hang ends by its time limit; when they go on, the next succeeds."""
        _, bucket = endpoint
        monkeypatch.setattr(s3, "CHECK_SECONDS", 0.3)
        released = threading.Event()
        hanging = [bucket._threads.run(released.wait, 30) for _ in range(100)]
        with pytest.raises(BucketTimedOut, match="no thread"):
            await bucket.check()
        released.set()
        await gatherResults(hanging)
        await bucket.check()


class SentTests:
    """The requests that a PUT makes."""

    @pytest_twisted.ensureDeferred
    async def test_a_small_body_is_one_put_object(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A small body is one PutObject with a CRC-32C, without 100-continue or a hash of the payload."""
        made, bucket = endpoint
        await put(bucket, b"hello")
        assert made.names() == ["PutObject"]
        headers = made.calls[0].headers
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert headers["x-amz-checksum-crc32c"] == "mnG7TA=="
        assert "expect" not in headers
        assert "content-md5" not in headers
        assert "aws-chunked" not in headers.get("content-encoding", "")

    @pytest_twisted.ensureDeferred
    async def test_a_large_body_is_a_multipart_upload(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A large body is sent in parts that have the same size, except the last, each with its CRC-32C."""
        made, bucket = endpoint
        info = await put(bucket, BIG)
        assert made.names()[0] == "CreateMultipartUpload"
        assert made.names()[-1] == "CompleteMultipartUpload"
        parts = [call for call in made.calls if call.name == "UploadPart"]
        assert sorted(len(call.body) for call in parts) == [2 * MiB, 5 * MiB, 5 * MiB]
        assert all("x-amz-checksum-crc32c" in call.headers for call in parts)
        assert all(call.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD" for call in parts)
        assert made.objects["key"] == (BIG, info.etag)
        assert (info.size, made.uploads) == (len(BIG), {})

    @pytest_twisted.ensureDeferred
    async def test_parts_are_uploaded_side_by_side(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """Eight parts of a single PUT are uploaded in parallel while more of the body comes."""
        made, bucket = endpoint
        together = threading.Barrier(s3.WINDOW_ALONE, timeout=10)

        def wait_for_the_others(call: Call) -> None:
            if call.name == "UploadPart":
                together.wait()

        made.script = wait_for_the_others
        await put(bucket, b"x" * (s3.WINDOW_ALONE * MIN_PART_SIZE))
        assert not together.broken


class FaultTests:
    """Faults of S3."""

    @pytest.mark.parametrize("data", [b"small", BIG])
    @pytest.mark.parametrize("name", ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
    @pytest.mark.parametrize(
        "answer", [Answer(500, ERROR % b"InternalError"), Answer(503, ERROR % b"SlowDown"), Answer(drop=True)]
    )
    @pytest_twisted.ensureDeferred
    async def test_a_passing_fault_is_not_noticed(
        self, endpoint: tuple[Scripted, S3Bucket], name: str, answer: Answer, data: bytes
    ) -> None:
        """A PUT succeeds although S3 fails once, and the same bytes are sent again."""
        made, bucket = endpoint
        made.script = once(name, answer)
        info = await put(bucket, data)
        assert made.objects["key"] == (data, info.etag)
        assert made.uploads == {}

    @pytest_twisted.ensureDeferred
    async def test_metadata_that_is_not_ascii(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """Metadata that another client stored in another encoding is returned byte for byte, and the object is
        readable."""
        made, bucket = endpoint
        made.script = lambda call: (
            Answer(200, b"x", {"etag": '"e"', "last-modified": DATE, "x-amz-meta-a": "\u00fc"})
            if call.name == "GetObject"
            else None
        )
        reader = await bucket.get("key")
        assert (b"x-amz-meta-a", b"\xfc") in metadata_headers(reader.info.metadata)
        reader.close()

    @pytest.mark.parametrize("name", ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
    @pytest_twisted.ensureDeferred
    async def test_a_lasting_fault_fails_and_leaves_nothing(
        self, endpoint: tuple[Scripted, S3Bucket], name: str
    ) -> None:
        """A PUT that S3 keeps failing leaves the old object in place, and no upload."""
        made, bucket = endpoint
        made.objects["key"] = b"old", "etag"
        made.script = always(name, Answer(403, ERROR % b"AccessDenied"))
        with pytest.raises(BucketFailed, match="AccessDenied"):
            await put(bucket, b"small" if name == "PutObject" else BIG)
        assert made.objects["key"] == (b"old", "etag")
        assert made.uploads == {}

    @pytest_twisted.ensureDeferred
    async def test_an_error_inside_a_200_is_an_error(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """CompleteMultipartUpload may answer so.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        made, bucket = endpoint
        made.script = always("CompleteMultipartUpload", Answer(200, ERROR % b"InternalError"))
        with pytest.raises(BucketFailed, match="InternalError"):
            await put(bucket, BIG)
        assert made.objects == {}
        assert made.uploads == {}

    @pytest_twisted.ensureDeferred
    async def test_a_lost_reply_of_complete_is_checked(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A lost reply to CompleteMultipartUpload is a success if the object is found to be there, and nothing is
        sent again."""
        made, bucket = endpoint
        made.script = once("CompleteMultipartUpload", Answer(drop=True, do_it_first=True))
        info = await put(bucket, BIG)
        assert made.names().count("CompleteMultipartUpload") == 1
        assert made.objects["key"] == (BIG, info.etag)
        assert "AbortMultipartUpload" not in made.names()

    @pytest_twisted.ensureDeferred
    async def test_a_lost_reply_of_put_object_is_checked(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A PutObject whose reply was lost is not repeated, which would make a second version of the object."""
        made, bucket = endpoint
        made.script = once("PutObject", Answer(drop=True, do_it_first=True))
        info = await put(bucket, b"small")
        assert made.names() == ["PutObject", "HeadObject"]
        assert made.objects["key"] == (b"small", info.etag)

    @pytest_twisted.ensureDeferred
    async def test_the_same_bytes_with_other_metadata_are_sent_again(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """An old object with the same bytes and other metadata is not taken for the one whose reply was lost."""
        made, bucket = endpoint
        await put(bucket, b"small")
        made.script = once("PutObject", Answer(drop=True))
        await bucket.put("key", BytesBody(b"small"), MiB, PutOptions((("x-amz-meta-a", "1"),)))
        assert made.names().count("PutObject") == 3

    @pytest_twisted.ensureDeferred
    async def test_an_upload_that_may_have_been_completed_is_not_left_open(
        self, endpoint: tuple[Scripted, S3Bucket]
    ) -> None:
        """A completion that fails is an error, and the upload is aborted, if it still exists then."""
        made, bucket = endpoint
        made.script = always("CompleteMultipartUpload", Answer(drop=True))
        with pytest.raises(BucketUnreachable):
            await put(bucket, BIG)
        assert (made.objects, made.uploads) == ({}, {})

    @pytest_twisted.ensureDeferred
    async def test_somebody_elses_object_is_not_believed(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """The object of another client is not taken for that of an upload whose reply was lost."""
        made, bucket = endpoint
        made.objects["key"] = BIG, "somebody-elses"
        made.script = always("CompleteMultipartUpload", Answer(404, ERROR % b"NoSuchUpload"))
        with pytest.raises(BucketFailed, match="NoSuchUpload"):
            await put(bucket, BIG)

    @pytest_twisted.ensureDeferred
    async def test_an_empty_etag_is_computed(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """The ETag of an upload is computed if the engine returns none, as Ceph does, and not looked up."""
        made, bucket = endpoint
        empty = b"<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>"
        made.script = always("CompleteMultipartUpload", Answer(200, empty, do_it_first=True))
        info = await put(bucket, BIG)
        assert info.etag == made.objects["key"][1]
        assert "HeadObject" not in made.names()

    @pytest_twisted.ensureDeferred
    async def test_a_peer_that_leaves_aborts_the_upload(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A PUT whose client disconnects aborts the upload, after the parts in flight have returned."""
        made, bucket = endpoint
        body = Body(len(BIG))
        outcome = ensureDeferred(bucket.put("key", body, LIMIT))
        body.send(BIG[: 11 * MiB])
        body.fail(BodyLost("gone"))
        with pytest.raises(BodyLost):
            await outcome
        assert (made.objects, made.uploads) == ({}, {})
        assert made.names()[-1] == "AbortMultipartUpload"

    @pytest_twisted.ensureDeferred
    async def test_a_get_that_ends_short_fails(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A GET whose response ends too early fails, after the bytes that came."""
        made, bucket = endpoint
        head = {"ETag": '"e"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT", "Content-Length": "3000000"}
        made.script = always("GetObject", Answer(200, b"x" * 2_000_000, head))
        reader = await bucket.get("key")
        consumer = Consumer()
        with pytest.raises(BucketFailed):
            await reader.deliver(consumer)
        assert len(consumer.data) < 3_000_000

    @pytest.mark.parametrize(
        "headers",
        [
            {"ETag": '"e"'},
            {"ETag": '"e"', "Last-Modified": "yesterday"},
            {"Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"},
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_an_answer_that_says_too_little(
        self, endpoint: tuple[Scripted, S3Bucket], headers: dict[str, str]
    ) -> None:
        """A response without a valid date or ETag of the object is an error, and its connection is closed."""
        made, bucket = endpoint
        made.script = always("GetObject", Answer(200, b"x" * 1_000_000, headers))
        with pytest.raises(BucketFailed, match=r"does not say|no ETag"):
            await bucket.get("key")
        made.script = lambda _: None
        made.objects["key"] = b"x", "etag"
        (await bucket.get("key")).close()

    @pytest.mark.parametrize("code", [b"AccessDenied", b"NoSuchBucket", b"InvalidAccessKeyId"])
    @pytest_twisted.ensureDeferred
    async def test_not_every_4xx_is_a_missing_object(self, endpoint: tuple[Scripted, S3Bucket], code: bytes) -> None:
        """A missing bucket is an error of the bucket, not a missing object."""
        made, bucket = endpoint
        made.script = always("GetObject", Answer(403 if code != b"NoSuchBucket" else 404, ERROR % code))
        with pytest.raises(BucketFailed, match=code.decode()):
            await bucket.get("key")

    @pytest_twisted.ensureDeferred
    async def test_deleting_what_is_gone_is_fine(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """Deleting a missing object succeeds, also if the engine answers 404."""
        made, bucket = endpoint
        made.script = always("DeleteObject", Answer(404, ERROR % b"NoSuchKey"))
        await bucket.delete("key")

    @pytest_twisted.ensureDeferred
    async def test_nobody_there(self, endpoint: tuple[Scripted, S3Bucket]) -> None:
        """A PUT and a GET without S3 are errors that name the cause."""
        nobody = S3Bucket("primary", S3Settings("b", "", "http://127.0.0.1:9", "r", True, "a", "b"), reactor, 4, UPKEEP)
        nobody.start()
        with pytest.raises(BucketFailed, match=r"no connection to S3: .*refused"):
            await nobody.get("key")
        await nobody.stop()


class PrefixTests:
    """A bucket with a prefix, which others use, too."""

    @pytest_twisted.ensureDeferred
    async def test_clients_do_not_see_it(self, all_engines: Engines) -> None:
        """Clients see neither the prefix nor objects outside it."""
        engine = all_engines.get("moto")
        name = engine.new_bucket()
        engine.client().put_object(Bucket=name, Key="other/a", Body=b"")
        bucket = S3Bucket("primary", engine.settings(name, "mine/"), reactor, 4, UPKEEP)
        bucket.start()
        await put(bucket, b"x", "a")
        assert [info.key for info in (await bucket.list(ListQuery(""))).objects] == ["a"]
        assert {item["Key"] for item in engine.client().list_objects_v2(Bucket=name)["Contents"]} == {
            "mine/a",
            "other/a",
        }
        await bucket.delete("a")
        with pytest.raises(ObjectNotFound):
            await bucket.get("a")
        await bucket.stop()

    @pytest_twisted.ensureDeferred
    async def test_it_counts_towards_the_length_of_keys(self) -> None:
        """A key that is too long with the prefix is refused with the length that is left for keys."""
        bucket = S3Bucket("primary", S3Settings("b", "p" * 24, None, "r", None, "a", "b"), reactor, 4, UPKEEP)
        bucket.start()
        with pytest.raises(InvalidKey, match=r"key too long \(>1000 bytes\)"):
            await put(bucket, b"", "x" * 1001)
        await bucket.stop()


class CredentialsTests:
    """The credentials of requests."""

    def test_none_at_all(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A start without any credentials is refused."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        with pytest.raises(StartError, match="bucket primary: no credentials"):
            S3Bucket("primary", S3Settings("b", endpoint="http://127.0.0.1:1"), reactor, 4, UPKEEP).start()

    @pytest_twisted.ensureDeferred
    async def test_boto3s_chain_keeps_refreshing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Credentials that expire are refreshed by boto3, here from a process."""
        (tmp_path / "program.py").write_text(EXPIRING)
        (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {tmp_path}/program.py\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        with scripted() as (made, engine):
            settings = S3Settings("bucket", "", engine.endpoint, "us-east-1", True)
            bucket = S3Bucket("primary", settings, reactor, 4, Upkeep(tmp_path / "state"))
            bucket.start()
            for _ in range(3):
                await put(bucket, b"x")
            await bucket.stop()
        used = {call.headers["authorization"].split("Credential=")[1].split("/")[0] for call in made.calls}
        assert len(used) == 3

    def test_secrets_are_not_in_reprs(self) -> None:
        """The repr of settings, which may be logged, has no secrets."""
        assert "hunter2" not in repr(S3Settings("b", secret_access_key="hunter2"))


class AddressingTests:
    """The addresses and options of requests."""

    @pytest.mark.parametrize(
        ("path_style", "url"),
        [
            (True, "https://s3.example.org/bucket/key"),
            (False, "https://bucket.s3.example.org/key"),
        ],
    )
    def test_path_style_or_virtual_hosted(self, path_style: bool, url: str) -> None:
        """URLs have the bucket in the path or in the host, as configured."""
        client, _ = make_client(S3Settings("bucket", "", "https://s3.example.org", "eu-1", path_style, "a", "b"), 120)
        signed = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
        assert signed.startswith(url + "?")

    def test_timeouts_and_retries(self) -> None:
        """Timeouts are at most half the deadline of a request."""
        settings = S3Settings("b", region="eu-1", access_key_id="a", secret_access_key="b")
        config = make_client(settings, 2 * READ_TIMEOUT)[0].meta.config
        assert (config.connect_timeout, config.read_timeout) == (CONNECT_TIMEOUT, READ_TIMEOUT)
        assert config.retries["mode"] == "standard"
        config = make_client(settings, 8)[0].meta.config
        assert (config.connect_timeout, config.read_timeout) == (4, 4)  # there is time for another try


class CombinedEtagTests:
    """The ETag of a multipart upload."""

    def test_is_the_md5_of_md5s(self) -> None:
        """The ETag is the MD5 of the MD5s of the parts, and their number."""
        empty = Part(1, '"d41d8cd98f00b204e9800998ecf8427e"', "")
        assert combined_etag([empty]) == "59adb24ef3cdbe0297f05b395827453f-1"

    def test_is_no_objects_when_parts_have_others(self) -> None:
        """No ETag is computed if the ETags of the parts are no MD5s."""
        assert combined_etag([Part(1, '"something-else"', "")]) == ""
