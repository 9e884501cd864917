"""Verified reads of whole objects from a scripted endpoint."""

from __future__ import annotations

import hashlib
import random
from base64 import b64encode
from typing import Any

import pytest
import pytest_twisted
from awscrt import checksums

from tests.buckets.conftest import OnScripted
from tests.engines.scripted import ERROR, Answer, Call
from tests.support import Consumer
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.reader import ReadSettings, S3Reader
from twisted_storaged.buckets.s3.response_body import BufferedBody
from twisted_storaged.errors import DamagedAnswer, UnverifiableObject
from twisted_storaged.model import ByteRange, ObjectInfo, Span
from twisted_storaged.protocol.checksums import CRC32C, ExpectedChecksum, Verification
from twisted_storaged.protocol.metadata import CHECKSUM_NAME, PART_SIZE_NAME

MiB = 1 << 20
DATA = random.Random(8).randbytes(2_000_000)
SMALL = DATA[:1000]
BAD = DATA[:1_000_000] + bytes([DATA[1_000_000] ^ 1]) + DATA[1_000_001:]


def crc(data: bytes) -> bytes:
    return int(checksums.crc32c(data)).to_bytes(4, "big")


def b64(digest: bytes) -> str:
    return b64encode(digest).decode()


def composite(data: bytes, part_size: int) -> str:
    parts = [data[start : start + part_size] for start in range(0, len(data), part_size)]
    return f"{b64(crc(b''.join(map(crc, parts))))}-{len(parts)}"


FULL = {"x-amz-checksum-crc32c": b64(crc(DATA)), "x-amz-checksum-type": "FULL_OBJECT"}
COMPOSITE = {"x-amz-checksum-crc32c": composite(DATA, 300_000), "x-amz-checksum-type": "COMPOSITE"}
NOTED = {CHECKSUM_NAME: f"{b64(crc(DATA))};size={len(DATA)}"}


async def read(bucket: S3Bucket, consumer: Consumer | None = None, wanted: ByteRange | None = None) -> bytes:
    consumer = consumer or Consumer()
    reader = await bucket.get("k", wanted)
    await reader.deliver(consumer)
    return consumer.data


