"""Metadata and digests as the headers that S3 stores with an object."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest

from twisted_storaged.errors import InvalidRequest
from twisted_storaged.model import NO_OPTIONS, PutOptions
from twisted_storaged.protocol.metadata import metadata_headers_for_s3, metadata_of_response

SHA = hashlib.sha256(b"x").digest()


class MetadataTests:
    """`metadata_headers_for_s3` and `metadata_of_response`."""

    def test_none(self) -> None:
        """An object without metadata is stored with the default type, which is not returned as metadata."""
        assert metadata_headers_for_s3(NO_OPTIONS) == {"content-type": "application/octet-stream"}
        assert metadata_of_response({"content-type": "application/octet-stream", "server": "x"}) == ((), {})
        assert metadata_of_response({"content-type": "binary/octet-stream"}) == ((), {})

    def test_is_returned_in_order(self) -> None:
        """Metadata and digests are found among the other headers of a response, and sorted by name."""
        metadata = (("cache-control", "no-store"), ("content-type", "text/html"), ("x-amz-meta-a", "1"))
        headers = metadata_headers_for_s3(PutOptions(metadata, expected={"sha-256": SHA, "md5": b"x" * 16}))
        assert headers["x-amz-meta-storaged-sha-256"] == b64encode(SHA).decode()
        response = {"etag": "e", "x-amz-request-id": "1", **dict(reversed(headers.items()))}
        assert metadata_of_response(response) == (metadata, {"sha-256": SHA})

    @pytest.mark.parametrize(
        "pair", [("x-amz-meta-storaged-sha-256", "AAAA"), ("x-amz-meta-a", "é"), ("content-disposition", "a=é")]
    )
    def test_what_s3_cannot_store(self, pair: tuple[str, str]) -> None:
        """Metadata with a name of storaged's own, or with a value that is not ASCII, is refused."""
        with pytest.raises(InvalidRequest):
            metadata_headers_for_s3(PutOptions((pair,)))

    def test_digests_take_no_room_from_users(self) -> None:
        """A digest is not stored if it does not fit into the 2 KiB that S3 has for it and the user's metadata."""
        name = "x-amz-meta-a"
        for length, kept in ((1900, True), (2048 - len(name), False)):
            headers = metadata_headers_for_s3(PutOptions(((name, "v" * length),), expected={"sha-256": SHA}))
            assert ("x-amz-meta-storaged-sha-256" in headers) == kept

    def test_invalid_digests(self) -> None:
        """A header with the name of a digest that is not base64 is ignored, as storaged did not write it."""
        assert metadata_of_response({"x-amz-meta-storaged-sha-256": "?"}) == ((), {})
