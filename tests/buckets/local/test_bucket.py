"""LocalBucket: the order of writes, what a crash leaves, full disks, and threads."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, gatherResults
from twisted.python.failure import Failure

from tests.buckets.local.embedded import contents, large, make, put, read, until
from tests.support import BytesBody, Consumer
from twisted_storaged.buckets.local import files as directory
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter, Outcome
from twisted_storaged.buckets.local.reader import InlineReader
from twisted_storaged.buckets.local.writer import PART_SIZE, SMALL
from twisted_storaged.errors import BucketError, DamagedObject, ObjectNotFound, OutOfSpace, StartError
from twisted_storaged.model import ListQuery, ObjectInfo


class DurabilityTests:
    """What is durable when a PUT is answered."""

    @pytest.mark.parametrize("size", [SMALL + 1, PART_SIZE * 2 + 1])
    @pytest_twisted.ensureDeferred
    async def test_the_bytes_then_the_name_then_the_key(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        """Bytes, name and key are made durable in this order, so that a crash never shows half an object."""
        order: list[str] = []
        fsync, commit = os.fsync, IndexWriter.commit

        def recording_fsync(descriptor: int) -> None:
            order.append(
                "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else f"{os.fstat(descriptor).st_size} bytes"
            )
            fsync(descriptor)

        def recording_commit(self: IndexWriter, changes: Sequence[Change]) -> Sequence[Outcome]:
            order.append("key")
            return commit(self, changes)

        monkeypatch.setattr(os, "fsync", recording_fsync)
        monkeypatch.setattr(IndexWriter, "commit", recording_commit)
        await put(bucket, "a", b"x" * size)
        assert order == [f"{size} bytes", "folder", "key"]

    @pytest_twisted.ensureDeferred
    async def test_a_failed_fsync_is_a_failed_put(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """After a failed fsync the old object stays, and the new file is removed."""
        await put(bucket, "a", large(b"old"))
        before = contents(tmp_path)

        def broken(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            for size in (SMALL + 1, PART_SIZE * 2 + 1):
                with pytest.raises(BucketError, match="Input/output error"):
                    await put(bucket, "a", b"x" * size)
        assert contents(tmp_path) == before
        assert await read(bucket, "a") == large(b"old")

    @pytest_twisted.ensureDeferred
    async def test_a_failed_commit_leaves_the_file_to_the_sweep(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The file of a failed commit is kept until the next start, as the commit may turn out to be durable."""
        await put(bucket, "a", large(b"old"))

        def broken(self: IndexWriter, changes: Sequence[Change]) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(IndexWriter, "commit", broken)
            with pytest.raises(BucketError, match="disk I/O error"):
                await put(bucket, "a", large(b"new"))
        assert len(contents(tmp_path)) == 2
        assert await read(bucket, "a") == large(b"old")

    @pytest_twisted.ensureDeferred
    async def test_an_overwritten_file_goes(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """The file of an overwritten or deleted object is removed."""
        for data in (b"one", b"two", b"three"):
            await put(bucket, "a", large(data))
        await bucket.delete("a")
        assert await until(lambda: contents(tmp_path) == set())


class SmallTests:
    """Contents that are stored in the index."""

    @pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1])
    @pytest_twisted.ensureDeferred
    async def test_makes_no_file(self, bucket: LocalBucket, tmp_path: Path, size: int) -> None:
        """A content up to the limit is stored without a file, and reads like any other."""
        info = await put(bucket, "a", b"x" * size)
        assert len(contents(tmp_path)) == (size > SMALL)
        assert info.size == size
        assert (await bucket.list(ListQuery(""))).objects == [info]
        assert await read(bucket, "a") == b"x" * size

    @pytest_twisted.ensureDeferred
    async def test_a_reader_reads_on(self, bucket: LocalBucket) -> None:
        """A reader delivers the object that it opened, whatever is put afterwards."""
        old = await put(bucket, "a", b"old")
        reader = await bucket.get("a")
        new = await put(bucket, "a", b"new")
        consumer = Consumer()
        await reader.deliver(consumer)
        assert consumer.data == b"old"
        assert old.etag != new.etag

    @pytest_twisted.ensureDeferred
    async def test_small_over_large_and_back(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Replacing large contents by small ones and back leaves only the last one."""
        for data in (b"one", large(b"two"), b"three", large(b"four"), b"five"):
            await put(bucket, "a", data)
            assert await read(bucket, "a") == data
        assert await until(lambda: contents(tmp_path) == set())

    @pytest_twisted.ensureDeferred
    async def test_those_that_come_together_are_committed_together(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sixteen concurrent PUTs need fewer commits, and each is answered after its own."""
        batches: list[int] = []
        committed: set[str] = set()
        commit = IndexWriter.commit

        def recording_commit(self: IndexWriter, changes: Sequence[Change]) -> Sequence[Outcome]:
            batches.append(len(changes))
            result = commit(self, changes)
            committed.update(change.key for change in changes)
            return result

        async def put_and_look(key: str) -> bool:
            await put(bucket, key, b"x")
            return key in committed

        monkeypatch.setattr(IndexWriter, "commit", recording_commit)
        puts = [Deferred.fromCoroutine(put_and_look(f"{number}")) for number in range(16)]
        assert await gatherResults(puts) == [True] * 16
        assert batches == [16]


class StartTests:
    """What a start finds in the folder."""

    @pytest_twisted.ensureDeferred
    async def test_everything_is_there_again(self, tmp_path: Path) -> None:
        """Objects of an earlier start are served, and a file that no key names is moved to lost/."""
        first = make(tmp_path)
        first.start()
        await put(first, "a", b"kept")
        await put(first, "b", large(b"kept"))
        await first.stop()
        leftover = tmp_path / "objects" / "00" / ("00" * 16)
        leftover.write_bytes(b"half an obj")
        second = make(tmp_path)
        second.start()
        assert not leftover.exists()
        assert (tmp_path / "lost" / leftover.name).read_bytes() == b"half an obj"
        assert await read(second, "a") == b"kept"
        assert await read(second, "b") == large(b"kept")
        await second.stop()

    def test_a_directory_in_use(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """A folder that another daemon uses is refused, by its path."""
        with pytest.raises(StartError, match="is in use by another storaged"):
            make(tmp_path).start()

    def test_a_directory_that_cannot_be(self, tmp_path: Path) -> None:
        """A path that cannot be a folder is refused, with the reason."""
        (tmp_path / "file").touch()
        with pytest.raises(StartError, match=r"bucket local: .*/file/data cannot be used: .*Not a directory"):
            make(tmp_path / "file" / "data").start()

    @pytest_twisted.ensureDeferred
    async def test_an_index_that_is_lost(self, tmp_path: Path) -> None:
        """A missing index is refused, and the files stay."""
        bucket = make(tmp_path)
        bucket.start()
        await put(bucket, "a", large(b"x"))
        await bucket.stop()
        (tmp_path / "index.sqlite").unlink()
        with pytest.raises(StartError, match=r"index.sqlite does not exist, but there are objects that it should name"):
            make(tmp_path).start()
        assert len(contents(tmp_path)) == 1

    def test_an_index_that_is_none(self, tmp_path: Path) -> None:
        """A file that is not an index is refused, and not changed."""
        (tmp_path / "index.sqlite").write_bytes(b"somebody's only copy" * 1000)
        with pytest.raises(StartError, match="file is not a database"):
            make(tmp_path).start()
        assert (tmp_path / "index.sqlite").read_bytes() == b"somebody's only copy" * 1000


class ReadersTests:
    """Reading while others write."""

    @pytest_twisted.ensureDeferred
    async def test_a_reader_never_meets_a_removed_file(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If a key is overwritten between the look-up and the opening of its file, it is looked up again."""
        await put(bucket, "a", large(b"old"))
        opened = directory.DataFolder.open
        replaced: list[str] = []

        def overwritten_first(self: directory.DataFolder, name: str, **how: bool) -> int:
            if not replaced:
                replaced.append(name)
                content = self.create()
                content.write(memoryview(b"new"), 0)
                content.seal()
                bucket._index.commit([Change("a", Entry(ObjectInfo("a", 3, content.name, 0)))])
                self.remove(name)
            return opened(self, name, **how)

        monkeypatch.setattr(directory.DataFolder, "open", overwritten_first)
        assert await read(bucket, "a") == b"new"

    @pytest_twisted.ensureDeferred
    async def test_what_is_read_once_leaves_the_page_cache_to_others(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first read of a file bypasses the page cache, the second does not."""
        ways: set[int] = set()
        preadv = os.preadv

        def recording_preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            ways.add(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
            return preadv(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", recording_preadv)
        await put(bucket, "a", b"x" * (3 << 20))
        for expected in ({os.O_DIRECT}, {0}, {0}):
            ways.clear()
            assert len(await read(bucket, "a")) == 3 << 20
            assert ways == expected

    @pytest_twisted.ensureDeferred
    async def test_a_file_that_is_gone_is_trouble(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """A missing file is damage, not a missing object."""
        info = await put(bucket, "a", large(b"x"))
        (tmp_path / "objects" / info.etag[:2] / info.etag).unlink()
        with pytest.raises(DamagedObject, match=r"'a'.*there is no file"):
            await bucket.get("a")

    @pytest_twisted.ensureDeferred
    async def test_many_open_together(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Concurrent GETs are opened by one call in a thread, and an error of one does not affect the others."""
        lost = await put(bucket, "lost", large(b"x"))
        (tmp_path / "objects" / lost.etag[:2] / lost.etag).unlink()
        locked = await put(bucket, "not a file", large(b"x"))
        (tmp_path / "objects" / locked.etag[:2] / locked.etag).unlink()
        (tmp_path / "objects" / locked.etag[:2] / locked.etag).mkdir()
        await put(bucket, "a", b"one")
        keys = ["a", "lost", "none", "not a file", "a"]
        found = await DeferredList([ensureDeferred(bucket.get(key)) for key in keys], consumeErrors=True)
        types: list[Any] = [result.type if isinstance(result, Failure) else type(result) for _, result in found]
        assert types[:3] == [InlineReader, DamagedObject, ObjectNotFound]
        assert issubclass(types[3], BucketError)
        assert types[4] is InlineReader


class ThreadsTests:
    """Which threads access the disk."""

    @pytest_twisted.ensureDeferred
    async def test_never_the_reactors_thread(self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        """The disk is never accessed in the thread of the reactor."""
        callers: dict[str, set[str]] = {}

        def watch(place: Any, name: str) -> None:
            original = getattr(place, name)

            def watched(*args: Any, **kwargs: Any) -> Any:
                callers.setdefault(name, set()).add(threading.current_thread().name)
                return original(*args, **kwargs)

            monkeypatch.setattr(place, name, watched)

        for name in ("open", "close", "preadv", "pwrite", "fsync", "fstat"):
            watch(os, name)
        for name in ("commit", "get", "page"):
            watch(IndexWriter, name)
        watch(directory.DataFolder, "remove")
        for data in (b"small", large(b"x"), b"x" * (PART_SIZE + 1)):
            await put(bucket, "a", data)
        await read(bucket, "a")
        await bucket.list(ListQuery(""))
        await bucket.delete("a")
        assert await until(lambda: "remove" in callers)
        assert set(callers) == {
            "open",
            "close",
            "preadv",
            "pwrite",
            "fsync",
            "fstat",
            "commit",
            "get",
            "page",
            "remove",
        }
        strangers = {(call, name) for call, names in callers.items() for name in names if "bucket local" not in name}
        assert strangers == set()


class OutOfSpaceTests:
    """A full disk, and one with space again."""

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    @pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
    @pytest_twisted.ensureDeferred
    async def test_for_a_file(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, code: int
    ) -> None:
        """A full disk on writing a file raises OutOfSpace, leaves nothing, and later writes succeed."""
        await put(bucket, "a", large(b"old"))
        before = contents(tmp_path)

        def full(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            outcomes = [
                ensureDeferred(bucket.put("a", BytesBody(b"x" * size), 1 << 30)) for size in (SMALL + 1, PART_SIZE * 3)
            ]
            for outcome in outcomes:
                with pytest.raises(OutOfSpace, match=os.strerror(code)):
                    await outcome
        assert contents(tmp_path) == before
        await put(bucket, "a", large(b"new"))
        assert await read(bucket, "a") == large(b"new")

    @pytest.mark.parametrize("size", [50_000, SMALL + 1])
    @pytest_twisted.ensureDeferred
    async def test_for_the_index(self, bucket: LocalBucket, tmp_path: Path, size: int) -> None:
        """A full disk on a commit raises OutOfSpace, and the file is removed."""
        writer = bucket._index._writer
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + 3}")

        async def fill() -> None:
            for number in range(1000):
                await put(bucket, f"{number:0900}", b"x" * size)

        with pytest.raises(OutOfSpace, match="full"):
            await fill()
        count = len((await bucket.list(ListQuery())).objects)
        assert len(contents(tmp_path)) == (count if size > SMALL else 0)
        writer.execute("PRAGMA max_page_count = 100000")
        await put(bucket, "a", b"x" * size)
        assert await read(bucket, "a") == b"x" * size

    @pytest_twisted.ensureDeferred
    async def test_another_error_is_another_error(self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        """An I/O error is not reported as a full disk."""

        def broken(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "pwrite", broken)
        with pytest.raises(BucketError, match="Input/output error") as caught:
            await put(bucket, "a", b"x" * (SMALL + 1))
        assert caught.type is BucketError
