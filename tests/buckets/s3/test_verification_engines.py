"""Verified reads of whole objects from real engines, behind a proxy that changes bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from tests.conftest import ALL_ENGINES, Engines
from tests.engines import Engine
from tests.faultproxy import FaultProxy, fault_proxy
from tests.support import UPKEEP, BytesBody, Consumer, reactor
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.errors import DamagedAnswer
from twisted_storaged.protocol.metadata import CHECKSUM_NAME

MiB = 1 << 20
DATA = random.Random(8).randbytes(2_000_000)


async def read(bucket: S3Bucket) -> bytes:
    consumer = Consumer()
    reader = await bucket.get("k")
    await reader.deliver(consumer)
    return consumer.data


#: What each engine's objects are verified by: those of one piece and those of parts, by default and with `true`.
SOURCES = {
    "moto": (CHECKSUM_NAME, CHECKSUM_NAME, "x-amz-checksum-crc32c", "x-amz-checksum-crc32c"),
    "rclone": ("x-amz-checksum-crc32c", "x-amz-checksum-crc32c", None, "etag"),
    "swift": (CHECKSUM_NAME, CHECKSUM_NAME, None, "etag"),
    "swift-3": (CHECKSUM_NAME, CHECKSUM_NAME, None, "etag"),
    "ceph": (CHECKSUM_NAME, CHECKSUM_NAME, None, "etag"),
}


class OnEngine:
    """A new bucket of an engine behind a proxy that changes bytes, and the readers that it opens."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.engine: Engine = proxy.engine
        self._bucket = proxy.direct.new_bucket()
        self._open: list[S3Bucket] = []

    def bucket(self, verify: bool | None) -> S3Bucket:
        settings = replace(self.engine.settings(self._bucket), verify_reads=verify)
        bucket = S3Bucket("s3", settings, reactor, 4, UPKEEP)
        bucket.start()
        self._open.append(bucket)
        return bucket

    def stop(self) -> None:
        for bucket in self._open:
            pytest_twisted.blockon(bucket.stop())


@pytest.fixture(params=ALL_ENGINES)
def on_engine(request: pytest.FixtureRequest, all_engines: Engines) -> Iterator[tuple[str, OnEngine]]:
    with fault_proxy(all_engines.get(request.param)) as proxy:
        made = OnEngine(proxy)
        yield request.param, made
        made.stop()


class EngineTests:
    """Real engines."""

    @pytest.mark.parametrize("size", [2 * MiB, 11 * MiB])
    @pytest.mark.parametrize("verify", [None, True])
    @pytest_twisted.ensureDeferred
    async def test_what_it_gives(self, on_engine: tuple[str, OnEngine], size: int, verify: bool | None) -> None:
        """Reads are verified by what is documented for each engine, and a changed byte is noticed."""
        name, made = on_engine
        data = random.Random(size).randbytes(size)
        bucket: Any = made.bucket(verify)
        await bucket.put("k", BytesBody(data, chunk=MiB), 1 << 30)
        source = SOURCES[name][2 * (size > 5 * MiB) + bool(verify)]
        reader: Any = await bucket.get("k")
        verification = reader._verification
        assert (None if verification is None else verification._expected.source) == source
        consumer = Consumer()
        await reader.deliver(consumer)
        assert consumer.data == data
        assert reader.info.metadata == ()
        made.proxy.flip(b"GET ", size // 2)
        if source is None:
            assert await read(bucket) != data
        else:
            with pytest.raises(DamagedAnswer, match="is damaged: its"):
                await read(bucket)
        assert await read(bucket) == data

    @pytest_twisted.ensureDeferred
    async def test_an_overwrite_by_another_tool(self, on_engine: tuple[str, OnEngine]) -> None:
        """The checksum of an old object is not used for one that another tool put in its place."""
        _, made = on_engine
        bucket = made.bucket(None)
        await bucket.put("k", BytesBody(DATA), 1 << 30)
        s3 = made.proxy.direct.client()
        s3.put_object(Bucket=made._bucket, Key="k", Body=DATA[::-1])
        assert await read(bucket) == DATA[::-1]
        await bucket.put("k", BytesBody(bytes(6 * MiB)), 1 << 30)
        assert await read(bucket) == bytes(6 * MiB)
        await bucket.put("k", BytesBody(DATA), 1 << 30)
        assert await read(bucket) == DATA
