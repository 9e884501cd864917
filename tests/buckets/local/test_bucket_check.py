"""LocalBucket: checks of whether the folder can be used now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock, deferLater

from tests.buckets.local.embedded import make, put, read, until
from tests.support import reactor
from twisted_storaged.buckets.local import writer
from twisted_storaged.buckets.local.bucket import CHECK_SECONDS, MIN_SPACE, LocalBucket, LocalSettings
from twisted_storaged.buckets.local.index_writes import IndexWriter
from twisted_storaged.errors import BucketError, BucketTimedOut, OutOfSpace, WritesSuspended


class ClockReactor(Clock):
    """The reactor, with a clock that the test moves."""

    callFromThread = reactor.callFromThread


def everything_in(path: Path) -> set[Path]:
    return set(path.rglob("*"))


class CheckTests:
    """What a check finds."""

    @pytest_twisted.ensureDeferred
    async def test_leaves_nothing(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """A check of a folder that can be used succeeds, again and again, and leaves no file."""
        before = everything_in(tmp_path)
        for _ in range(3):
            await bucket.check()
        assert everything_in(tmp_path) == before

    @pytest.mark.parametrize("what", ["", "objects", "index.sqlite", "index.sqlite-wal"])
    @pytest.mark.parametrize("is_replaced", [False, True])
    @pytest_twisted.ensureDeferred
    async def test_another_folder(self, tmp_path: Path, what: str, is_replaced: bool) -> None:
        """A folder that was removed or replaced, or a part of it, is found, and works again when it is restored."""
        bucket = make(tmp_path / "data")
        bucket.start()
        path, moved = tmp_path / "data" / what, tmp_path / "moved"
        path.rename(moved)
        if is_replaced:
            (shutil.copytree if moved.is_dir() else shutil.copy)(moved, path)
        with pytest.raises(WritesSuspended, match="was replaced" if is_replaced else "was removed"):
            await bucket.check()
        for size in (1, 1 << 20):
            with pytest.raises(WritesSuspended):
                await put(bucket, "a", bytes(size))
        if path.is_dir():
            shutil.rmtree(path)
        moved.rename(path)
        await bucket.check()
        await bucket.stop()

    @pytest.mark.parametrize("what", ["objects", "index.sqlite"])
    @pytest_twisted.ensureDeferred
    async def test_read_only(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
    ) -> None:
        """If a part of the folder was made read-only, a check fails, and no write is accepted."""
        await put(bucket, "a", b"old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode: path != tmp_path / what)
            with pytest.raises(WritesSuspended, match=f"{what} was made read-only"):
                await bucket.check()
            with pytest.raises(WritesSuspended, match=f"{what} was made read-only"):
                await put(bucket, "a", b"new")
        assert await read(bucket, "a") == b"old"
        await put(bucket, "a", b"new")

    @pytest_twisted.ensureDeferred
    async def test_no_file_can_be_created(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """A check fails where an upload could not create its files."""
        shutil.rmtree(tmp_path / "pending")
        with pytest.raises(BucketError, match="FileNotFoundError"):
            await bucket.check()

    @pytest_twisted.ensureDeferred
    async def test_little_space(self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check fails if there is less space than the floor, and not if there is as much."""
        blocks = MIN_SPACE // 4096
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=blocks, f_frsize=4096))
        await bucket.check()
        blocks -= 1
        with pytest.raises(OutOfSpace, match=r"67104768 bytes of free space, less than 67108864"):
            await bucket.check()

    @pytest_twisted.ensureDeferred
    async def test_an_index_that_does_not_answer(self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check fails if the index cannot be read."""
        bucket._index._reader.close()
        with pytest.raises(BucketError, match="ProgrammingError"):
            await bucket.check()

    @pytest_twisted.ensureDeferred
    async def test_ends_the_suspension_of_writes(self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a failed commit, a check makes sure that it cannot come back: it need not wait for the next write."""
        bucket._folder._turns.is_unsettled = True
        with monkeypatch.context() as patch:
            patch.setattr(writer, "read_wal_index", lambda _: None)
            with pytest.raises(WritesSuspended, match="the wal-index of SQLite is damaged"):
                await bucket.check()
        await bucket.check()
        assert not bucket._folder._turns.is_unsettled

    @pytest_twisted.ensureDeferred
    async def test_not_in_a_commit(self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check waits until the commit has ended that is under way."""
        commit, begun, go_on = IndexWriter.commit, Event(), Event()

        def slow(self: IndexWriter, changes: Any) -> Any:
            begun.set()
            go_on.wait(10)
            return commit(self, changes)

        monkeypatch.setattr(IndexWriter, "commit", slow)
        stored = ensureDeferred(put(bucket, "a", b"x"))
        assert await until(begun.is_set)
        assert bucket._folder._turns.is_unsettled
        checked = bucket.check()
        await deferLater(reactor, 0.1)
        assert not checked.called
        go_on.set()
        await checked
        await stored


class SlowDiskTests:
    """A disk that hangs."""

    @pytest.fixture
    def clock(self) -> ClockReactor:
        return ClockReactor()

    @pytest.fixture
    def bucket(self, tmp_path: Path, clock: Any) -> Iterator[LocalBucket]:
        bucket = LocalBucket("local", LocalSettings(tmp_path), clock, 4)
        bucket.start()
        yield bucket
        pytest_twisted.blockon(bucket.stop())

    @pytest_twisted.ensureDeferred
    async def test_is_given_up(
        self, bucket: LocalBucket, clock: ClockReactor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A check that takes too long fails, as do all until it has ended: none waits behind it."""
        statvfs, calls, go_on = os.statvfs, [], Event()

        def hangs(path: Path) -> os.statvfs_result:
            calls.append(path)
            go_on.wait(10)
            return statvfs(path)

        monkeypatch.setattr(os, "statvfs", hangs)
        check = bucket.check()
        assert await until(lambda: calls)
        clock.advance(CHECK_SECONDS)
        with pytest.raises(BucketTimedOut, match=f"{tmp_path} was not checked within 5 s"):
            await check
        with pytest.raises(BucketTimedOut, match="the last check has not ended yet"):
            await bucket.check()
        go_on.set()
        assert await until(lambda: not bucket._is_checking)
        await bucket.check()
        assert len(calls) == 2
