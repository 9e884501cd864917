"""What every bucket keeps to: the same tests against memory, the embedded bucket, and S3 engines."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from tests.conftest import ALL_ENGINES, Engines
from tests.support import UPKEEP, Body, BytesBody, Consumer, MemoryBucket, entries, is_common_prefix, reactor
from twisted_storaged.buckets.local.bucket import LocalBucket, LocalSettings
from twisted_storaged.buckets.local.start import prepare
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.probe import CAPABILITIES_BY_SETTING
from twisted_storaged.buckets.s3.session import ConditionalWrites
from twisted_storaged.buckets.s3.writer import (
    COMPLETE_ABSENT,
    COMPLETE_SAME,
    DELETE_SAME,
    NO_CAPABILITIES,
    PUT_ABSENT,
    PUT_SAME,
)
from twisted_storaged.errors import (
    BodyLost,
    ConditionUnsupported,
    DigestMismatch,
    ObjectNotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    WriteConflict,
)
from twisted_storaged.interfaces import IBucket, IObjectReader
from twisted_storaged.model import NO_OPTIONS, ByteRange, Condition, ListQuery, Metadata, ObjectInfo, PutOptions, Span
from twisted_storaged.routing import ListChecker

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
    "rclone": {"a/./b", "a//b", "a/", "a//", "a and a/b", "order", "pages"},
    "moto": {"compare and swap, large"},
}
#: Which conditions a bucket claims to check in one step with a write; a bucket of S3, after it has tried.
ALL_CONDITIONS = CAPABILITIES_BY_SETTING["all"] or frozenset()
CLAIMED = {
    "memory": ALL_CONDITIONS,
    "local": ALL_CONDITIONS,
    "shared": ALL_CONDITIONS,
    "moto": ALL_CONDITIONS,
    "rclone": NO_CAPABILITIES,
    "swift": NO_CAPABILITIES,
    "swift-3": NO_CAPABILITIES,
    "ceph": frozenset({PUT_ABSENT}),
}
#: Engines that look and then write: what a probe of moto finds, in threads of one process, is chance; what it finds of
#: Swift is not, but a bucket for each test would try that chance often. `tests/buckets/s3/test_probe.py` probes it.
CLAIMED_BY_HAND: dict[str, ConditionalWrites] = {"moto": "all", "swift": "none", "swift-3": "none"}


def expect_failure(request: pytest.FixtureRequest, what: str) -> None:
    """Expect this test to fail, if the bucket that it is about is known not to do `what`."""
    name = request.node.callspec.params["bucket"]
    if what in CANNOT.get(name, ()):
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"{name} cannot do {what!r}"))


@pytest.fixture(params=["memory", "local", "shared", *ALL_ENGINES])
def bucket(request: pytest.FixtureRequest, all_engines: Engines, tmp_path: Path) -> Generator[Any, None, None]:
    """A new, empty bucket of each kind in turn."""
    made: Any
    if request.param == "memory":
        made = MemoryBucket(page=1000, part_size=5 * MiB)
    elif request.param == "local":
        made = LocalBucket("local", LocalSettings(tmp_path), reactor, 4)
    elif request.param == "shared":
        # As one of several processes has it.
        made = LocalBucket("local", LocalSettings(tmp_path), reactor, 4, lock=prepare("local", tmp_path))
    else:
        engine = all_engines.get(request.param)
        settings = engine.settings(engine.new_bucket())
        if request.param in CLAIMED_BY_HAND:
            settings = replace(settings, conditional_writes=CLAIMED_BY_HAND[request.param])
        made = S3Bucket("s3", settings, reactor, 4, UPKEEP)
    made.start()
    yield made
    pytest_twisted.blockon(made.stop())


async def put(
    bucket: Any, key: str, data: bytes, chunked: bool = False, options: PutOptions = NO_OPTIONS
) -> ObjectInfo:
    info: ObjectInfo = await bucket.put(key, BytesBody(data, chunk=MiB, chunked=chunked), LIMIT, options)
    return info


async def read(bucket: Any, key: str, wanted: ByteRange | None = None) -> bytes:
    reader: IObjectReader = await bucket.get(key, wanted)
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
            outcome = ensureDeferred(bucket.put(key, body, LIMIT))
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


class HeadTests:
    """Looking at an object."""

    @pytest.mark.parametrize("size", [0, 3, 6 * MiB])
    @pytest_twisted.ensureDeferred
    async def test_says_what_a_get_says(self, bucket: Any, size: int) -> None:
        """Without the bytes."""
        await put(bucket, "a", bytes(size))
        reader = await bucket.get("a")
        reader.close()
        assert await bucket.head("a") == reader.info
        assert (reader.info.size, reader.span) == (size, Span(0, size))

    @pytest_twisted.ensureDeferred
    async def test_a_missing_object(self, bucket: Any) -> None:
        """Is its own error."""
        with pytest.raises(ObjectNotFound):
            await bucket.head("a")


HUGE = 10**30


class RangeTests:
    """Some bytes of an object."""

    @pytest.mark.parametrize(
        ("first", "last"),
        [
            (0, 0),
            (5, 9),
            (999, 999),
            (0, 999),
            (990, 5000),
            (0, HUGE),
            (0, None),
            (990, None),
            (999, None),
            (None, 1),
            (None, 999),
            (None, 1000),
            (None, 5000),
            (None, HUGE),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_are_those_asked_for(self, bucket: Any, first: int | None, last: int | None) -> None:
        """As far as they are there; of an object whose whole size is said."""
        data = random.Random(1).randbytes(1000)
        await put(bucket, "a", data)
        wanted = ByteRange(first, last)
        reader = await bucket.get("a", wanted)
        consumer = Consumer()
        await reader.deliver(consumer)
        start, end = wanted.within(1000)
        assert (reader.span, reader.info.size) == ((start, end), 1000)
        assert consumer.data == data[start:end]

    @pytest.mark.parametrize(("first", "last"), [(1000, None), (1000, 1000), (5000, 6000), (HUGE, None), (None, 0)])
    @pytest_twisted.ensureDeferred
    async def test_none_are_there(self, bucket: Any, first: int | None, last: int | None) -> None:
        """That is an error, which says how many there are."""
        await put(bucket, "a", bytes(1000))
        with pytest.raises(RangeNotSatisfiable) as caught:
            await bucket.get("a", ByteRange(first, last))
        assert caught.value.size == 1000

    @pytest.mark.parametrize(("first", "last"), [(0, None), (0, 0), (1, None), (None, 5), (None, 0)])
    @pytest_twisted.ensureDeferred
    async def test_an_empty_object_has_none(self, bucket: Any, first: int | None, last: int | None) -> None:
        """In no form."""
        await put(bucket, "a", b"")
        with pytest.raises(RangeNotSatisfiable) as caught:
            await bucket.get("a", ByteRange(first, last))
        assert caught.value.size == 0

    @pytest.mark.parametrize(("first", "last"), [(5 * MiB - 3, 5 * MiB + 3), (3, 11 * MiB), (None, 6 * MiB)])
    @pytest_twisted.ensureDeferred
    async def test_across_parts(self, bucket: Any, first: int | None, last: int | None) -> None:
        """How an object came does not matter."""
        data = random.Random(2).randbytes(12 * MiB)
        await put(bucket, "a", data)
        wanted = ByteRange(first, last)
        start, end = wanted.within(len(data))
        assert await read(bucket, "a", wanted) == data[start:end]

    @pytest_twisted.ensureDeferred
    async def test_of_a_missing_object(self, bucket: Any) -> None:
        """It is missing."""
        with pytest.raises(ObjectNotFound):
            await bucket.get("a", ByteRange(0, None))


METADATA: Metadata = (
    ("cache-control", "max-age=60, public"),
    ("content-disposition", 'attachment; filename="a b.csv"'),
    ("content-encoding", "gzip"),
    ("content-type", "text/csv; charset=utf-8"),
    ("x-amz-meta-empty", ""),
    ("x-amz-meta-origin", "two  spaces, and = ? ; \\ %41"),
)


class MetadataTests:
    """What is said of an object."""

    @pytest.mark.parametrize("size", [3, 6 * MiB])
    @pytest_twisted.ensureDeferred
    async def test_comes_back(self, bucket: Any, size: int, request: pytest.FixtureRequest) -> None:
        """Word for word, from heads and gets; lists have none."""
        expect_failure(request, "metadata")
        await put(bucket, "a", bytes(size), options=PutOptions(METADATA))
        reader = await bucket.get("a")
        reader.close()
        assert reader.info.metadata == (await bucket.head("a")).metadata == METADATA
        assert (await bucket.list(ListQuery())).objects[0].metadata == ()

    @pytest_twisted.ensureDeferred
    async def test_goes_with_the_object(self, bucket: Any, request: pytest.FixtureRequest) -> None:
        """Whoever says nothing has none, whatever was there before."""
        expect_failure(request, "no metadata")
        await put(bucket, "a.csv", b"x", options=PutOptions((("x-amz-meta-a", "1"),)))
        await put(bucket, "a.csv", b"<html>")
        assert (await bucket.head("a.csv")).metadata == ()


BOTH = pytest.mark.parametrize("size", [10, 6 * MiB], ids=["small", "large"])
ABSENT, OTHER = Condition(), Condition("0" * 32)


class ConditionTests:
    """Writes that are to happen only if."""

    @staticmethod
    def claims(request: pytest.FixtureRequest, size: int, absent: bool) -> bool:
        """Whether a bucket claims a condition for bodies of this size."""
        small, large = (PUT_ABSENT, COMPLETE_ABSENT) if absent else (PUT_SAME, COMPLETE_SAME)
        name = request.node.callspec.params["bucket"]
        if name in ("memory", "local"):
            return True
        return (small if size < 5 * MiB else large) in CLAIMED[name]

    @BOTH
    @pytest.mark.parametrize("chunked", [False, True])
    @pytest_twisted.ensureDeferred
    async def test_create_only(self, bucket: Any, size: int, chunked: bool, request: pytest.FixtureRequest) -> None:
        """Once; after that the first one stays. Or never, where the bucket cannot tell."""
        options = PutOptions(condition=ABSENT)
        if not self.claims(request, size, absent=True):
            with pytest.raises(ConditionUnsupported):
                await put(bucket, "a", bytes(size), chunked, options)
            assert await keys(bucket) == []
            return
        await put(bucket, "a", b"1" * size, chunked, options)
        with pytest.raises(PreconditionFailed):
            await put(bucket, "a", b"2" * size, chunked, options)
        assert await read(bucket, "a") == b"1" * size
        await bucket.delete("a")
        await put(bucket, "a", b"3" * size, chunked, options)
        assert await read(bucket, "a") == b"3" * size

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_compare_and_swap(self, bucket: Any, size: int, request: pytest.FixtureRequest) -> None:
        """Only the one who saw what is there writes."""
        if size > 10:
            expect_failure(request, "compare and swap, large")
        old = await put(bucket, "a", b"old")
        if not self.claims(request, size, absent=False):
            with pytest.raises(ConditionUnsupported):
                await put(bucket, "a", bytes(size), options=PutOptions(condition=Condition(old.etag)))
            assert await read(bucket, "a") == b"old"
            return
        new = await put(bucket, "a", b"2" * size, options=PutOptions(condition=Condition(old.etag)))
        for condition in (Condition(old.etag), OTHER):
            with pytest.raises(PreconditionFailed):
                await put(bucket, "a", b"3" * size, options=PutOptions(condition=condition))
        assert await read(bucket, "a") == b"2" * size
        await bucket.delete("a")
        with pytest.raises(PreconditionFailed):
            await put(bucket, "a", b"3" * size, options=PutOptions(condition=Condition(new.etag)))
        assert await keys(bucket) == []

    @pytest_twisted.ensureDeferred
    async def test_delete(self, bucket: Any, request: pytest.FixtureRequest) -> None:
        """Of the object that is meant, and no other."""
        old = await put(bucket, "a", b"old")
        if DELETE_SAME not in CLAIMED[request.node.callspec.params["bucket"]]:
            with pytest.raises(ConditionUnsupported):
                await bucket.delete("a", Condition(old.etag))
            assert await keys(bucket) == ["a"]
            return
        new = await put(bucket, "a", b"new")
        with pytest.raises(PreconditionFailed):
            await bucket.delete("a", Condition(old.etag))
        assert await read(bucket, "a") == b"new"
        await bucket.delete("a", Condition(new.etag))
        assert await keys(bucket) == []
        with pytest.raises(PreconditionFailed):
            await bucket.delete("a", Condition(new.etag))

    @pytest_twisted.ensureDeferred
    async def test_twelve_writers_race(self, bucket: Any, request: pytest.FixtureRequest) -> None:
        """One of them creates the object, wherever a bucket claims to tell; and it is that one's."""
        name = request.node.callspec.params["bucket"]
        if PUT_ABSENT not in CLAIMED[name]:
            with pytest.raises(ConditionUnsupported):
                await put(bucket, "a", b"", options=PutOptions(condition=ABSENT))
            return
        if name == "moto":
            return  # its word, see `bucket`
        for key in ("a", "b", "c", "d", "e"):
            bodies = [str(number).encode() * 100 for number in range(12)]
            puts = [put(bucket, key, data, options=PutOptions(condition=ABSENT)) for data in bodies]
            outcomes = await DeferredList([Deferred.fromCoroutine(one) for one in puts], consumeErrors=True)
            winners = [data for data, (won, _) in zip(bodies, outcomes, strict=True) if won]
            assert winners == [await read(bucket, key)]
            losers: list[Any] = [failure for won, failure in outcomes if not won]
            assert all(failure.check(PreconditionFailed, WriteConflict) for failure in losers)


