"""AWS Signature Version 4 in the headers of requests, with an unsigned payload. No I/O.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

ALGORITHM = "AWS4-HMAC-SHA256"
# Instead of the payload's SHA-256, which costs more than all other work on a large request.
UNSIGNED = "UNSIGNED-PAYLOAD"


class Credentials(NamedTuple):
    """The credentials that sign a request; `token` is the session token of temporary ones."""

    access_key: str
    secret_key: str
    token: str | None = None


class Signer:
    """Signs requests for one region. Caches the timestamp for a second, and the derived key for a day."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._second = 0
        self._stamp = ""
        self._scope = ""
        self._derived_from: tuple[str, str] | None = None
        self._derived = HmacSha256(b"")

    def sign(
        self, method: str, path: str, query: str, headers: Mapping[str, str], credentials: Credentials
    ) -> dict[str, str]:
        """Return the headers of a signed request: `headers`, all of which are signed, and those of the signature.

        `path` and `query` are percent-encoded as S3 requires, and `query` is sorted. The names of `headers` are in
        lower case, and include `host`.
        """
        self._tick()
        signed = {**headers, "x-amz-content-sha256": UNSIGNED, "x-amz-date": self._stamp}
        if credentials.token is not None:
            signed["x-amz-security-token"] = credentials.token
        pairs = sorted(signed.items())
        listed = ";".join([name for name, _ in pairs])
        # Leading, trailing and repeated spaces of a value are not signed.
        canonical_headers = "".join([f"{name}:{' '.join(value.split())}\n" for name, value in pairs])
        canonical = f"{method}\n{path}\n{query}\n{canonical_headers}\n{listed}\n{UNSIGNED}"
        digest = sha256(canonical.encode("utf-8")).hexdigest()
        to_sign = f"{ALGORITHM}\n{self._stamp}\n{self._scope}\n{digest}"
        signature = self._mac(credentials.secret_key).hexdigest(to_sign.encode("ascii"))
        signed["authorization"] = (
            f"{ALGORITHM} Credential={credentials.access_key}/{self._scope}, SignedHeaders={listed}, "
            f"Signature={signature}"
        )
        return signed

    def _tick(self) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._scope = f"{self._stamp[:8]}/{self._region}/s3/aws4_request"

    def _mac(self, secret: str) -> HmacSha256:
        # The secret changes, too, where credentials are temporary.
        if self._derived_from != (self._scope, secret):
            # Four HMACs, whose result is valid until the date changes.
            key = f"AWS4{secret}".encode()
            for part in self._scope.split("/"):
                key = hmac.digest(key, part.encode("utf-8"), "sha256")
            self._derived_from, self._derived = (self._scope, secret), HmacSha256(key)
        return self._derived


class HmacSha256:
    """HMAC-SHA256 (RFC 2104) with a key of at most 64 bytes, which is hashed once: half of the work for a message."""

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")
        # The inner and the outer pad of RFC 2104.
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def hexdigest(self, message: bytes) -> str:
        """Return the authentication code of a message, in hexadecimal."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.hexdigest()
