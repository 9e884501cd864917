"""Reading from an embedded bucket: either the bytes that were put, or an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_twisted

from tests.buckets.local.embedded import flip, forget_checksums, large, logged, make, put, read, spoil_index
from tests.support import Consumer
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.buckets.local.index_schema import BLOCK_SIZE
from twisted_storaged.buckets.local.writer import SMALL
from twisted_storaged.errors import BucketError, DamagedObject, RangeNotSatisfiable
from twisted_storaged.model import ByteRange


class RangeTests:
    """Reading ranges."""

    @pytest.mark.parametrize("size", [10, SMALL + 10, 3 << 20])
    @pytest_twisted.ensureDeferred
    async def test_only_those(self, bucket: LocalBucket, size: int) -> None:
        """Ranges of all three forms are read, from the index and from a file."""
        data = os.urandom(size)
        info = await put(bucket, "a", data)
        for wanted, expected in [
            (ByteRange(0, 0), data[:1]),
            (ByteRange(3, 7), data[3:8]),
            (ByteRange(4, None), data[4:]),
            (ByteRange(None, 8), data[-8:]),
            (ByteRange(0, None), data),
            (ByteRange(1, size * 2), data[1:]),
        ]:
            reader = await bucket.get("a", wanted)
            consumer = Consumer()
            assert reader.span == wanted.within(size)
            assert reader.info == info
            await reader.deliver(consumer)
            assert consumer.data == expected

    @pytest.mark.parametrize("size", [0, 10, SMALL + 10])
    @pytest_twisted.ensureDeferred
    async def test_none_of_them(self, bucket: LocalBucket, size: int) -> None:
        """A range outside the object raises RangeNotSatisfiable with its size, and leaves nothing open."""
        await put(bucket, "a", b"x" * size)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(RangeNotSatisfiable) as caught:
            await bucket.get("a", ByteRange(size, None))
        assert caught.value.size == size
        assert os.listdir("/proc/self/fd") == before


class DamageTests:
    """Bytes that are not those that were put."""

    @pytest.mark.parametrize("size", [SMALL + 1, (1 << 20) + 1, 5 << 20])
    @pytest_twisted.ensureDeferred
    async def test_a_flipped_bit_of_a_file(self, bucket: LocalBucket, tmp_path: Path, size: int) -> None:
        """A flipped bit anywhere makes the read fail, by its key; other objects are served."""
        info = await put(bucket, "a", b"x" * size)
        await put(bucket, "b", large(b"other"))
        path = tmp_path / "objects" / info.etag[:2] / info.etag
        for place in (0, size // 2, size - 1):
            flip(path, place)
            reader = await bucket.get("a")
            consumer = Consumer()
            with pytest.raises(DamagedObject, match=r"'a'.*checksum"):
                await reader.deliver(consumer)
            assert len(consumer.data) < size
            assert await read(bucket, "b") == large(b"other")
            flip(path, place)
        assert await read(bucket, "a") == b"x" * size

    @pytest_twisted.ensureDeferred
    async def test_a_flipped_bit_of_a_file_whose_blocks_have_no_checksums(
        self, bucket: LocalBucket, tmp_path: Path
    ) -> None:
        """A read of the whole fails if only the checksum of the whole is known."""
        info = await put(bucket, "a", b"x" * (3 << 20))
        forget_checksums(bucket)
        flip(tmp_path / "objects" / info.etag[:2] / info.etag, 2 << 20)
        with pytest.raises(DamagedObject, match=r"'a'.*checksum of the file"):
            await read(bucket, "a")

    @pytest.mark.parametrize("gets", [1, 30, 60, 200])
    @pytest_twisted.ensureDeferred
    async def test_a_range_over_a_flipped_bit(self, bucket: LocalBucket, tmp_path: Path, gets: int) -> None:
        """A range delivers no byte of a damaged block, and ranges of other blocks are read."""
        data = os.urandom(2 << 20)
        info = await put(bucket, "a", data)
        flip(tmp_path / "objects" / info.etag[:2] / info.etag, 1_500_000)
        bucket._delivering.count = gets
        block = 1_500_000 // BLOCK_SIZE * BLOCK_SIZE
        for wanted in (ByteRange(1_499_000, 1_501_000), ByteRange(block + 5, block + 5), ByteRange(900_000, 1_999_999)):
            consumer = Consumer()
            reader = await bucket.get("a", wanted)
            with pytest.raises(DamagedObject, match=r"'a'.*checksum of a block"):
                await reader.deliver(consumer)
            first = reader.span.start
            assert consumer.data == data[first : first + len(consumer.data)]
            assert first + len(consumer.data) <= max(block, first)
        for sound in (ByteRange(0, block - 1), ByteRange(block + BLOCK_SIZE, None), ByteRange(7, 300_000)):
            consumer = Consumer()
            reader = await bucket.get("a", sound)
            await reader.deliver(consumer)
            assert consumer.data == data[reader.span.start : reader.span.end]

    @pytest.mark.parametrize(("damage", "why"), [("x' || content", "4 bytes of 3"), ("abd'", "checksum")])
    @pytest.mark.parametrize("wanted", [None, ByteRange(0, 0)])
    @pytest_twisted.ensureDeferred
    async def test_other_bytes_in_the_index(
        self, bucket: LocalBucket, damage: str, why: str, wanted: ByteRange | None
    ) -> None:
        """A damaged content in the index is found before anything is delivered."""
        await put(bucket, "a", b"abc")
        bucket._index._writer.execute(f"UPDATE contents SET content = CAST('{damage} AS BLOB)")
        with pytest.raises(DamagedObject, match=f"'a'.*{why}"):
            await bucket.get("a", wanted)

    @pytest.mark.parametrize("size", [0, 100, SMALL + 2])
    @pytest_twisted.ensureDeferred
    async def test_a_file_of_another_size(self, bucket: LocalBucket, tmp_path: Path, size: int) -> None:
        """A file of a wrong size is found before anything is delivered, and closed."""
        info = await put(bucket, "a", b"x" * (SMALL + 1))
        os.truncate(tmp_path / "objects" / info.etag[:2] / info.etag, size)
        before = os.listdir("/proc/self/fd")
        for wanted in (None, ByteRange(0, 9)):
            with pytest.raises(DamagedObject, match=f"'a'.*has {size} bytes of {SMALL + 1}"):
                await bucket.get("a", wanted)
        assert os.listdir("/proc/self/fd") == before

    @pytest_twisted.ensureDeferred
    async def test_a_file_that_is_cut_while_it_is_read(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """A file that is truncated while it is read makes the read fail."""
        info = await put(bucket, "a", b"x" * (3 << 20))
        reader = await bucket.get("a")
        os.truncate(tmp_path / "objects" / info.etag[:2] / info.etag, 100)
        with pytest.raises(DamagedObject, match=rf"'a'.*ends before {1 << 20} bytes of {3 << 20}"):
            await reader.deliver(Consumer())

    @pytest_twisted.ensureDeferred
    async def test_what_has_no_checksum_is_not_verified(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """An object of a version without checksums is delivered unverified."""
        info = await put(bucket, "a", b"x" * (SMALL + 1))
        await put(bucket, "b", b"small")
        forget_checksums(bucket, "checksum")
        flip(tmp_path / "objects" / info.etag[:2] / info.etag, 0)
        assert len(await read(bucket, "a")) == SMALL + 1
        assert await read(bucket, "b") == b"small"

    @pytest_twisted.ensureDeferred
    async def test_an_index_that_is_damaged_is_not_swept_by(self, tmp_path: Path) -> None:
        """With a damaged index the daemon starts, removes nothing, and serves what can be read."""
        bucket = make(tmp_path)
        bucket.start()
        names = [f"{number:03}" for number in range(300)]
        infos = [await put(bucket, key, b"") for key in names]
        infos.append(await put(bucket, "z", large(b"x")))
        await bucket.stop()
        spoil_index(tmp_path / "index.sqlite", infos[200])
        damaged = make(tmp_path)
        with logged() as lines:
            damaged.start()
        assert "bucket local is damaged" in "".join(lines)
        assert await read(damaged, "z") == large(b"x")
        with pytest.raises(BucketError, match="malformed"):
            await damaged.get("200")
        await damaged.stop()
