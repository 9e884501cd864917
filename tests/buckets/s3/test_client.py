"""The requests of the data plane, compared with boto3's: method, path, query, headers and body."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_twisted
from botocore.exceptions import ClientError, CredentialRetrievalError, MetadataRetrievalError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import NameOID
from twisted.internet.defer import Deferred

from tests.buckets.test_contract import METADATA, ODD_KEYS
from tests.engines import HOST
from tests.engines.scripted import ERROR, Answer, Call, Scripted, scripted
from tests.support import BytesBody, Consumer, reactor, result, run_now
from twisted_storaged.buckets.s3 import responses
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.client import IN_THREAD_FROM, DataPlane, crc32c
from twisted_storaged.buckets.s3.responses import RequestFailed, Retries
from twisted_storaged.buckets.s3.session import S3Settings, Upkeep, credential_source, make_client, make_data_plane
from twisted_storaged.buckets.s3.writer import condition_headers
from twisted_storaged.model import ByteRange, Condition, PutOptions
from twisted_storaged.protocol.http1 import AmbiguousFailure, ConnectionFailed
from twisted_storaged.protocol.metadata import metadata_headers_for_s3
from twisted_storaged.protocol.sigv4 import Credentials

#: What boto3 says about itself, or waits for, and what is different at each time of signing.
OWN = {
    "expect",
    "user-agent",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "x-amz-date",
    "authorization",
    "accept-encoding",
}
LARGE = bytearray(b"x" * (IN_THREAD_FROM + 1))


def arguments_of(headers: dict[str, str]) -> dict[str, Any]:
    """The arguments of boto3's calls for these headers."""
    names = {
        "cache-control": "CacheControl",
        "content-disposition": "ContentDisposition",
        "content-encoding": "ContentEncoding",
        "content-type": "ContentType",
        "if-match": "IfMatch",
        "if-none-match": "IfNoneMatch",
    }
    own = "x-amz-meta-"
    users = {name.removeprefix(own): value for name, value in headers.items() if name.startswith(own)}
    arguments: dict[str, Any] = {names[name]: value for name, value in headers.items() if name in names}
    return {**arguments, "Metadata": users} if users else arguments


class Pair:
    """boto3 and the data plane, both with one scripted endpoint."""

    def __init__(self, endpoint: Scripted, settings: S3Settings) -> None:
        self.endpoint = endpoint
        self.boto, credentials = make_client(settings, 120)
        self.objects: DataPlane = make_data_plane(self.boto, credentials, "bucket", run_now, Retries(reactor, 60))

    def last(self) -> Call:
        return self.endpoint.calls[-1]


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[Pair]:
    with scripted() as (endpoint, engine):
        made = Pair(endpoint, engine.settings("bucket"))
        yield made
        made.objects.stop()


@pytest.fixture
def pair(shared_pair: Pair) -> Pair:
    shared_pair.endpoint.reset()
    return shared_pair


def said(call: Call) -> tuple[Any, ...]:
    """Everything of a request that is to be compared."""
    parts = urlsplit(call.target)
    headers = {name: value for name, value in call.headers.items() if name not in OWN}
    return call.method, parts.path, parse_qs(parts.query, keep_blank_values=True), headers, call.body


