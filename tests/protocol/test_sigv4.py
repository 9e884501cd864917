"""Signatures, against botocore's."""

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


def botocores(url: str, method: str, headers: dict[str, str], keys: Credentials, stamp: str) -> dict[str, str]:
    """The headers that botocore would send at that time."""
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
    """What a request is signed with."""

    @given(
        key=TEXT,
        prefix=TEXT,
        token=st.none() | st.from_regex(r"[A-Za-z0-9/+]{1,20}", fullmatch=True),
        method=st.sampled_from(["GET", "PUT"]),
        value=st.text("ab  =,;", max_size=10),
    )
    def test_is_what_botocore_would_sign_with(
        self, key: str, prefix: str, token: str | None, method: str, value: str
    ) -> None:
        """For any key and query, with and without a session token."""
        keys = Credentials("AKID", "secret", token)
        path, query = "/bucket/" + quote(key, safe="/~"), f"list-type=2&prefix={quote(prefix, safe='')}"
        headers = {"host": "s3.example", "x-amz-checksum-crc32c": "mnG7TA==", "x-amz-meta-a": value}
        signed = Signer("eu-1").sign(method, path, query, headers, keys)
        expected = botocores(f"https://s3.example{path}?{query}", method, headers, keys, signed["x-amz-date"])
        assert signed["authorization"] == expected["authorization"]
        assert signed.get("x-amz-security-token") == token

    def test_follows_the_time_and_the_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is remembered for a second, or a day, is not used after it, nor with another key."""
        signer, now = Signer("eu-1"), [1_700_000_000.0]
        monkeypatch.setattr(time, "time", lambda: now[0])

        def sign(secret: str = "secret") -> tuple[str, str]:
            signed = signer.sign("GET", "/", "", {"host": "h"}, Credentials("AKID", secret))
            expected = botocores("https://h/", "GET", {"host": "h"}, Credentials("AKID", secret), signed["x-amz-date"])
            assert signed["authorization"] == expected["authorization"]
            return signed["x-amz-date"], signed["authorization"]

        first = sign()
        assert sign() == first
        now[0] += 1
        assert sign()[0] == "20231114T221321Z"
        now[0] += 86400
        assert sign()[0] == "20231115T221321Z"
        assert sign("other") != sign()
