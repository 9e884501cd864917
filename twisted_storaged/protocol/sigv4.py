"""AWS Signature Version 4, in headers, of requests whose payload is not signed. No I/O.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"


class Credentials(NamedTuple):
    """What a request is signed with, as of now; `token` is that of temporary credentials."""

    access_key: str
    secret_key: str
    token: str | None = None


class Signer:
    """Signs for one region; remembers what is the same for a second, and for a day."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._second = 0
        self._stamp = ""
        self._scope = ""
        self._derived_from: tuple[str, str] | None = None
        self._derived = HmacSha256(b"")

    def sign(self, method: str, path: str, query: str, headers: Mapping[str, str], keys: Credentials) -> dict[str, str]:
        """All headers that the request must have: `headers` and those of the signature.

        `path` and `query` are encoded as S3 wants it (and `query` sorted), the names of `headers` in lower case;
        `host` is among them. All of them are signed.
        """
        self._tick()
        signed = {**headers, "x-amz-content-sha256": UNSIGNED, "x-amz-date": self._stamp}
        if keys.token is not None:
            signed["x-amz-security-token"] = keys.token
        pairs = sorted(signed.items())
        listed = ";".join([name for name, _ in pairs])
        canonical_headers = "".join([f"{name}:{' '.join(value.split())}\n" for name, value in pairs])
        canonical = f"{method}\n{path}\n{query}\n{canonical_headers}\n{listed}\n{UNSIGNED}"
        digest = sha256(canonical.encode("utf-8")).hexdigest()
        to_sign = f"{ALGORITHM}\n{self._stamp}\n{self._scope}\n{digest}"
        signature = self._mac(keys.secret_key).hexdigest(to_sign.encode("ascii"))
        signed["authorization"] = (
            f"{ALGORITHM} Credential={keys.access_key}/{self._scope}, SignedHeaders={listed}, Signature={signature}"
        )
        return signed

    def _tick(self) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._scope = f"{self._stamp[:8]}/{self._region}/s3/aws4_request"

    def _mac(self, secret: str) -> HmacSha256:
        if self._derived_from != (self._scope, secret):
            key = f"AWS4{secret}".encode()
            for part in self._scope.split("/"):
                key = hmac.digest(key, part.encode("utf-8"), "sha256")
            self._derived_from, self._derived = (self._scope, secret), HmacSha256(key)
        return self._derived


class HmacSha256:
    """HMAC-SHA256 with one key of at most 64 bytes: half of its work is the key's, and is done once. RFC 2104."""

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def hexdigest(self, message: bytes) -> str:
        """The code of a message, in hexadecimal."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.hexdigest()