TREE = ["a", "a/b", "a/b/c", "a/b/d", "a-b/c", "a/é/x", "b", "b c/d+e", "c/d/e/f", "c/😀", "d%2Fe/f", "zz"]


class PageTests:
    """Lists by prefix and delimiter, from a key on, page by page."""

    @pytest.mark.parametrize("page_limit", [1, 2, 1000])
    @pytest.mark.parametrize("delimiter", [None, "/"])
    @pytest_twisted.ensureDeferred
    async def test_are_what_a_plain_model_says(
        self, bucket: Any, delimiter: str | None, page_limit: int, request: pytest.FixtureRequest
    ) -> None:
        """Every entry once, in order, and no page longer than asked for."""
        expect_failure(request, "pages")
        for key in TREE:
            await put(bucket, key, b"")
        for prefix in ("", "a", "a/", "c/", "x"):
            for after in (None, "a", "a/", "a/b", "a/b/c", "b c/", "c/zzz", "zz"):
                query = ListQuery(prefix, delimiter, after, page_limit)
                assert await self.walk(bucket, query) == entries(TREE, query), query

    @staticmethod
    async def walk(bucket: Any, query: ListQuery) -> list[str]:
        """All entries; objects and common prefixes of a page are each in order."""
        found: list[str] = []
        token: str | None = None
        walk = ListChecker()
        while True:
            page = await bucket.list(query, token)
            walk.take(page)
            objects, prefixes = [info.key for info in page.objects], list(page.prefixes)
            assert len(objects) + len(prefixes) <= query.page_limit
            assert not any(is_common_prefix(key, query) for key in objects)
            found += sorted(objects + prefixes, key=str.encode)
            token = page.token
            if token is None:
                return found