class WholeReadTests:
    """GETs of whole objects."""

    @pytest.mark.parametrize(
        "told",
        [
            FULL,
            {"x-amz-checksum-sha256": b64(hashlib.sha256(DATA).digest())},
            {**COMPOSITE, PART_SIZE_NAME: "300000"},
            NOTED,
        ],
    )
    @pytest.mark.parametrize("content", [DATA, BAD])
    @pytest_twisted.ensureDeferred
    async def test_by_default(self, on_scripted: OnScripted, told: dict[str, str], content: bytes) -> None:
        """Checksums are requested; a damaged object ends before its last bytes, with an error that names it."""
        endpoint, make = on_scripted
        endpoint.told.update(told)
        endpoint.objects["k"] = content, "etag"
        consumer = Consumer()
        if content == DATA:
            assert await read(make()) == DATA
        else:
            with pytest.raises(DamagedAnswer, match=r"'k' \(etag\) is damaged: its (crc32c|sha256) is"):
                await read(make(), consumer)
            assert BAD.startswith(consumer.data)
            assert len(consumer.data) < len(BAD)
        assert consumer.producer is None
        assert endpoint.names().count("GetObject") == 1
        assert endpoint.calls[0].headers["x-amz-checksum-mode"] == "ENABLED"

    @pytest_twisted.ensureDeferred
    async def test_nothing_is_sent_of_a_small_object_that_is_damaged(self, on_scripted: OnScripted) -> None:
        """Nothing of a small damaged object is delivered."""
        endpoint, make = on_scripted
        endpoint.told["x-amz-checksum-crc32c"] = b64(crc(SMALL))
        bucket, consumer = make(), Consumer()
        endpoint.objects["k"] = SMALL, "etag"
        assert await read(bucket) == SMALL
        endpoint.objects["k"] = SMALL[::-1], "etag"
        with pytest.raises(DamagedAnswer):
            await read(bucket, consumer)
        assert consumer.data == b""

    @pytest.mark.parametrize("content", [SMALL, SMALL[::-1]])
    @pytest_twisted.ensureDeferred
    async def test_an_object_that_came_with_its_head(self, content: bytes) -> None:
        """An object that came with its head is verified when it is opened."""

        async def judge(mismatch: str) -> None:
            raise DamagedAnswer(mismatch)

        unused: Any = None
        settings = ReadSettings(unused, unused, 0, unused)
        info = ObjectInfo("k", len(content), "etag", 0.0)
        reader = S3Reader("k", info, Span(0, len(content)), BufferedBody(content), settings)
        verification = Verification(ExpectedChecksum(CRC32C, crc(SMALL), "etag"), len(content))
        if content == SMALL:
            await reader.verify_by(verification, judge)
        else:
            with pytest.raises(DamagedAnswer, match="its crc32c is"):
                await reader.verify_by(verification, judge)

    @pytest.mark.parametrize("verify", [None, False, True])
    @pytest_twisted.ensureDeferred
    async def test_what_has_no_checksum(self, on_scripted: OnScripted, verify: bool | None) -> None:
        """An object without a checksum is served or refused, as configured; an empty one is always served."""
        endpoint, make = on_scripted
        bucket = make(verify_reads=verify)
        endpoint.objects["k"] = DATA, "etag"
        if verify:
            with pytest.raises(UnverifiableObject, match=r"'k' \(etag\) has no checksum"):
                await bucket.get("k")
        else:
            assert await read(bucket) == DATA
        endpoint.objects["k"] = b"", "etag"
        assert await read(bucket) == b""

    @pytest_twisted.ensureDeferred
    async def test_switched_off(self, on_scripted: OnScripted) -> None:
        """With `verify_reads = false`, no checksums are requested or compared."""
        endpoint, make = on_scripted
        endpoint.told.update(FULL)
        endpoint.objects["k"] = BAD, "etag"
        assert await read(make(verify_reads=False)) == BAD
        assert "x-amz-checksum-mode" not in endpoint.calls[0].headers

    @pytest.mark.parametrize("content", [DATA, BAD])
    @pytest.mark.parametrize("parts", [None, 400_000])
    @pytest_twisted.ensureDeferred
    async def test_by_the_etag(self, on_scripted: OnScripted, content: bytes, parts: int | None) -> None:
        """With `verify_reads = true`, the MD5 in the ETag is used if there is nothing better."""
        endpoint, make = on_scripted
        etag = hashlib.md5(DATA).hexdigest()
        if parts is not None:
            endpoint.told[PART_SIZE_NAME] = str(parts)
            digests = b"".join(hashlib.md5(DATA[at : at + parts]).digest() for at in range(0, len(DATA), parts))
            etag = f"{hashlib.md5(digests).hexdigest()}-5"
        endpoint.objects["k"] = content, etag
        assert await read(make()) == content
        if content == DATA:
            assert await read(make(verify_reads=True)) == DATA
        else:
            with pytest.raises(DamagedAnswer, match="its md5 is"):
                await read(make(verify_reads=True))

    @pytest.mark.parametrize("metadata", [NOTED[CHECKSUM_NAME].replace("200", "199"), "x;size=2000000", "", ";size="])
    @pytest_twisted.ensureDeferred
    async def test_a_note_of_another_object(self, on_scripted: OnScripted, metadata: str) -> None:
        """Metadata that a tool copied to other bytes does not make an object unreadable."""
        endpoint, make = on_scripted
        endpoint.told[CHECKSUM_NAME] = metadata
        endpoint.objects["k"] = BAD, "etag"
        assert await read(make()) == BAD

    @pytest_twisted.ensureDeferred
    async def test_ranges_are_not(self, on_scripted: OnScripted) -> None:
        """A range is not verified by the checksum of the whole object."""
        endpoint, make = on_scripted
        endpoint.told.update({**FULL, **NOTED})
        endpoint.objects["k"] = BAD, "etag"
        for verify in (None, True):
            assert await read(make(verify_reads=verify), wanted=ByteRange(5, 1_500_000)) == BAD[5:1_500_001]
        assert "x-amz-checksum-mode" not in endpoint.calls[0].headers


