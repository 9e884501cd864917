"""Signatures, compared with botocore's."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from botocore import credentials
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.protocol.sigv4 import Credentials, Signer

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


def signed_by_botocore(url: str, method: str, headers: dict[str, str], keys: Credentials, stamp: str) -> dict[str, str]:
    """The headers of botocore's signature at the time `stamp`."""
    request = AWSRequest(method=method, url=url, headers=headers)
    request.context.update(timestamp=stamp, payload_signing_enabled=False)
    request.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
    auth = S3SigV4Auth(credentials.Credentials(keys.access_key, keys.secret_key, keys.token), "s3", "eu-1")
    request.headers["X-Amz-Date"] = stamp
    if keys.token:
        request.headers["X-Amz-Security-Token"] = keys.token
    canonical = auth.canonical_request(request)
    signature = auth.signature(auth.string_to_sign(request, canonical), request)
    names = auth.signed_headers(auth.headers_to_sign(request))
    scope = f"{stamp[:8]}/eu-1/s3/aws4_request"
    credential = f"Credential={keys.access_key}/{scope}"
    return {"authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"}


class SignerTests:
    """`Signer`."""

    @given(
        key=TEXT,
        prefix=TEXT,
        token=st.none() | st.from_regex(r"[A-Za-z0-9/+]{1,20}", fullmatch=True),
        method=st.sampled_from(["GET", "PUT"]),
        value=st.text("ab  =,;", max_size=10),
    )
    def test_a_signature_is_that_of_botocore(
        self, key: str, prefix: str, token: str | None, method: str, value: str
    ) -> None:
        """The signature of any key, query and metadata, with or without a session token, is that of botocore."""
        keys = Credentials("AKID", "secret", token)
        path, query = "/bucket/" + quote(key, safe="/~"), f"list-type=2&prefix={quote(prefix, safe='')}"
        headers = {"host": "s3.example", "x-amz-checksum-crc32c": "mnG7TA==", "x-amz-meta-a": value}
        signed = Signer("eu-1").sign(method, path, query, headers, keys)
        expected = signed_by_botocore(f"https://s3.example{path}?{query}", method, headers, keys, signed["x-amz-date"])
        assert signed["authorization"] == expected["authorization"]
        assert signed.get("x-amz-security-token") == token

    def test_follows_the_time_and_the_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The cached timestamp and key are not used in another second, on another day, or with another secret."""
        signer, now = Signer("eu-1"), [1_700_000_000.0]
        monkeypatch.setattr(time, "time", lambda: now[0])

        def sign(secret: str = "secret") -> tuple[str, str]:
            keys = Credentials("AKID", secret)
            signed = signer.sign("GET", "/", "", {"host": "h"}, keys)
            expected = signed_by_botocore("https://h/", "GET", {"host": "h"}, keys, signed["x-amz-date"])
            assert signed["authorization"] == expected["authorization"]
            return signed["x-amz-date"], signed["authorization"]

        first = sign()
        assert sign() == first
        now[0] += 1
        assert sign()[0] == "20231114T221321Z"
        now[0] += 86400
        assert sign()[0] == "20231115T221321Z"
        assert sign("other") != sign()
