"""The checksums and part sizes that storaged adds to the metadata of objects in S3, and those that became wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from tests.buckets.conftest import OnScripted
from tests.buckets.s3.test_verification import DATA, NOTED, MiB, composite, read
from tests.engines.scripted import Answer, Call
from tests.support import BytesBody, Consumer
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.errors import DamagedAnswer, UnverifiableObject
from twisted_storaged.model import NO_OPTIONS, PutOptions
from twisted_storaged.protocol.metadata import CHECKSUM_NAME, PART_SIZE_NAME
from twisted_storaged.runtime.concurrency import ConsumerGone


class NoteTests:
    """Metadata for engines that keep no checksums."""

    async def put(self, bucket: S3Bucket, data: bytes, options: PutOptions = NO_OPTIONS) -> None:
        await bucket.put("k", BytesBody(data), 1 << 30, options)

    @pytest_twisted.ensureDeferred
    async def test_in_one_piece(self, on_scripted: OnScripted) -> None:
        """An object that is sent in one piece has its CRC-32C and size in its metadata."""
        endpoint, make = on_scripted
        await self.put(make(), DATA)
        assert endpoint.calls[0].headers[CHECKSUM_NAME] == NOTED[CHECKSUM_NAME]

    @pytest_twisted.ensureDeferred
    async def test_in_parts(self, on_scripted: OnScripted) -> None:
        """An object that is sent in parts has the part size in its metadata."""
        endpoint, make = on_scripted
        await self.put(make(), bytes(6 * MiB))
        create = endpoint.calls[0]
        assert (create.name, create.headers[PART_SIZE_NAME]) == ("CreateMultipartUpload", str(5 * MiB))
        assert CHECKSUM_NAME not in create.headers

    @pytest.mark.parametrize(("length", "noted"), [(1900, True), (2030, False)])
    @pytest_twisted.ensureDeferred
    async def test_takes_no_room_from_users(self, on_scripted: OnScripted, length: int, noted: bool) -> None:
        """Nothing is added to metadata that would exceed S3's 2 KiB then."""
        endpoint, make = on_scripted
        options = PutOptions((("x-amz-meta-a", "v" * length),))
        for data, name in ((DATA, CHECKSUM_NAME), (bytes(6 * MiB), PART_SIZE_NAME)):
            endpoint.calls.clear()
            await self.put(make(), data, options)
            assert (name in endpoint.calls[0].headers) == noted


class StaleNoteTests:
    """Objects that a tool copied with their metadata, in as many parts of another size."""

    @pytest.fixture
    def endpoint(self, on_scripted: OnScripted) -> OnScripted:
        """An object of seven parts of 290,000 bytes, with 300,000 in its metadata."""
        endpoint, make = on_scripted
        endpoint.told.update({"x-amz-checksum-crc32c": composite(DATA, 290_000), PART_SIZE_NAME: "300000"})
        endpoint.objects["k"] = DATA, "etag"
        return endpoint, make

    def first_part_has(self, size: int) -> Callable[[Call], Answer | None]:
        answer = Answer(206, bytes(size), {"ETag": '"etag"'})
        return lambda call: answer if call.name == "HeadObject" else None

    @pytest_twisted.ensureDeferred
    async def test_is_not_damage(self, endpoint: OnScripted) -> None:
        """An object that differs because of a wrong part size is served, after the engine was asked for the right
        one."""
        scripted, make = endpoint
        scripted.script = self.first_part_has(290_000)
        consumer = Consumer()
        assert await read(make(), consumer) == DATA
        assert consumer.producer is None

    @pytest_twisted.ensureDeferred
    async def test_is_not_verified_either(self, endpoint: OnScripted) -> None:
        """An object with a wrong part size is refused before its last bytes if verification is required."""
        scripted, make = endpoint
        scripted.script = self.first_part_has(290_000)
        consumer = Consumer()
        with pytest.raises(UnverifiableObject, match="its parts have 290000 bytes, not 300000"):
            await read(make(verify_reads=True), consumer)
        assert len(consumer.data) < len(DATA)

    @pytest.mark.parametrize("told", [300_000, len(DATA)])
    @pytest_twisted.ensureDeferred
    async def test_an_engine_that_does_not_contradict(self, endpoint: OnScripted, told: int) -> None:
        """A mismatch is damage if the engine confirms the part size, or only knows the size of the whole."""
        scripted, make = endpoint
        scripted.script = self.first_part_has(told)
        with pytest.raises(DamagedAnswer):
            await read(make())

    @pytest_twisted.ensureDeferred
    async def test_a_consumer_that_leaves_meanwhile(self, endpoint: OnScripted) -> None:
        """A consumer that leaves while the engine is asked gets no more bytes."""
        scripted, make = endpoint
        scripted.script = self.first_part_has(290_000)

        class Leaving(Consumer):
            producers = 0

            def registerProducer(self, producer: Any, streaming: bool) -> None:
                super().registerProducer(producer, streaming)
                self.producers += 1
                # The second is that of the bytes that were held back, however many the last read brought.
                if self.producers == 2:
                    producer.stopProducing()

        consumer = Leaving()
        with pytest.raises(ConsumerGone):
            await read(make(), consumer)
        assert consumer.producer is None
