"""Scrubs of an embedded bucket."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.buckets.local.embedded import flip, forget_checksums, large, make, put, spoil_index
from tests.support import Consumer
from twisted_storaged.buckets.local import files as directory
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change
from twisted_storaged.buckets.local.scrub import ChecksumRepair, Report, Scrub
from twisted_storaged.buckets.local.writer import SMALL
from twisted_storaged.errors import DamagedObject, StartError
from twisted_storaged.model import ByteRange, ObjectInfo


class Scrubbed:
    """The result of a scrub that was run."""

    def __init__(
        self, path: Path, sleep: Callable[[float], None] = lambda _: None, *, repair_checksums: bool = False
    ) -> None:
        self.damage: list[str] = []
        scrub = Scrub(path, self.damage.append, sleep, repair_checksums=repair_checksums)
        scrub.run()
        self.report = scrub.report


def file_of(path: Path, info: ObjectInfo) -> Path:
    return path / "objects" / info.etag[:2] / info.etag


def state_of(path: Path) -> dict[Path, bytes]:
    """Return all files with their contents, except those that SQLite's readers and writers share."""
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.endswith("-shm"))
    return {file: file.read_bytes() for file in files}


def when_opened(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Run a function once, between the look-up of a key and the opening of its file."""
    opened, acts = directory.ContentFiles.open, [act]

    def acting(self: directory.ContentFiles, name: str, **how: bool) -> int:
        while acts:
            acts.pop()()
        return opened(self, name, **how)

    monkeypatch.setattr(directory.ContentFiles, "open", acting)


class SoundTests:
    """A bucket without damage."""

    @pytest_twisted.ensureDeferred
    async def test_is_counted_and_not_touched(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Objects are counted, and nothing is changed, while the daemon is running."""
        for number in range(1200):
            await put(bucket, f"{number}", b"abc")
        for size in (SMALL + 1, 3 << 20):
            await put(bucket, f"large {size}", b"x" * size)
        before = state_of(tmp_path)
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.report == Report(objects=1202, size=3600 + SMALL + 1 + (3 << 20))
        assert scrubbed.damage == []
        assert state_of(tmp_path) == before

    @pytest.mark.parametrize("end", ["stopped", "killed"])
    @pytest_twisted.ensureDeferred
    async def test_without_a_daemon(self, tmp_path: Path, end: str) -> None:
        """A scrub needs no daemon, however the last one ended."""
        bucket = make(tmp_path)
        bucket.start()
        await put(bucket, "a", b"abc")
        if end == "stopped":
            await bucket.stop()
            (tmp_path / "index.sqlite-wal").touch()  # SQLite's reader makes this, as empty as it is
        before = state_of(tmp_path)
        assert Scrubbed(tmp_path).report == Report(objects=1, size=3)
        assert state_of(tmp_path) == before
        if end == "killed":
            await bucket.stop()

    @pytest_twisted.ensureDeferred
    async def test_no_checksum(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Objects without checksums are counted, and are not damage."""
        await put(bucket, "a", large(b"x"))
        forget_checksums(bucket, "checksum")
        assert Scrubbed(tmp_path).report == Report(objects=1, size=SMALL + 1, unknown=1)

    @pytest_twisted.ensureDeferred
    async def test_files_that_the_index_does_not_name(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """A file that neither a key nor a note names is reported, and left in place."""
        info = await put(bucket, "a", large(b"x"))
        leftover = tmp_path / "objects" / "00" / ("00" * 16)
        leftover.write_bytes(b"half an obj")
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.report == Report(objects=1, size=info.size, unnamed=1)
        assert scrubbed.damage == [f"no key names the file {leftover.name}"]
        assert not scrubbed.report.is_sound
        assert leftover.exists()

    @pytest_twisted.ensureDeferred
    async def test_files_of_uploads_under_way(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """The file of an upload in progress is not reported."""
        content = bucket._directory.create()
        assert Scrubbed(tmp_path).report == Report()
        content.discard()

    @pytest_twisted.ensureDeferred
    async def test_names_that_are_not_ours(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Strays, and files in lost/, are reported."""
        stray, lost = tmp_path / "objects" / "00" / "core", tmp_path / "lost" / ("ab" * 16)
        stray.touch()
        lost.touch()
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.report == Report(lost=1, strays=1)
        assert not scrubbed.report.is_sound
        assert len(scrubbed.damage) == 2

    @pytest_twisted.ensureDeferred
    async def test_an_index_that_a_start_would_refuse(self, tmp_path: Path) -> None:
        """An index that was emptied is reported as damage."""
        bucket = make(tmp_path)
        bucket.start()
        await put(bucket, "a", b"x")
        await bucket.stop()
        os.truncate(tmp_path / "index.sqlite", 0)
        damage: list[str] = []
        with pytest.raises(StartError):
            Scrub(tmp_path, damage.append).run()
        assert "is empty, but there are objects" in damage[0]


class RepairTests:
    """`--repair-checksums`."""

    @pytest_twisted.ensureDeferred
    async def test_fills_in_what_is_missing(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Missing checksums of intact objects are added while the daemon runs, which then detects damage with them."""
        bad = await put(bucket, "bad", large(b"x"))
        info = await put(bucket, "large", os.urandom(600_000))
        forget_checksums(bucket)
        flip(file_of(tmp_path, bad), 5)
        assert Scrubbed(tmp_path).report == Report(objects=1, size=600_000, unknown=1, damaged=1)
        assert Scrubbed(tmp_path, repair_checksums=True).report == Report(
            objects=1, size=600_000, unknown=1, repaired=1, damaged=1
        )
        assert Scrubbed(tmp_path).report == Report(objects=1, size=600_000, damaged=1)
        flip(file_of(tmp_path, info), 300_000)
        reader = await bucket.get("large", ByteRange(299_000, 301_000))
        with pytest.raises(DamagedObject):
            await reader.deliver(Consumer())

    @pytest_twisted.ensureDeferred
    async def test_does_not_undo_a_write(
        self, bucket: LocalBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A repair does not overwrite an object that was replaced after it was read."""
        await put(bucket, "a", b"old")
        forget_checksums(bucket, "checksum")
        finish = ChecksumRepair.finish

        def replace_first(self: ChecksumRepair) -> int:
            bucket._index.commit([Change("a", Entry(ObjectInfo("a", 3, "new", 1.5), b"new", 1))])
            return finish(self)

        monkeypatch.setattr(ChecksumRepair, "finish", replace_first)
        assert Scrubbed(tmp_path, repair_checksums=True).report.repaired == 0
        entry = bucket._index.get("a")
        assert entry is not None
        assert entry.content == b"new"


class DamagedTests:
    """A damaged bucket: the damage is reported, and everything else is verified."""

    @pytest_twisted.ensureDeferred
    async def test_is_named_with_the_reason(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Each kind of damage is reported with the key and the reason."""
        flipped, short, gone = [await put(bucket, key, large(b"x")) for key in ("flipped", "short", "gone")]
        await put(bucket, "in the index", b"abc")
        await put(bucket, "sound", b"abc")
        flip(file_of(tmp_path, flipped), 99)
        os.truncate(file_of(tmp_path, short), 99)
        file_of(tmp_path, gone).unlink()
        bucket._index._writer.execute("UPDATE contents SET content = x'616264' WHERE row = 1")
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.report == Report(objects=1, size=3, damaged=4, missing=1)
        assert scrubbed.damage == [
            f"'flipped' ({flipped.etag}) is damaged: the checksum of a block of the file from 0 on is wrong",
            f"'gone' ({gone.etag}) is damaged: there is no file",
            scrubbed.damage[2],
            f"'short' ({short.etag}) is damaged: the file has 99 bytes of {SMALL + 1}",
        ]
        assert scrubbed.damage[2].startswith("'in the index'")
        assert "checksum" in scrubbed.damage[2]

    @pytest_twisted.ensureDeferred
    async def test_a_file_that_cannot_be_read(
        self, bucket: LocalBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An I/O error on reading a file is reported as damage."""

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        await put(bucket, "a", large(b"x"))
        monkeypatch.setattr(os, "preadv", broken)
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.report == Report(damaged=1)
        assert "'a'" in scrubbed.damage[0]
        assert "Input/output error" in scrubbed.damage[0]

    @pytest_twisted.ensureDeferred
    async def test_the_index(self, tmp_path: Path) -> None:
        """An index that SQLite cannot read, or finds inconsistent, is reported as damage."""
        bucket = make(tmp_path)
        bucket.start()
        infos = [await put(bucket, f"{number:03}", b"") for number in range(300)]
        await bucket.stop()
        spoil_index(tmp_path / "index.sqlite", infos[200])
        scrubbed = Scrubbed(tmp_path)
        assert 20 < scrubbed.report.objects < 200
        assert scrubbed.report.damaged == len(scrubbed.damage) > 1
        assert "the index cannot be read any further: database disk image is malformed" in scrubbed.damage

    def test_what_is_no_index(self, tmp_path: Path) -> None:
        """A file that is no longer an index is reported as damage."""
        (tmp_path / "index.sqlite").write_bytes(b"x" * 10000)
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.damage == ["the index cannot be read: file is not a database"]
        assert scrubbed.report.damaged == 1

    @pytest_twisted.ensureDeferred
    async def test_an_index_that_does_not_agree_with_itself(self, tmp_path: Path) -> None:
        """The errors of SQLite's integrity check are reported."""
        bucket = make(tmp_path)
        bucket.start()
        await put(bucket, "a", b"abc")
        await bucket.stop()
        flip(tmp_path / "index.sqlite", 39)  # how many pages are free: https://sqlite.org/fileformat2.html
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.report == Report(objects=1, size=3, damaged=1)
        assert "freelist" in scrubbed.damage[0].lower()

    def test_nothing_there(self, tmp_path: Path) -> None:
        """A folder without a bucket is refused, and nothing is created."""
        with pytest.raises(StartError, match=f"{tmp_path}/none cannot be scrubbed: unable to open"):
            Scrubbed(tmp_path / "none")
        assert not (tmp_path / "none").exists()


class MeanwhileTests:
    """Changes by others during a scrub."""

    @pytest_twisted.ensureDeferred
    async def test_an_object_that_is_replaced(
        self, bucket: LocalBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An object that is replaced during the scrub is verified again, and is sound."""
        old = await put(bucket, "a", large(b"old"))

        def replace() -> None:
            bucket._index.commit([Change("a", Entry(ObjectInfo("a", 3, "new", 1.5), b"new"))])
            file_of(tmp_path, old).unlink()

        when_opened(monkeypatch, replace)
        assert Scrubbed(tmp_path).report == Report(objects=1, size=3, unknown=1)

    @pytest_twisted.ensureDeferred
    async def test_an_object_that_is_deleted(
        self, bucket: LocalBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An object that is deleted during the scrub is not reported."""
        old = await put(bucket, "a", large(b"old"))

        def delete() -> None:
            bucket._index.commit([Change("a", None)])
            file_of(tmp_path, old).unlink()

        when_opened(monkeypatch, delete)
        assert Scrubbed(tmp_path).report == Report()

    @pytest_twisted.ensureDeferred
    async def test_a_file_that_is_committed(
        self, bucket: LocalBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is committed during the scrub is not reported as unnamed."""
        names = directory.ContentFiles.names
        seen: list[str] = []

        def name_late(self: directory.ContentFiles) -> list[str]:
            if not seen:
                content = bucket._directory.create()
                content.seal()
                seen.append(content.name)
                bucket._index.commit([Change("a", Entry(ObjectInfo("a", 0, content.name, 1.5)))])
            return list(names(self))

        monkeypatch.setattr(directory.ContentFiles, "names", name_late)
        scrubbed = Scrubbed(tmp_path)
        assert scrubbed.report == Report()
        assert len(seen) == 1

    @pytest_twisted.ensureDeferred
    async def test_many_writes(self, bucket: LocalBucket, tmp_path: Path) -> None:
        """Constant overwriting and deleting during a scrub produce no report of damage."""
        ended = False

        async def write(key: str) -> None:
            while not ended:
                for data in (b"small", large(b"x"), large(b"y")):
                    await put(bucket, key, data)
                await bucket.delete(key)

        def scrub() -> list[str]:
            return [line for _ in range(10) for line in Scrubbed(tmp_path, lambda _: time.sleep(0.5)).damage]

        writing = [Deferred.fromCoroutine(write(f"{number}")) for number in range(8)]
        assert await deferToThread(scrub) == []
        ended = True
        await gatherResults(writing)

    @pytest_twisted.ensureDeferred
    async def test_cannot_be_changed_by_it(
        self, bucket: LocalBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A scrub opens the index read-only."""
        seen: list[str] = []
        connect = sqlite3.connect

        def connecting(database: str, **options: Any) -> sqlite3.Connection:
            seen.append(database)
            connection: sqlite3.Connection = connect(database, **options)
            return connection

        monkeypatch.setattr(sqlite3, "connect", connecting)
        Scrubbed(tmp_path)
        assert seen == [f"file://{tmp_path}/index.sqlite?mode=ro"]
