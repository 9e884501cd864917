"""Metadata, digests, conditions and checksums of writes to an embedded bucket."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Event, Thread

import pytest
import pytest_twisted
from awscrt.checksums import crc32c
from twisted.internet.defer import Deferred, gatherResults

from tests.buckets.local.embedded import contents, put, read
from tests.support import Consumer, listed, result, run_now
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_schema import block_checksums, pack
from twisted_storaged.buckets.local.writer import PART_SIZE, SMALL, CommitLock, LocalUpload
from twisted_storaged.errors import DigestMismatch, ObjectNotFound, PreconditionFailed
from twisted_storaged.model import Condition, ListQuery, PutOptions


class OptionsTests:
    """The options of a put."""

    TOLD = PutOptions(
        metadata=(("content-type", "text/plain"), ("x-amz-meta-who", "é")),
        wanted=frozenset({"sha-512"}),
    )

    @pytest.mark.parametrize("size", [0, SMALL, SMALL + 1, PART_SIZE * 2 + 1])
    @pytest_twisted.ensureDeferred
    async def test_metadata_and_digests_come_back(self, bucket: LocalBucket, size: int) -> None:
        """Metadata and digests are in the result of the PUT, in HEAD and in GET, and not in lists."""
        data = os.urandom(size)
        expected = {"md5": hashlib.md5(data).digest(), "sha-256": hashlib.sha256(data).digest()}
        info = await put(bucket, "a", data, self.TOLD._replace(expected=expected))
        assert info.metadata == self.TOLD.metadata
        assert info.digests == {**expected, "sha-512": hashlib.sha512(data).digest()}
        reader = await bucket.get("a")
        reader.close()
        assert info == reader.info == await bucket.head("a")
        assert (await bucket.list(ListQuery())).objects == [listed(info)]

    @pytest.mark.parametrize("size", [3, SMALL + 1, PART_SIZE * 2 + 1])
    @pytest_twisted.ensureDeferred
    async def test_a_wrong_digest_changes_nothing(self, bucket: LocalBucket, tmp_path: Path, size: int) -> None:
        """A PUT with a wrong digest leaves the old object in place, and no file of the new one."""
        await put(bucket, "a", b"old")
        with pytest.raises(DigestMismatch):
            await put(bucket, "a", b"x" * size, PutOptions(expected={"sha-256": b"x" * 32}))
        assert await read(bucket, "a") == b"old"
        assert contents(tmp_path) == set()

    @pytest.mark.parametrize("size", [3, SMALL + 1, PART_SIZE * 2 + 1])
    @pytest_twisted.ensureDeferred
    async def test_of_many_that_create_one_does(self, bucket: LocalBucket, tmp_path: Path, size: int) -> None:
        """Of many PUTs that create a key, one succeeds; the files of the others are removed."""

        async def create(number: int) -> bytes | None:
            data = b"%d" % number * size
            try:
                await put(bucket, "a", data, PutOptions(condition=Condition()))
            except PreconditionFailed:
                return None
            return data

        outcomes = await gatherResults([Deferred.fromCoroutine(create(number)) for number in range(8)])
        (created,) = [data for data in outcomes if data is not None]
        assert await read(bucket, "a") == created
        assert len(contents(tmp_path)) == (size > SMALL)

    @pytest_twisted.ensureDeferred
    async def test_compare_and_swap_loses_nothing(self, bucket: LocalBucket) -> None:
        """Eight clients that increment a number by conditional PUTs lose no update."""
        await put(bucket, "a", b"0")

        async def add_one() -> None:
            while True:
                reader = await bucket.get("a")
                consumer = Consumer()
                await reader.deliver(consumer)
                condition = Condition(reader.info.etag)
                try:
                    await put(bucket, "a", b"%d" % (int(consumer.data) + 1), PutOptions(condition=condition))
                except PreconditionFailed:
                    continue
                return

        for _ in range(5):
            await gatherResults([Deferred.fromCoroutine(add_one()) for _ in range(8)])
        assert await read(bucket, "a") == b"40"

    @pytest_twisted.ensureDeferred
    async def test_delete_what_was_seen(self, bucket: LocalBucket) -> None:
        """A conditional DELETE does not delete an object that was put later."""
        old = await put(bucket, "a", b"old")
        new = await put(bucket, "a", b"new")
        with pytest.raises(PreconditionFailed):
            await bucket.delete("a", Condition(old.etag))
        assert await read(bucket, "a") == b"new"
        await bucket.delete("a", Condition(new.etag))
        with pytest.raises(ObjectNotFound):
            await bucket.head("a")


class ChecksumTests:
    """The checksums that are stored with a content."""

    def test_parts_may_be_written_in_any_order(self, tmp_path: Path) -> None:
        """The checksums are in the order of the parts, whatever the order of writing."""
        data = os.urandom(PART_SIZE * 2 + 5)
        upload = LocalUpload("a", DataFolder(tmp_path), run_now)
        result(upload.begin())
        for number in (3, 1, 2):
            result(upload.part(number, memoryview(data[(number - 1) * PART_SIZE : number * PART_SIZE])))
        info = result(upload.complete())
        assert upload.entry(info) == Entry(info, None, crc32c(data), pack(block_checksums(memoryview(data))))

    def test_a_small_one_has_one_too(self, tmp_path: Path) -> None:
        """A content in the index has a checksum, also an empty one."""
        for data in (b"", b"abc"):
            upload = LocalUpload("a", DataFolder(tmp_path / data.hex()), run_now)
            info = result(upload.whole(memoryview(data)))
            assert upload.entry(info) == Entry(info, data, crc32c(data))

    def test_memory_of_a_small_one_may_be_reused_before_the_commit(self, tmp_path: Path) -> None:
        """What is committed are the bytes that `whole` was given, whatever the memory is used for afterwards."""
        upload, memory = LocalUpload("a", DataFolder(tmp_path), run_now), bytearray(b"abc")
        info = result(upload.whole(memoryview(memory)))
        memory[:] = b"xyz"
        assert upload.entry(info) == Entry(info, b"abc", crc32c(b"abc"))


class CommitLockTests:
    """The turns of several processes."""

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        """A process waits until the turn of another has ended, as does a thread of the same process."""
        one, two = CommitLock(tmp_path / "lock"), CommitLock(tmp_path / "lock")
        for waiting in (one, two):
            began, ended = Event(), Event()

            def take_turn(waiting: CommitLock = waiting, began: Event = began, ended: Event = ended) -> None:
                began.set()
                with waiting:
                    ended.set()

            with one:
                thread = Thread(target=take_turn)
                thread.start()
                assert began.wait(10)
                assert not ended.wait(0.1)
            assert ended.wait(10)
            thread.join()
        for lock in (one, two):
            lock.close()

    def test_others_know_what_is_unsettled(self, tmp_path: Path) -> None:
        """What one process notes is seen by others, and by those that open the file later."""
        one, two = CommitLock(tmp_path / "lock"), CommitLock(tmp_path / "lock")
        assert not two.is_unsettled
        one.is_unsettled = True
        assert two.is_unsettled
        assert CommitLock(tmp_path / "lock").is_unsettled
        two.is_unsettled = False
        assert not one.is_unsettled
