"""Backups of an embedded bucket, made while it is used."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.buckets.local.embedded import contents, large, make, put, read
from twisted_storaged.buckets.local import backup
from twisted_storaged.buckets.local.backup import back_up
from twisted_storaged.buckets.local.files import ContentFiles
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.errors import StartError
from twisted_storaged.model import ListQuery


async def objects(path: Path) -> dict[str, bytes]:
    """Return all objects that a daemon serves which is started on a folder."""
    bucket = make(path)
    bucket.start()
    page = await bucket.list(ListQuery())
    found = {info.key: await read(bucket, info.key) for info in page.objects}
    await bucket.stop()
    return found


def names(path: Path) -> set[str]:
    return {found.name for found in path.iterdir()}


class BackUpTests:
    """A backup is a data folder."""

    @pytest.mark.parametrize("running", [True, False])
    @pytest_twisted.ensureDeferred
    async def test_has_every_object(self, tmp_path: Path, running: bool) -> None:
        """A backup has every object, small and large, with a running daemon or without."""
        bucket = make(tmp_path / "data")
        bucket.start()
        stored = {str(number): large(b"%d" % number) if number % 2 else b"%d" % number for number in range(10)}
        for key, data in stored.items():
            await put(bucket, key, data)
        if not running:
            await bucket.stop()
        assert back_up(tmp_path / "data", tmp_path / "copy") == 5
        if running:
            await bucket.stop()
        assert names(tmp_path) == {"data", "copy"}
        assert [path for path in (tmp_path / "copy").rglob("*") if path.stat().st_mode & 0o077] == []
        assert await objects(tmp_path / "copy") == stored
        assert await objects(tmp_path / "data") == stored

    @pytest_twisted.ensureDeferred
    async def test_is_consistent(self, tmp_path: Path) -> None:
        """While objects are replaced and removed, every backup has all files that its index names."""
        bucket, ended = make(tmp_path / "data"), False
        bucket.start()

        async def write(key: str) -> None:
            chance = random.Random(key)
            while not ended:
                await put(bucket, key, large(key.encode()))
                if chance.random() < 0.2:
                    await bucket.delete(key)

        def copy() -> None:
            for number in range(5):
                back_up(tmp_path / "data", tmp_path / f"copy{number}")

        writing = [Deferred.fromCoroutine(write(f"{number}")) for number in range(8)]
        await deferToThread(copy)
        ended = True
        await gatherResults(writing)
        await bucket.stop()
        for number in range(5):
            damage: list[str] = []
            Scrub(tmp_path / f"copy{number}", damage.append).run()
            assert damage == []
            for key, data in (await objects(tmp_path / f"copy{number}")).items():
                assert data == large(key.encode())

    @pytest_twisted.ensureDeferred
    async def test_a_file_that_goes_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An object that is replaced between the look-up and the link is looked up again."""
        bucket = make(tmp_path / "data")
        bucket.start()
        old = await put(bucket, "a", large(b"old"))
        link = backup._link_one
        replaced: list[Path] = []

        def replace_first(source: Path, target: Path) -> None:
            if not replaced:
                replaced.append(source)
                new = bucket._directory.create()
                new.write(memoryview(large(b"new")), 0)
                new.seal()
                bucket._index.commit([Change("a", Entry(old._replace(size=len(large(b"new")), etag=new.name)))])
                bucket._directory.remove(old.etag)
            link(source, target)

        monkeypatch.setattr(backup, "_link_one", replace_first)
        assert back_up(tmp_path / "data", tmp_path / "copy") == 1
        await bucket.stop()
        assert await objects(tmp_path / "copy") == {"a": large(b"new")}
        assert len(contents(tmp_path / "copy")) == 1

    @pytest_twisted.ensureDeferred
    async def test_on_another_file_system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Files are copied where hard links are impossible."""
        bucket = make(tmp_path / "data")
        bucket.start()
        await put(bucket, "a", large(b"x"))
        await bucket.stop()

        def no_link(*_: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", no_link)
            back_up(tmp_path / "data", tmp_path / "copy")
        assert await objects(tmp_path / "copy") == {"a": large(b"x")}

    @pytest_twisted.ensureDeferred
    async def test_one_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failed backup leaves no folder behind."""
        bucket = make(tmp_path / "data")
        bucket.start()
        await put(bucket, "a", large(b"x"))
        await bucket.stop()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(backup, "_link_one", full)
        with pytest.raises(StartError, match=r"cannot be backed up: .*No space left"):
            back_up(tmp_path / "data", tmp_path / "copy")
        assert names(tmp_path) == {"data"}

    def test_a_target_that_exists(self, tmp_path: Path) -> None:
        """A target that exists is refused, and not changed."""
        (tmp_path / "copy").mkdir()
        with pytest.raises(StartError, match="copy exists"):
            back_up(tmp_path / "data", tmp_path / "copy")
        assert list((tmp_path / "copy").iterdir()) == []

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        """A folder without a bucket is refused, and nothing is created."""
        with pytest.raises(StartError, match="cannot be backed up"):
            back_up(tmp_path / "data", tmp_path / "copy")
        assert list(tmp_path.iterdir()) == []

    @pytest_twisted.ensureDeferred
    async def test_an_index_that_a_start_would_refuse(self, tmp_path: Path) -> None:
        """A folder that a start would refuse is not backed up."""
        bucket = make(tmp_path / "data")
        bucket.start()
        await put(bucket, "a", large(b"x"))
        await bucket.stop()
        os.truncate(ContentFiles(tmp_path / "data").index_path, 0)
        with pytest.raises(StartError, match="is empty, but there are objects"):
            back_up(tmp_path / "data", tmp_path / "copy")