class SameAsBoto3Tests:
    """Requests are equal to boto3's."""

    @pytest.mark.parametrize("body", [b"", b"hello", bytes(LARGE)])
    @pytest.mark.parametrize("key", ODD_KEYS)
    @pytest_twisted.ensureDeferred
    async def test_put_object(self, pair: Pair, key: str, body: bytes) -> None:
        """PutObject is the same, whether it is sent by the reactor or by a thread."""
        await pair.objects.put_object(key, bytearray(body))
        mine = pair.last()
        pair.boto.put_object(Bucket="bucket", Key=key, Body=body, ChecksumCRC32C=crc32c(bytearray(body)))
        theirs = pair.last()
        # Told by hand which checksum it is, boto3 says that too; S3 knows by the header that carries it.
        theirs.headers.pop("x-amz-sdk-checksum-algorithm", None)
        # Over http, boto3 hashes payloads.
        for call in (mine, theirs):
            call.headers.pop("x-amz-content-sha256")
        assert said(mine) == said(theirs)

    @pytest.mark.parametrize("condition", [Condition(), Condition("0123abc-7")])
    @pytest_twisted.ensureDeferred
    async def test_put_object_with_metadata_and_a_condition(self, pair: Pair, condition: Condition) -> None:
        """PutObject has the same headers for metadata and conditions."""
        pair.endpoint.script = lambda _: Answer(headers={"ETag": '"etag"'})
        options = PutOptions(METADATA, expected={"sha-256": b"x" * 32})
        headers = metadata_headers_for_s3(options)
        await pair.objects.put_object("k", bytearray(b"x"), {**headers, **condition_headers(condition)})
        mine = pair.last()
        arguments = arguments_of({**headers, **condition_headers(condition)})
        pair.boto.put_object(Bucket="bucket", Key="k", Body=b"x", ChecksumCRC32C=crc32c(bytearray(b"x")), **arguments)
        theirs = pair.last()
        theirs.headers.pop("x-amz-sdk-checksum-algorithm", None)
        for call in (mine, theirs):
            call.headers.pop("x-amz-content-sha256")
        assert said(mine) == said(theirs)

    @pytest.mark.parametrize("wanted", [ByteRange(0, 5), ByteRange(3, None), ByteRange(None, 2)])
    @pytest_twisted.ensureDeferred
    async def test_get_object(self, pair: Pair, wanted: ByteRange) -> None:
        """GetObject is the same with a range and a condition."""
        pair.endpoint.objects["k"] = b"0123456789", "etag"
        headers = {"range": str(wanted), **condition_headers(Condition("etag"))}
        answer = await pair.objects.read_object("k", headers)
        mine = pair.last()
        theirs = pair.boto.get_object(Bucket="bucket", Key="k", Range=str(wanted), IfMatch='"etag"')
        assert theirs["Body"].read() == answer.body
        for name in ("x-amz-content-sha256", "x-amz-checksum-mode"):
            mine.headers.pop(name, None)
            pair.last().headers.pop(name, None)
        assert said(mine) == said(pair.last())

    @pytest_twisted.ensureDeferred
    async def test_delete_object_with_a_condition(self, pair: Pair) -> None:
        """DeleteObject is the same with a condition."""
        pair.endpoint.script = lambda _: Answer(204)
        await pair.objects.delete_object("k", condition_headers(Condition("etag")))
        mine = pair.last()
        pair.boto.delete_object(Bucket="bucket", Key="k", **arguments_of(condition_headers(Condition("etag"))))
        theirs = pair.last()
        assert said(mine)[:3] == said(theirs)[:3]
        assert mine.headers["if-match"] == theirs.headers["if-match"] == '"etag"'

    @pytest.mark.parametrize("key", ODD_KEYS)
    @pytest_twisted.ensureDeferred
    async def test_head_and_delete(self, pair: Pair, key: str) -> None:
        """HeadObject and DeleteObject are the same, without a body."""
        pair.endpoint.objects[key] = b"x", "etag"
        for ours, theirs in (
            (pair.objects.head_object, pair.boto.head_object),
            (pair.objects.delete_object, pair.boto.delete_object),
        ):
            pair.endpoint.objects[key] = b"x", "etag"
            await ours(key)
            mine = pair.last()
            pair.endpoint.objects[key] = b"x", "etag"
            theirs(Bucket="bucket", Key=key)
            assert said(mine)[:3] == said(pair.last())[:3]

    @pytest.mark.parametrize("prefix", ["", "a/b c+d", "ä€😀&=%"])
    @pytest.mark.parametrize(
        ("query", "arguments"),
        [
            ({}, {}),
            ({"continuation-token": "1/to+ken="}, {"ContinuationToken": "1/to+ken="}),
            (
                {"delimiter": "/", "start-after": "a/é+", "max-keys": "7"},
                {"Delimiter": "/", "StartAfter": "a/é+", "MaxKeys": 7},
            ),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_list_objects(
        self, pair: Pair, prefix: str, query: dict[str, str], arguments: dict[str, object]
    ) -> None:
        """ListObjectsV2 is the same, with boto3's encoding of keys."""
        page = b"<ListBucketResult></ListBucketResult>"
        pair.endpoint.script = lambda _: Answer(body=page)
        await pair.objects.list_objects({"prefix": prefix, **query})
        mine = pair.last()
        pair.boto.list_objects_v2(Bucket="bucket", Prefix=prefix, **arguments)
        assert said(mine)[:3] == said(pair.last())[:3]

    @pytest_twisted.ensureDeferred
    async def test_upload_part(self, pair: Pair) -> None:
        """UploadPart is the same, of an upload that boto3 created."""
        upload = pair.boto.create_multipart_upload(Bucket="bucket", Key="k")["UploadId"]
        await pair.objects.upload_part("k", upload, 7, bytearray(b"part"), crc32c(bytearray(b"part")))
        mine = pair.last()
        pair.boto.upload_part(Bucket="bucket", Key="k", UploadId=upload, PartNumber=7, Body=b"part")
        assert said(mine)[:3] == said(pair.last())[:3]
        assert mine.headers["x-amz-checksum-crc32c"] == crc32c(bytearray(b"part"))


class ThreadsTests:
    """Which requests threads send."""

    @pytest_twisted.ensureDeferred
    async def test_large_bodies_are_a_threads(self, pair: Pair) -> None:
        """Only large bodies are sent by threads."""
        calls: list[str] = []

        def run(call: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls.append(call.__name__)
            return run_now(call, *args, **kwargs)

        _, credentials = make_client(S3Settings("b", region="r", access_key_id="id", secret_access_key="s"), 120)
        objects = make_data_plane(pair.boto, credentials, "bucket", run, Retries(reactor, 60))
        await objects.put_object("k", bytearray(IN_THREAD_FROM))
        await objects.head_object("k")
        assert calls == []
        await objects.put_object("k", LARGE)
        assert calls == ["ask"]
        objects.stop()


class RetriesTests:
    """Which requests are repeated, compared with boto3's `standard` mode."""

    @pytest.mark.parametrize(
        ("answer", "tries"),
        [
            (Answer(500, ERROR % b"InternalError"), 3),
            (Answer(502), 3),
            (Answer(503, ERROR % b"SlowDown"), 3),
            (Answer(400, ERROR % b"RequestTimeout"), 3),
            (Answer(429), 3),
            (Answer(400, ERROR % b"BadDigest"), 1),
            (Answer(403, ERROR % b"AccessDenied"), 1),
            (Answer(301, ERROR % b"PermanentRedirect"), 1),
        ],
    )
    @pytest.mark.parametrize("body", [bytearray(b"small"), LARGE])
    @pytest_twisted.ensureDeferred
    async def test_errors(
        self, pair: Pair, answer: Answer, tries: int, body: bytearray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Errors that may pass are retried; others fail at once, with S3's error code."""
        monkeypatch.setattr(responses, "_pause", lambda _: 0.0)
        pair.endpoint.script = lambda _: answer
        with pytest.raises(RequestFailed, match=f"PutObject: {answer.status}"):
            await pair.objects.put_object("k", body)
        puts = [call for call in pair.endpoint.calls if call.name == "PutObject"]
        assert len(puts) == tries
        assert {bytes(call.body) for call in puts} == {bytes(body)}

    @pytest.mark.parametrize(
        ("fault", "again"),
        [
            (Answer(drop=True), True),
            (Answer(500, ERROR % b"InternalError"), True),
            (Answer(503, ERROR % b"SlowDown"), False),
            (None, False),
        ],
    )
    @pytest.mark.parametrize("body", [bytearray(b"small"), LARGE])
    @pytest_twisted.ensureDeferred
    async def test_whether_it_may_have_been_carried_out_before(
        self, pair: Pair, fault: Answer | None, again: bool, body: bytearray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A failed request says whether an earlier attempt may have been carried out."""
        monkeypatch.setattr(responses, "_pause", lambda _: 0.0)
        answers = [Answer(412, ERROR % b"PreconditionFailed"), *([fault] if fault else [])]
        pair.endpoint.script = lambda call: answers.pop() if call.name == "PutObject" else None
        with pytest.raises(AmbiguousFailure if again else RequestFailed):
            await pair.objects.put_object("k", body, {"if-none-match": "*"})

    def test_pauses_grow_and_end(self) -> None:
        """Pauses between attempts grow up to a limit, and have jitter."""
        assert all(0 <= responses._pause(tries) <= 2.0 ** (tries - 1) for tries in range(1, 6))
        assert len({responses._pause(3) for _ in range(10)}) > 1
        assert responses._pause(100) <= responses.LONGEST_PAUSE


class KeysTests:
    """The credentials that requests are signed with."""

    def test_static_ones_need_no_thread(self) -> None:
        """Static credentials are used without a call in a thread."""
        _, credentials = make_client(S3Settings("b", region="r", access_key_id="id", secret_access_key="s"), 120)
        source = credential_source(credentials, None)  # type: ignore[arg-type]
        assert result(_awaited(source.get()))[:3] == Credentials("id", "s", None)

    def test_those_that_expire_are_fetched_by_one(self) -> None:
        """Credentials that expire soon are refreshed in a thread."""
        calls: list[str] = []

        class Expiring:
            def refresh_needed(self) -> bool:
                return True

            def get_frozen_credentials(self) -> Credentials:
                return Credentials("fresh", "s", "t")

        def run(call: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls.append(call.__name__)
            return run_now(call, *args, **kwargs)

        source = credential_source(Expiring(), run)
        assert result(_awaited(source.get())) == Credentials("fresh", "s", "t")
        assert calls == ["get_frozen_credentials"]

    def test_those_that_do_not_expire_soon_need_no_thread(self) -> None:
        """Temporary credentials with enough time left are used as they are, without a call in a thread."""

        class Fresh:
            def refresh_needed(self) -> bool:
                return False

            def get_frozen_credentials(self) -> Credentials:
                return Credentials("fresh", "s", "t")

        source = credential_source(Fresh(), None)  # type: ignore[arg-type]
        assert result(_awaited(source.get())) == Credentials("fresh", "s", "t")

    def test_those_that_come_expired_are_a_failure(self) -> None:
        """Credentials that are expired when they are refreshed fail the request, as if S3 could not be reached."""

        class Expired:
            def refresh_needed(self) -> bool:
                return True

            def get_frozen_credentials(self) -> Credentials:
                raise RuntimeError("still expired")

        with pytest.raises(ConnectionFailed, match="still expired"):
            result(_awaited(credential_source(Expired(), run_now).get()))

    @pytest.mark.parametrize(
        "error",
        [
            MetadataRetrievalError(error_msg="the metadata service is away"),
            CredentialRetrievalError(provider="sso", error_msg="the metadata service is away"),
            ClientError({"Error": {"Code": "500", "Message": "the metadata service is away"}}, "AssumeRole"),
        ],
    )
    def test_a_refresh_that_fails_is_a_failure_of_s3(self, error: Exception) -> None:
        """Every error of botocore during a refresh fails the request, as if S3 could not be reached."""

        class Failing:
            def refresh_needed(self) -> bool:
                return True

            def get_frozen_credentials(self) -> Credentials:
                raise error

        with pytest.raises(ConnectionFailed, match=r"no credentials for S3: .*the metadata service is away"):
            result(_awaited(credential_source(Failing(), run_now).get()))


class TlsTests:
    """Requests over https."""

    @pytest_twisted.ensureDeferred
    async def test_small_and_large_both_ways(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """PUTs and GETs of all sizes work over https with a certificate that AWS_CA_BUNDLE names."""
        certificate, key = self.certificate(tmp_path)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        with scripted(tls=(certificate, key)) as (_, engine):
            bucket = S3Bucket("primary", engine.settings("bucket"), reactor, 4, Upkeep(tmp_path / "state"))
            bucket.start()
            for size in (5, 600_000, 12_000_000):
                await bucket.put("k", BytesBody(b"x" * size, chunk=1 << 20), 1 << 30)
                consumer = Consumer()
                reader = await bucket.get("k")
                await reader.deliver(consumer)
                assert consumer.data == b"x" * size
            await bucket.stop()

    @pytest.mark.parametrize("size", [5, 600_000])
    @pytest_twisted.ensureDeferred
    async def test_a_certificate_that_nobody_vouches_for(self, tmp_path: Path, size: int) -> None:
        """No request is sent to a server whose certificate is not trusted."""
        with scripted(tls=self.certificate(tmp_path)) as (endpoint, engine):
            objects = Pair(endpoint, engine.settings("bucket")).objects
            with pytest.raises(Exception, match="certificate verify failed"):
                await objects.put_object("k", bytearray(size))
            assert endpoint.calls == []
            objects.stop()

    @staticmethod
    def certificate(folder: Path) -> tuple[Path, Path]:
        """A self-signed certificate for this host, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
        here = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST)), x509.DNSName("localhost")])
        certificate = builder.add_extension(here, critical=False).sign(key, SHA256())
        (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "key.pem").write_bytes(pem)
        return folder / "cert.pem", folder / "key.pem"


def _awaited(coroutine: Any) -> Any:
    return Deferred.fromCoroutine(coroutine)
