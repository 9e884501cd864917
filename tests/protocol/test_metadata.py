"""Metadata on its way to S3 and back."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import NO_OPTIONS, PutOptions
from twisted_storaged.protocol.metadata import metadata_headers_for_s3, metadata_of_response

SHA = hashlib.sha256(b"x").digest()


class MetadataTests:
    """Names, values, digests."""

    def test_none(self) -> None:
        """Is bytes of which nobody knows more; that is not given back as if somebody had said so."""
        assert metadata_headers_for_s3(NO_OPTIONS) == {"content-type": "application/octet-stream"}
        assert metadata_of_response({"content-type": "application/octet-stream", "server": "x"}) == ((), {})
        assert metadata_of_response({"content-type": "binary/octet-stream"}) == ((), {})

    def test_comes_back_in_order(self) -> None:
        """Beside other headers, which are none."""
        metadata = (("cache-control", "no-store"), ("content-type", "text/html"), ("x-amz-meta-a", "1"))
        headers = metadata_headers_for_s3(PutOptions(metadata, expected={"sha-256": SHA, "md5": b"x" * 16}))
        assert headers["x-amz-meta-storaged-sha-256"] == b64encode(SHA).decode()
        answer = {"etag": "e", "x-amz-request-id": "1", **dict(reversed(headers.items()))}
        assert metadata_of_response(answer) == (metadata, {"sha-256": SHA})

    @pytest.mark.parametrize(
        "pair", [("x-amz-meta-storaged-sha-256", "AAAA"), ("x-amz-meta-a", "é"), ("content-disposition", "a=é")]
    )
    def test_what_s3_cannot_keep(self, pair: tuple[str, str]) -> None:
        """Is refused: our own names, and what is not ASCII."""
        with pytest.raises(InvalidRequest):
            metadata_headers_for_s3(PutOptions((pair,)))

    def test_digests_take_no_room_from_users(self) -> None:
        """S3 has 2 KiB for both; a digest that does not fit is not kept."""
        name = "x-amz-meta-a"
        for length, kept in ((1900, True), (2048 - len(name), False)):
            headers = metadata_headers_for_s3(PutOptions(((name, "v" * length),), expected={"sha-256": SHA}))
            assert ("x-amz-meta-storaged-sha-256" in headers) == kept

    def test_digests_that_are_none(self) -> None:
        """Somebody else wrote them."""
        assert metadata_of_response({"x-amz-meta-storaged-sha-256": "?"}) == ((), {})
