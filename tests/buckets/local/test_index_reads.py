"""Damaged rows of the embedded bucket's index."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from awscrt.checksums import crc32c
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred, gatherResults

from tests.buckets.local.embedded import large, make, put, read, spoil_index, until
from tests.support import Consumer
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.buckets.local.index_reads import Entry, IndexReader
from twisted_storaged.buckets.local.index_schema import combined, pack
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.errors import BucketError, DamagedObject, ObjectNotFound
from twisted_storaged.model import Condition, ListQuery, ObjectInfo, PutOptions

PAGE = 4096
SPOILED = ["key = 'c'", "size = size + 1", "etag = 'e' || etag", "last_modified = 1", "checksum = checksum + 1"]


def entries() -> dict[str, Entry]:
    made: dict[str, Entry] = {}
    for number in range(12):
        key = f"key/{number:02}/é"
        metadata = (("content-type", "a/b"), ("x-amz-meta-n", str(number))) if number % 3 else ()
        digests = {"md5": bytes(16)} if number % 2 else {}
        info = ObjectInfo(key, 300_000, f"{number:032x}", 1.5e9 + number / 7, metadata, digests)
        if number % 2:
            made[key] = Entry(info, None, combined([number, 7], 300_000), pack([number, 7]))
        else:
            made[key] = Entry(info._replace(size=20), b"x" * 20, crc32c(b"x" * 20))
    return made


def get_all(bucket: LocalBucket, keys: Iterable[str]) -> Deferred[list[Any]]:
    """Open all keys in one batch; returns readers and exceptions."""
    return gatherResults([bucket.get(key).addErrback(lambda failure: failure.value) for key in keys])


class FlippedBitTests:
    """One bit of an index file is flipped, in one byte after the other."""

    def test_no_get_or_head_is_made_up(self, tmp_path: Path) -> None:
        """Each GET and HEAD returns what was put or reports damage; none finds no object."""
        all_entries = entries()
        with closing(IndexWriter(tmp_path / "index.sqlite")) as index:
            index.commit([Change(key, entry) for key, entry in all_entries.items()])
        data, path = bytearray((tmp_path / "index.sqlite").read_bytes()), tmp_path / "flipped.sqlite"
        raised = 0
        for place in range(PAGE, len(data), 3):
            data[place] ^= 1 << place % 8
            path.write_bytes(data)
            data[place] ^= 1 << place % 8
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
            with closing(IndexReader(connection)) as lookup:
                for key, entry in all_entries.items():
                    try:
                        assert lookup.head(key) == entry.info
                        # The bytes of a content have a checksum of their own, which the reader verifies.
                        found = lookup.get(key)
                        assert found is not None
                        assert found._replace(content=entry.content) == entry
                    except (DamagedObject, sqlite3.Error):
                        raised += 1
        assert raised > 100


class DamagedRowTests:
    """A bucket with three objects, where the row of `b` is damaged."""

    @pytest.mark.parametrize("spoiled", [*SPOILED, "details"])
    @pytest.mark.parametrize("size", ["small", "large"])
    @pytest_twisted.ensureDeferred
    async def test_is_noticed_and_concerns_no_other(
        self, bucket: LocalBucket, tmp_path: Path, spoiled: str, size: str
    ) -> None:
        """GET, HEAD, list and scrub report the damage; other keys of the batch are read, and all is closed."""
        data = b"small" if size == "small" else large(b"x")
        for key in ("a", "b", "d"):
            await put(bucket, key, data, PutOptions(metadata=(("content-type", "a/b"),)))
        if spoiled == "details":
            bucket._index._writer.execute("UPDATE details SET metadata = replace(metadata, 'a/b', 'a/c') WHERE row = 2")
        else:
            bucket._index._writer.execute(f"UPDATE objects SET {spoiled} WHERE key = 'b'")
        before = len(os.listdir("/proc/self/fd"))
        keys = ("a", "b", "d", "e")
        gets: list[Any] = await get_all(bucket, keys)
        assert [type(gets[1]), type(gets[3])] == [DamagedObject, ObjectNotFound]
        for reader in (gets[0], gets[2]):
            await reader.deliver(Consumer())
        assert await until(lambda: len(os.listdir("/proc/self/fd")) == before)
        assert (await bucket.head("a")).key == "a"
        with pytest.raises(DamagedObject):
            await bucket.head("b")
        if spoiled not in ("details", "checksum = checksum + 1"):
            with pytest.raises(DamagedObject):
                await bucket.list(ListQuery())
        complaints: list[str] = []
        scrub = Scrub(tmp_path, complaints.append, lambda _: None)
        scrub.run()
        assert (scrub.report.objects, scrub.report.damaged) == (2, 1)

    @pytest_twisted.ensureDeferred
    async def test_is_replaced_but_not_by_a_condition(self, bucket: LocalBucket) -> None:
        """A damaged row is replaced by a PUT without a condition; what it referred to is left alone."""
        for key in ("a", "b"):
            await put(bucket, key, b"small")
        bucket._index._writer.execute("UPDATE objects SET row = 1 WHERE key = 'b'")
        with pytest.raises(DamagedObject):
            await put(bucket, "b", b"new", PutOptions(condition=Condition()))
        await put(bucket, "b", b"new")
        assert [await read(bucket, key) for key in ("a", "b")] == [b"small", b"new"]

    @pytest_twisted.ensureDeferred
    async def test_what_nobody_thought_of_is_that_of_one_key(
        self, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unexpected exception fails one GET of a batch; the other readers are delivered and closed."""
        for key in "abc":
            await put(bucket, key, large(b"x"))
        opened = LocalBucket._open

        def broken(self: LocalBucket, key: str, wanted: None) -> object:
            if key == "c":
                raise KeyError(key)
            return opened(self, key, wanted)

        monkeypatch.setattr(LocalBucket, "_open", broken)
        gc.collect()  # it would close descriptors of earlier tests meanwhile
        before = len(os.listdir("/proc/self/fd"))
        gets: list[Any] = await get_all(bucket, "abc")
        assert type(gets[2]) is BucketError
        for reader in gets[:2]:
            await reader.deliver(Consumer())
        assert await until(lambda: len(os.listdir("/proc/self/fd")) == before)

    @pytest_twisted.ensureDeferred
    async def test_who_no_longer_wants_a_reader(self, bucket: LocalBucket) -> None:
        """A cancelled GET leaves no descriptor open, in a batch with others or alone."""
        await put(bucket, "a", large(b"x"))
        gc.collect()  # it would close descriptors of earlier tests meanwhile
        before = len(os.listdir("/proc/self/fd"))
        gone = [bucket.get("a").addErrback(lambda failure: failure.trap(CancelledError) and None) for _ in range(3)]
        kept = bucket.get("a")
        for get in gone:
            get.cancel()
        await (await kept).deliver(Consumer())
        assert await until(lambda: len(os.listdir("/proc/self/fd")) == before)

    @pytest_twisted.ensureDeferred
    async def test_a_spoilt_page_concerns_only_its_keys(self, tmp_path: Path) -> None:
        """In one batch with a key on a damaged page, seven others are opened and looked up."""
        bucket = make(tmp_path)
        bucket.start()
        infos = [await put(bucket, f"{number:03}", b"") for number in range(300)]
        keys = [f"z{number}" for number in range(7)]
        for key in keys:
            await put(bucket, key, large(b"x"))
        await bucket.stop()
        spoil_index(tmp_path / "index.sqlite", infos[150])
        bucket = make(tmp_path)
        bucket.start()
        before = len(os.listdir("/proc/self/fd"))
        heads = [ensureDeferred(bucket.head(key)) for key in (*keys, "150")]
        looked = await DeferredList(heads, consumeErrors=True)
        assert [found for found, _ in looked] == [True] * 7 + [False]
        gets: list[Any] = await get_all(bucket, (*keys, "150"))
        assert isinstance(gets[7], BucketError)
        for reader in gets[:7]:
            await reader.deliver(Consumer())
        assert await until(lambda: len(os.listdir("/proc/self/fd")) == before)
        await bucket.stop()
