"""What every bucket keeps to: the same tests against memory, the embedded bucket, and S3 engines."""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from tests.conftest import ENGINES, Engines
from tests.support import Body, BytesBody, Consumer, MemoryBucket, reactor
from twisted_storaged.buckets.interface import IBucket, IObjectReader
from twisted_storaged.buckets.local import LocalBucket, LocalSettings
from twisted_storaged.buckets.objects import ListQuery, ObjectInfo
from twisted_storaged.buckets.s3 import S3Bucket
from twisted_storaged.errors import BodyLost, ObjectNotFound

LIMIT = 1 << 30
MiB = 1 << 20

#: Keys that have surprised storage before. One has the full 1024 bytes, in names that a file system could take.
ODD_KEYS = [
    "a",
    "a b",
    " a ",
    "a%20b",
    "a+b",
    "a?b=c&d",
    "a#b",
    "a;b,c:d@e!f$g'(h)*i[j]~k|l^m`n{o}\"p<q>\\r",
    "ä/€/😀",
    "a\u0300 \u00e0",
    ".a/..b/...",
    "%",
    "%2F%00",
    "/".join(["x" * 127] * 8) + "y",
    "a/./b",
    "a//b",
    "a/",
    "a//",
]
#: What an engine cannot do is expected to fail, strictly: when it learns to, this list must be shortened.
CANNOT = {
    "rclone": {"a/./b", "a//b", "a/", "a//", "a and a/b", "order"},
}


def expect_failure(request: pytest.FixtureRequest, what: str) -> None:
    """Expect this test to fail, if the bucket that it is about is known not to do `what`."""
    name = request.node.callspec.params["bucket"]
    if what in CANNOT.get(name, ()):
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"{name} cannot do {what!r}"))


@pytest.fixture(params=["memory", "local", *ENGINES])
def bucket(request: pytest.FixtureRequest, all_engines: Engines, tmp_path: Path) -> Generator[Any, None, None]:
    """A new, empty bucket of each kind in turn."""
    made: Any
    if request.param == "memory":
        made = MemoryBucket(page=1000, part_size=5 * MiB)
    elif request.param == "local":
        made = LocalBucket("local", LocalSettings(tmp_path), reactor, 4)
    else:
        engine = all_engines.get(request.param)
        made = S3Bucket("s3", engine.settings(engine.new_bucket()), reactor, 4)
    made.start()
    yield made
    pytest_twisted.blockon(made.stop())


async def put(bucket: Any, key: str, data: bytes, chunked: bool = False) -> ObjectInfo:
    info: ObjectInfo = await bucket.put(key, BytesBody(data, chunk=MiB, chunked=chunked), LIMIT)
    return info


async def read(bucket: Any, key: str) -> bytes:
    reader: IObjectReader = await bucket.get(key)
    consumer = Consumer()
    await reader.deliver(consumer)
    return consumer.data


async def keys(bucket: Any, prefix: str = "") -> list[str]:
    found, token = [], None
    while True:
        page = await bucket.list(ListQuery(prefix), token)
        found += [info.key for info in page.objects]
        token = page.token
        if token is None:
            return found


class InterfaceTests:
    """The interface itself."""

    @pytest_twisted.ensureDeferred
    async def test_is_kept(self, bucket: Any) -> None:
        """By the bucket, and by what it opens."""
        verifyObject(IBucket, bucket)
        await put(bucket, "a", b"x")
        reader = await bucket.get("a")
        verifyObject(IObjectReader, reader)
        reader.close()


class RoundTripTests:
    """In and out again."""

    @pytest.mark.parametrize("size", [0, 1, 5 * MiB - 1, 5 * MiB, 5 * MiB + 1, 17 * MiB + 3])
    @pytest.mark.parametrize("chunked", [False, True])
    @pytest_twisted.ensureDeferred
    async def test_bytes_come_back(self, bucket: Any, size: int, chunked: bool) -> None:
        """Whatever the number of parts, known beforehand or not."""
        data = random.Random(size).randbytes(size)
        before = time.time()
        put_info = await put(bucket, "a/b", data, chunked)
        reader = await bucket.get("a/b")
        consumer = Consumer()
        await reader.deliver(consumer)
        assert consumer.data == data
        assert (put_info.key, put_info.size) == ("a/b", size)
        assert (reader.info.key, reader.info.size) == ("a/b", size)
        if bucket.name != "primary":
            assert abs(reader.info.last_modified - before) < 60

    @pytest.mark.parametrize("key", ODD_KEYS)
    @pytest_twisted.ensureDeferred
    async def test_odd_keys(self, bucket: Any, key: str, request: pytest.FixtureRequest) -> None:
        """A key is what the client says, to the byte: put, listed, read, deleted."""
        expect_failure(request, key)
        await put(bucket, key, key.encode())
        assert await keys(bucket) == [key]
        assert await keys(bucket, key) == [key]
        assert await read(bucket, key) == key.encode()
        await bucket.delete(key)
        assert await keys(bucket) == []

    @pytest_twisted.ensureDeferred
    async def test_keys_are_not_folders(self, bucket: Any, request: pytest.FixtureRequest) -> None:
        """`a` and `a/b` and `a//b` are three objects."""
        expect_failure(request, "a and a/b")
        names = ["a", "a/", "a/b", "a//b"]
        for key in names:
            await put(bucket, key, key.encode())
        assert sorted(await keys(bucket)) == sorted(names)
        assert [await read(bucket, key) for key in names] == [key.encode() for key in names]

    @pytest_twisted.ensureDeferred
    async def test_etag_is_the_same_everywhere(self, bucket: Any) -> None:
        """In the answer to the PUT, in GET, and in lists; without quotes; another for other bytes."""
        first = await put(bucket, "a", b"one")
        reader = await bucket.get("a")
        reader.close()
        (listed,) = (await bucket.list(ListQuery(""))).objects
        assert first.etag == reader.info.etag == listed.etag
        assert '"' not in first.etag
        assert (await put(bucket, "a", b"two")).etag != first.etag


