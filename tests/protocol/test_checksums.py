"""Checksums of S3: which checksum of a response is used, and how bytes are verified against it."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from itertools import pairwise

import pytest
from awscrt import checksums
from hypothesis import given
from hypothesis import strategies as st

from tests.support import Consumer
from twisted_storaged.buckets.s3.response_body import VerifyingConsumer
from twisted_storaged.protocol.checksums import (
    CRC32C,
    MD5,
    Algorithm,
    ExpectedChecksum,
    Verification,
    checksum_from_etag,
    checksum_from_headers,
    decode_digest,
)

DATA = b"123456789"
#: The checksums of DATA, the nine digits for which catalogues of CRCs give the result. https://reveng.sourceforge.io/crc-catalogue/all.htm
DIGESTS = {
    "crc32c": bytes.fromhex("e3069283"),
    "crc32": bytes.fromhex("cbf43926"),
    "crc64nvme": bytes.fromhex("ae8b14860a799888"),
    "sha1": hashlib.sha1(DATA).digest(),
    "sha256": hashlib.sha256(DATA).digest(),
}


def b64(digest: bytes) -> str:
    return b64encode(digest).decode()


def told(name: str, digest: bytes = b"", suffix: str = "", kind: str = "") -> dict[str, str]:
    headers = {f"x-amz-checksum-{name}": b64(digest or DIGESTS[name]) + suffix}
    return {**headers, "x-amz-checksum-type": kind} if kind else headers


class ExpectedChecksumTests:
    """`checksum_from_headers` and `checksum_from_etag`."""

    @pytest.mark.parametrize("name", DIGESTS)
    @pytest.mark.parametrize("kind", ["", "FULL_OBJECT"])
    def test_a_full_object_checksum(self, name: str, kind: str) -> None:
        """A full-object checksum of each algorithm of S3 accepts the bytes it is of, and rejects a changed byte."""
        known = checksum_from_headers(told(name, kind=kind))
        assert known is not None
        assert (known.algorithm.name, known.digest, known.parts) == (name, DIGESTS[name], None)
        for data, right in ((DATA, True), (b"123456780", False)):
            verification = Verification(known, len(data))
            for byte in data:
                verification.update(bytes([byte]))
            assert (verification.left, verification.mismatch() is None) == (0, right)

    @pytest.mark.parametrize("kind", ["", "COMPOSITE"])
    def test_a_composite_checksum(self, kind: str) -> None:
        """A composite checksum has the number of parts after a hyphen."""
        known = checksum_from_headers(told("crc32c", suffix="-3", kind=kind))
        assert known == ExpectedChecksum(CRC32C, DIGESTS["crc32c"], "x-amz-checksum-crc32c", 3)

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            told("crc32c", kind="COMPOSITE"),
            told("crc32c", suffix="-3", kind="FULL_OBJECT"),
            told("crc32c", suffix="-0"),
            told("crc32c", suffix="-3-4"),
            told("crc32c", digest=b"12345"),
            {"x-amz-checksum-crc32c": "====", "x-amz-checksum-sha1": ""},
            {"x-amz-checksum-type": "FULL_OBJECT", "x-amz-checksum-algorithm": "CRC32C"},  # rclone, of parts
        ],
    )
    def test_invalid_headers(self, headers: dict[str, str]) -> None:
        """A checksum header that is malformed, or contradicts the checksum type, is ignored."""
        assert checksum_from_headers(headers) is None

    def test_the_best_of_several(self) -> None:
        """Of several checksums, a full-object one is preferred, and then a fast one."""
        sha256, crc32 = told("sha256"), told("crc32")
        known = checksum_from_headers({**sha256, **crc32, **told("crc32c", suffix="-3")})
        assert known is not None
        assert (known.algorithm.name, known.algorithm.slow) == ("crc32", False)
        known = checksum_from_headers({**sha256, "x-amz-checksum-crc32c": "x"})
        assert known is not None
        assert (known.algorithm.name, known.algorithm.slow) == ("sha256", True)

    @pytest.mark.parametrize(
        ("headers", "parts"),
        [
            ({}, None),
            ({"x-amz-server-side-encryption": "AES256"}, None),
            ({"x-amz-server-side-encryption": "aws:kms"}, "none"),
            ({"x-amz-server-side-encryption": "aws:kms:dsse"}, "none"),
            ({"x-amz-server-side-encryption-customer-algorithm": "AES256"}, "none"),
        ],
    )
    def test_etags(self, headers: dict[str, str], parts: object) -> None:
        """An ETag is taken for an MD5, unless the object is encrypted with keys of KMS or of the client."""
        etag = hashlib.md5(DATA).hexdigest()
        known = checksum_from_etag({"etag": f'"{etag}"', **headers})
        assert known == (None if parts == "none" else ExpectedChecksum(MD5, hashlib.md5(DATA).digest(), "etag"))
        assert checksum_from_etag({"etag": '"0"'}) is None
        of_parts = checksum_from_etag({"etag": f'"{etag}-7"'})
        assert of_parts is not None
        assert of_parts.parts == 7

    def test_not_base64(self) -> None:
        """A text that is not base64, or has another length than the digest, is not decoded."""
        assert decode_digest("AAAAAA==", 4) == bytes(4)
        assert [decode_digest(text, 4) for text in ("AAAAAA", "A A==", "é", "AAAA", "")] == [None] * 5


class VerificationTests:
    """`Verification`, given the bytes of an object piece by piece."""

    @given(
        data=st.binary(min_size=1, max_size=60),
        part_size=st.integers(1, 25),
        cuts=st.lists(st.integers(0, 60)),
        flip=st.none() | st.integers(0, 59),
        algorithm=st.sampled_from([CRC32C, MD5]),
    )
    def test_composed_of_parts(
        self, data: bytes, part_size: int, cuts: list[int], flip: int | None, algorithm: Algorithm
    ) -> None:
        """A composite checksum is verified whatever pieces the bytes come in, and any changed byte is a mismatch."""

        def digest(part: bytes) -> bytes:
            return hashlib.md5(part).digest() if algorithm is MD5 else checksums.crc32c(part).to_bytes(4, "big")

        parts = [data[start : start + part_size] for start in range(0, len(data), part_size)]
        known = ExpectedChecksum(algorithm, digest(b"".join(map(digest, parts))), "etag", len(parts))
        verification = Verification(known, len(data), part_size)
        sent = bytearray(data)
        if flip is not None:
            sent[flip % len(data)] ^= 4
        places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for start, end in pairwise(places):
            verification.update(memoryview(sent)[start:end])
        assert verification.left == 0
        assert (verification.mismatch() is None) == (flip is None)

    def test_names_both(self) -> None:
        """The description of a mismatch has the actual checksum, the expected one, and where that was found."""
        verification = Verification(ExpectedChecksum(CRC32C, bytes(4), "etag"), 9)
        verification.update(DATA)
        assert verification.mismatch() == "its crc32c is e3069283, but should be 00000000 according to its etag"


class VerifyingConsumerTests:
    """`VerifyingConsumer`, which verifies bytes before it passes them on to another consumer."""

    @pytest.mark.parametrize("last", [b"9", b"8"])
    def test_the_last_bytes_wait_for_the_verdict(self, last: bytes) -> None:
        """The last piece of an object is passed on only if the checksum of all bytes is right."""
        consumer = Consumer()
        verifying = VerifyingConsumer(consumer, Verification(ExpectedChecksum(CRC32C, DIGESTS["crc32c"], "etag"), 9))
        verifying.write(b"1234")
        verifying.write(b"5678")
        assert consumer.data == b"12345678"
        verifying.write(last)
        if last == b"9":
            assert (consumer.data, verifying.mismatch) == (DATA, None)
        else:
            assert consumer.data == b"12345678"
            assert verifying.mismatch is not None

    def test_cannot_be_spliced_past(self) -> None:
        """A VerifyingConsumer offers no `take_from`, as spliced bytes could not be verified."""
        verifying = VerifyingConsumer(Consumer(), Verification(ExpectedChecksum(CRC32C, bytes(4), "etag"), 9))
        assert not hasattr(verifying, "take_from")
