"""The calls of multipart uploads, compared with boto3's, and what their responses mean."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_twisted

from tests.buckets.s3.test_client import Pair, arguments_of, said
from tests.engines.scripted import ERROR, Answer, scripted
from twisted_storaged.buckets.s3 import responses
from twisted_storaged.buckets.s3.client import MultipartUploads, OpenUpload, Part
from twisted_storaged.buckets.s3.responses import RequestFailed
from twisted_storaged.buckets.s3.writer import condition_headers
from twisted_storaged.model import Condition, PutOptions
from twisted_storaged.protocol.http1 import ConnectionFailed
from twisted_storaged.protocol.metadata import metadata_headers_for_s3

KEY = "a/é +&<>"
PARTS = [Part(1, '"one"', "AAAAAA=="), Part(2, '"two"', "BBBBBB==")]
DONE = b'<CompleteMultipartUploadResult xmlns="x"><ETag>%s</ETag></CompleteMultipartUploadResult>'
CREATED = b"<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>"


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(responses, "_pause", lambda _: 0.0)
    with scripted() as (endpoint, engine):
        made = Pair(endpoint, engine.settings("bucket"))
        made.objects.start()
        yield made
        made.objects.stop()


class RequestTests:
    """Requests are equal to boto3's."""

    @pytest_twisted.ensureDeferred
    async def test_create(self, pair: Pair) -> None:
        """CreateMultipartUpload is the same, with metadata."""
        headers = metadata_headers_for_s3(PutOptions((("content-type", "text/html"), ("x-amz-meta-a", "1"))))
        assert await MultipartUploads(pair.objects).create(KEY, headers) == ("upload-1", False)
        mine = pair.last()
        arguments = arguments_of(headers)
        pair.boto.create_multipart_upload(Bucket="bucket", Key=KEY, ChecksumAlgorithm="CRC32C", **arguments)
        assert said(mine)[:2] == said(pair.last())[:2]
        assert {name: mine.headers[name] for name in ("x-amz-checksum-algorithm", *headers)} == {
            name: pair.last().headers[name] for name in ("x-amz-checksum-algorithm", *headers)
        }

    @pytest_twisted.ensureDeferred
    async def test_complete(self, pair: Pair) -> None:
        """CompleteMultipartUpload is the same, with a condition and the same XML."""
        pair.endpoint.script = lambda _: Answer(200, DONE % b'"e-2"')
        headers = condition_headers(Condition())
        assert await MultipartUploads(pair.objects).complete(KEY, "id/+", PARTS, headers) == '"e-2"'
        mine = pair.last()
        parts = [{"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC32C": part.checksum} for part in PARTS]
        upload = {"Bucket": "bucket", "Key": KEY, "UploadId": "id/+", "MultipartUpload": {"Parts": parts}}
        pair.boto.complete_multipart_upload(**upload, IfNoneMatch="*")
        theirs = pair.last()
        assert (mine.method, mine.target, mine.headers["if-none-match"]) == (
            theirs.method,
            theirs.target,
            theirs.headers["if-none-match"],
        )
        for part in PARTS:
            for text in (part.etag.strip('"'), part.checksum, f"<PartNumber>{part.number}</PartNumber>"):
                assert text.encode() in mine.body
                assert text.encode() in theirs.body

    @pytest_twisted.ensureDeferred
    async def test_abort(self, pair: Pair) -> None:
        """AbortMultipartUpload is the same."""
        pair.endpoint.script = lambda _: Answer(204)
        await MultipartUploads(pair.objects).abort(KEY, "id/+")
        mine = pair.last()
        pair.boto.abort_multipart_upload(Bucket="bucket", Key=KEY, UploadId="id/+")
        assert said(mine)[:2] == said(pair.last())[:2]


class AnswerTests:
    """The meaning of responses."""

    @pytest_twisted.ensureDeferred
    async def test_an_error_inside_a_200_is_tried_again(self, pair: Pair) -> None:
        """An error in a response of status 200, after white space, is retried."""
        answers = [Answer(200, DONE % b"e"), Answer(200, b"  \n" + ERROR % b"InternalError")]
        pair.endpoint.script = lambda _: answers.pop()
        assert await MultipartUploads(pair.objects).complete(KEY, "id", PARTS, {}) == "e"

    @pytest_twisted.ensureDeferred
    async def test_a_lost_reply_of_create_is_told(self, pair: Pair) -> None:
        """A lost reply to CreateMultipartUpload is reported, as there may be another upload with an unknown id."""
        answers = [Answer(200, CREATED % b"two"), Answer(drop=True)]
        pair.endpoint.script = lambda _: answers.pop()
        assert await MultipartUploads(pair.objects).create(KEY, {}) == ("two", True)

    @pytest_twisted.ensureDeferred
    async def test_those_of_a_key(self, pair: Pair) -> None:
        """The uploads of a key do not include those of longer keys."""
        upload = "<Upload><Key>{}</Key><UploadId>{}</UploadId><Initiated>2023-11-14T22:13:20.000Z</Initiated></Upload>"
        body = "".join(upload.format(key, key) for key in ("a", "ab"))
        xml = f'<ListMultipartUploadsResult xmlns="x">{body}</ListMultipartUploadsResult>'
        pair.endpoint.script = lambda _: Answer(200, xml.encode())
        assert await MultipartUploads(pair.objects).of("a") == [OpenUpload("a", "a", 1_700_000_000.0)]

    @pytest.mark.parametrize(("xml", "expected"), [(b"<R><Part/></R>", True), (b"<R/>", False)])
    @pytest_twisted.ensureDeferred
    async def test_whether_it_has_parts(self, pair: Pair, xml: bytes, expected: bool) -> None:
        """An upload has parts as soon as it has one."""
        pair.endpoint.script = lambda _: Answer(200, xml)
        assert await MultipartUploads(pair.objects).has_parts(KEY, "id") == expected

    @pytest_twisted.ensureDeferred
    async def test_no_xml(self, pair: Pair) -> None:
        """A response that is not XML is a failure."""
        pair.endpoint.script = lambda _: Answer(200, b"hello")
        with pytest.raises(ConnectionFailed, match="has no UploadId"):
            await MultipartUploads(pair.objects).create(KEY, {})

    @pytest_twisted.ensureDeferred
    async def test_an_error(self, pair: Pair) -> None:
        """A response of 404 is a failure."""
        pair.endpoint.script = lambda _: Answer(404, ERROR % b"NoSuchUpload")
        with pytest.raises(RequestFailed, match="NoSuchUpload"):
            await MultipartUploads(pair.objects).abort(KEY, "id")