class PartSizeTests:
    """Composite checksums of objects that others uploaded."""

    @pytest.mark.parametrize("content", [DATA, BAD])
    @pytest_twisted.ensureDeferred
    async def test_is_asked_for(self, on_scripted: OnScripted, content: bytes) -> None:
        """The size of the first part is requested to verify a composite checksum."""
        endpoint, make = on_scripted
        endpoint.told.update(COMPOSITE)
        endpoint.objects["k"] = content, "etag"

        def first_part(call: Call) -> Answer | None:
            if call.name != "HeadObject":
                return None
            assert "partNumber=1" in call.target
            return Answer(206, bytes(300_000), {"ETag": '"etag"', "x-amz-mp-parts-count": "7"})

        endpoint.script = first_part
        if content == DATA:
            assert await read(make()) == DATA
        else:
            with pytest.raises(DamagedAnswer):
                await read(make())
        assert endpoint.calls[1].headers["if-match"] == '"etag"'

    @pytest.mark.parametrize(
        "answer",
        [Answer(404, ERROR % b"NoSuchKey"), Answer(412, ERROR % b"x"), Answer(200, DATA), Answer(206, bytes(250_000))],
    )
    @pytest_twisted.ensureDeferred
    async def test_is_not_known(self, on_scripted: OnScripted, answer: Answer) -> None:
        """An object whose part size is unknown cannot be verified, and does not count as damaged."""
        endpoint, make = on_scripted
        endpoint.told.update(COMPOSITE)
        endpoint.objects["k"] = DATA, "etag"
        endpoint.script = lambda call: answer if call.name == "HeadObject" else None
        assert await read(make()) == DATA
        with pytest.raises(UnverifiableObject):
            await read(make(verify_reads=True))

    @pytest.mark.parametrize("noted", ["", "-1", "1e5", "\xb2", "9" * 5000])
    @pytest_twisted.ensureDeferred
    async def test_is_noted_wrongly(self, on_scripted: OnScripted, noted: str) -> None:
        """A part size in the metadata that is no number of bytes is ignored."""
        endpoint, make = on_scripted
        endpoint.told.update({**COMPOSITE, PART_SIZE_NAME: noted})
        endpoint.objects["k"] = DATA, "etag"
        endpoint.script = lambda call: Answer(404, ERROR % b"NoSuchKey") if call.name == "HeadObject" else None
        assert await read(make()) == DATA


class InPiecesTests:
    """Reads that consist of several responses."""

    @pytest.mark.parametrize("told", [FULL, {**COMPOSITE, PART_SIZE_NAME: "300000"}])
    @pytest.mark.parametrize("content", [DATA, BAD])
    @pytest_twisted.ensureDeferred
    async def test_resumed(self, on_scripted: OnScripted, told: dict[str, str], content: bytes) -> None:
        """A read that was resumed is verified by the checksum of all bytes in order."""
        endpoint, make = on_scripted
        endpoint.told.update(told)
        endpoint.objects["k"] = content, "etag"
        cuts = [700_000, 500_000]
        endpoint.script = lambda _: Answer(do_it_first=True, cut=cuts.pop(0)) if cuts else None
        if content == DATA:
            assert await read(make()) == DATA
        else:
            with pytest.raises(DamagedAnswer, match="its crc32c is"):
                await read(make())
        assert endpoint.names().count("GetObject") == 3

    @pytest.mark.usefixtures("early_read_ahead")
    @pytest.mark.parametrize("content", [DATA, BAD])
    @pytest_twisted.ensureDeferred
    async def test_read_ahead(self, on_scripted: OnScripted, content: bytes) -> None:
        """Ranges that were read ahead are verified in order."""
        endpoint, make = on_scripted
        endpoint.told.update(FULL)
        endpoint.objects["k"] = content, "etag"
        endpoint.script = lambda _: Answer(do_it_first=True, seconds_per_mib=0.3)
        if content == DATA:
            assert await read(make()) == DATA
        else:
            with pytest.raises(DamagedAnswer, match="its crc32c is"):
                await read(make())
        assert len(endpoint.calls) > 5
