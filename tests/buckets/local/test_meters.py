"""What is counted of an embedded bucket."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList, ensureDeferred

from tests.buckets.local.embedded import large, put
from tests.support import Body, reactor
from twisted_storaged.buckets.local.bucket import LocalBucket, LocalSettings
from twisted_storaged.buckets.local.files import MAX_LOST
from twisted_storaged.errors import BodyLost, DigestMismatch, OutOfSpace
from twisted_storaged.model import Condition, PutOptions
from twisted_storaged.runtime.metering import Meters


class Metered:
    """A bucket and its metrics."""

    def __init__(self, path: Path) -> None:
        self._meters = Meters()
        self.bucket = LocalBucket("b", LocalSettings(path), reactor, 4, meters=self._meters)

    def value(self, name: str) -> Any:
        """The value of a metric of the bucket; None if there is none."""
        found = {one.family.name: dict(one.values) for one in self._meters.snapshot()}
        return found[f"storaged_embedded_{name}"].get(("b",))

    def kept(self) -> tuple[Any, Any]:
        return self.value("objects"), self.value("object_bytes")


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[Metered]:
    metered = Metered(tmp_path)
    metered.bucket.start()
    yield metered
    pytest_twisted.blockon(metered.bucket.stop())


class CommitTests:
    """Commits and uploads."""

    @pytest_twisted.ensureDeferred
    async def test_those_that_arrive_together(self, metered: Metered) -> None:
        """A commit for several writes counts once, and each of its writes, unless its condition did not hold."""
        bucket = metered.bucket
        assert metered.value("writes") == 0
        await put(bucket, "a", b"x")
        create = PutOptions(condition=Condition())
        writes = [put(bucket, "b", b"x"), bucket.delete("a"), put(bucket, "b", b"x", create)]
        outcomes = await DeferredList([ensureDeferred(write) for write in writes], consumeErrors=True)
        assert [success for success, _ in outcomes] == [True, True, False]
        assert metered.value("writes") == 3
        *counts, seconds = metered.value("commit_seconds")
        assert sum(counts) == 2
        assert 0 < seconds < 60

    @pytest_twisted.ensureDeferred
    async def test_aborted_uploads(self, metered: Metered) -> None:
        """A PUT whose body breaks off or has a wrong digest is counted, one whose condition does not hold is not."""
        assert metered.value("uploads_aborted") == 0
        body = Body(10)
        stored = ensureDeferred(metered.bucket.put("a", body, 10))
        body.send(b"x")
        body.fail(BodyLost())
        with pytest.raises(BodyLost):
            await stored
        with pytest.raises(DigestMismatch):
            await put(metered.bucket, "a", b"x", PutOptions(expected={"md5": b"x" * 16}))
        assert metered.value("uploads_aborted") == 2
        assert metered.value("writes") == 0


class FolderTests:
    """Numbers of the folder, as of the last check."""

    @pytest_twisted.ensureDeferred
    async def test_objects_and_bytes(self, metered: Metered) -> None:
        """Puts, replacements and deletes change the number of objects and their bytes."""
        bucket = metered.bucket
        assert metered.kept() == (None, None)
        for write, expected in [
            (lambda: put(bucket, "a", b"abc"), (1, 3)),
            (lambda: put(bucket, "b", large(b"")), (2, 3 + (64 << 10))),
            (lambda: put(bucket, "b", b""), (2, 3)),
            (lambda: bucket.delete("a"), (1, 0)),
        ]:
            await write()
            await bucket.check()
            assert metered.kept() == expected

    @pytest_twisted.ensureDeferred
    async def test_sizes_of_the_index(self, metered: Metered, tmp_path: Path) -> None:
        """The index and its log have the sizes of their files."""
        await put(metered.bucket, "a", b"x" * 60_000)
        await metered.bucket.check()
        assert metered.value("index_bytes") == os.stat(tmp_path / "index.sqlite").st_size
        assert metered.value("index_log_bytes") == os.stat(tmp_path / "index.sqlite-wal").st_size > 60_000

    @pytest_twisted.ensureDeferred
    async def test_lost_files(self, metered: Metered, tmp_path: Path) -> None:
        """Files in `lost/` are counted until they are removed, also with the folder; a great many only in part."""
        for number, counted in [(0, 0), (3, 3), (MAX_LOST + 1, MAX_LOST)]:
            for name in range(number):
                (tmp_path / "lost" / f"{name:032x}").touch()
            await metered.bucket.check()
            assert metered.value("lost_files") == counted
        shutil.rmtree(tmp_path / "lost")
        await metered.bucket.check()
        assert metered.value("lost_files") == 0

    @pytest_twisted.ensureDeferred
    async def test_free_space(self, metered: Metered, monkeypatch: pytest.MonkeyPatch) -> None:
        """The space that is left is told, also if it is too little."""
        space = 1 << 30
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=space // 4096, f_frsize=4096))
        await metered.bucket.check()
        assert metered.value("free_bytes") == 1 << 30
        space = 4096
        with pytest.raises(OutOfSpace):
            await metered.bucket.check()
        assert metered.value("free_bytes") == 4096