class OverwriteTests:
    """One key, several times."""

    @pytest_twisted.ensureDeferred
    async def test_the_last_one_counts(self, bucket: Any) -> None:
        """Whole after small after whole."""
        for data in (b"small", b"x" * (6 * MiB), b"small again"):
            await put(bucket, "a", data)
            assert await read(bucket, "a") == data
        assert await keys(bucket) == ["a"]

    @pytest_twisted.ensureDeferred
    async def test_a_reader_finishes_what_it_opened(self, bucket: Any, request: pytest.FixtureRequest) -> None:
        """Or fails; it never gets a mixture."""
        await put(bucket, "a", b"old")
        reader = await bucket.get("a")
        await put(bucket, "a", b"new")
        consumer = Consumer()
        await reader.deliver(consumer)
        assert consumer.data == b"old"

    @pytest.mark.parametrize("size", [10, 12 * MiB])
    @pytest_twisted.ensureDeferred
    async def test_a_body_that_fails_changes_nothing(self, bucket: Any, size: int) -> None:
        """The old object stays, and a new one does not come up."""
        await put(bucket, "old", b"old")
        for key in ("old", "new"):
            body = Body(size + 1)
            outcome = bucket.put(key, body, LIMIT)
            for start in range(0, size, MiB):
                body.send(b"x" * min(MiB, size - start))
            body.fail(BodyLost("gone"))
            with pytest.raises(BodyLost):
                await outcome
        assert await keys(bucket) == ["old"]
        assert await read(bucket, "old") == b"old"


class MissingTests:
    """Objects that are not there."""

    @pytest_twisted.ensureDeferred
    async def test_get(self, bucket: Any) -> None:
        """Is its own error."""
        with pytest.raises(ObjectNotFound):
            await bucket.get("a")

    @pytest_twisted.ensureDeferred
    async def test_delete(self, bucket: Any) -> None:
        """Is no error."""
        await bucket.delete("a")
        await put(bucket, "a", b"x")
        await bucket.delete("a")
        with pytest.raises(ObjectNotFound):
            await bucket.get("a")


class ListTests:
    """What is there."""

    @pytest_twisted.ensureDeferred
    async def test_by_prefix_and_in_order(self, bucket: Any, request: pytest.FixtureRequest) -> None:
        """Of UTF-8 bytes; a prefix need not end at a slash."""
        expect_failure(request, "order")
        names = ["b/1", "b/10", "b/2", "b-1", "b", "c", "B", "b/é", "b/\uffee", "b/😀"]
        for key in names:
            await put(bucket, key, b"")
        assert await keys(bucket) == sorted(names, key=str.encode)
        assert await keys(bucket, "b/1") == ["b/1", "b/10"]
        assert await keys(bucket, "b/") == sorted((key for key in names if key.startswith("b/")), key=str.encode)
        assert await keys(bucket, "x") == []

    @pytest_twisted.ensureDeferred
    async def test_more_than_a_page(self, bucket: Any) -> None:
        """All of them, each once."""
        names = [f"p/{number:04}" for number in range(1003)]
        for key in names:
            await put(bucket, key, b"")
        assert len((await bucket.list(ListQuery("p/"))).objects) == 1000
        assert await keys(bucket, "p/") == names

    @pytest_twisted.ensureDeferred
    async def test_says_size_and_time(self, bucket: Any) -> None:
        """Of each."""
        before = time.time()
        await put(bucket, "a", b"12345")
        (info,) = (await bucket.list(ListQuery(""))).objects
        assert info.size == 5
        if bucket.name != "primary":
            assert abs(info.last_modified - before) < 60


class BackPressureTests:
    """Memory does not grow with the object."""

    @pytest_twisted.ensureDeferred
    async def test_a_slow_reader_holds_two_chunks(self, bucket: Any) -> None:
        """And gets all bytes in the end."""
        await put(bucket, "a", b"x" * (4 * MiB))
        reader = await bucket.get("a")
        consumer = Consumer(paused=True)
        outcome = reader.deliver(consumer)
        await _soon()
        assert len(consumer.data) <= 2 * MiB
        assert not outcome.called
        consumer.producer.resumeProducing()
        await outcome
        assert len(consumer.data) == 4 * MiB


async def _soon() -> None:
    await deferLater(reactor, 0.1)