class CheckTests:
    """Checks of whether the storage can be used now."""

    @pytest_twisted.ensureDeferred
    async def test_a_bucket_that_works(self, bucket: Any) -> None:
        """A check succeeds, of an empty bucket and of one with objects, and leaves nothing behind."""
        await bucket.check()
        await put(bucket, "a", b"x")
        await bucket.check()
        assert await keys(bucket) == ["a"]


class DigestTests:
    """Bodies that must be what the client says they are."""

    @BOTH
    @pytest.mark.parametrize("algorithm", ["md5", "sha-256", "sha-512"])
    @pytest_twisted.ensureDeferred
    async def test_a_mismatch_leaves_nothing(self, bucket: Any, algorithm: str, size: int) -> None:
        """The old object stays, and a new one does not come up."""
        await put(bucket, "old", b"old")
        wrong = {algorithm: digest(algorithm, b"something else")}
        for key in ("old", "new"):
            with pytest.raises(DigestMismatch):
                await put(bucket, key, bytes(size), options=PutOptions(expected=wrong))
        assert await keys(bucket) == ["old"]
        assert await read(bucket, "old") == b"old"

    @BOTH
    @pytest_twisted.ensureDeferred
    async def test_those_given_are_kept(self, bucket: Any, size: int, request: pytest.FixtureRequest) -> None:
        """And those wanted are in the answer to the put."""
        expect_failure(request, "digests")
        data = bytes(size)
        given = {name: digest(name, data) for name in ("sha-256", "sha-512")}
        options = PutOptions(expected=given, wanted=frozenset({"md5"}))
        info = await put(bucket, "a", data, options=options)
        assert info.digests == {**given, "md5": digest("md5", data)}
        head = await bucket.head("a")
        assert {name: head.digests[name] for name in given} == given
        assert head.metadata == ()


def digest(algorithm: str, data: bytes) -> bytes:
    return hashlib.new(algorithm.replace("-", "") if algorithm != "md5" else "md5", data).digest()


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
