"""The daemon in front of real S3 engines, which are asked directly what it stored and left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.web.client import Agent, HTTPConnectionPool

from tests.conftest import Engines
from tests.daemon import Daemon
from tests.engines import Engine
from tests.integration.test_daemon import ask, head, wait_for
from tests.support import BytesBody, Consumer, reactor
from twisted_storaged.buckets.s3.bucket import MIN_PART_SIZE
from twisted_storaged.client import StorageClient

MiB = 1 << 20


class OnEngine:
    """A daemon on a new bucket of an engine."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.bucket = engine.new_bucket()
        self.s3: Any = engine.client()
        self.daemon = Daemon(folder, config=engine.toml(self.bucket))

    def uploads(self) -> list[dict[str, Any]]:
        """The multipart uploads that are open."""
        try:
            found: list[dict[str, Any]] = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        except self.s3.exceptions.NoSuchUpload:
            return []  # rclone does not support the request, and has no uploads
        return found

    def keys(self) -> list[str]:
        """The keys in the bucket."""
        return [item["Key"] for item in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]


@pytest.fixture
def on_engine(engine: Engine, tmp_path: Path) -> Iterator[OnEngine]:
    made = OnEngine(engine, tmp_path)
    with made.daemon:
        yield made


class EngineTests:
    """Behaviour that only a real engine can show."""

    def test_a_peer_that_dies_leaves_no_upload(self, on_engine: OnEngine) -> None:
        """A PUT whose client disconnects leaves no object and no upload, and frees its slot."""
        for _ in range(4):
            client = on_engine.daemon.connect()
            client.sendall(head("a", 100 * MiB) + b"x" * (12 * MiB))
            client.close()
        wait_for(lambda: ask(on_engine.daemon, "PUT", "/storage/put/b", b"x")[0] == 200)
        wait_for(lambda: on_engine.uploads() == [])
        assert on_engine.keys() == ["b"]

    def test_a_slow_body_is_on_the_engine_before_it_ends(self, on_engine: OnEngine) -> None:
        """Parts of a slow body are uploaded while the rest is still to come; the object is not visible yet."""
        data = b"0123456789abcdef" * (11 * MiB // 16)
        client = on_engine.daemon.connect()
        client.sendall(head("slow", len(data)) + data[: 11 * MiB - 1])
        wait_for(lambda: len(on_engine.uploads()) == 1)
        upload = on_engine.uploads()[0]["UploadId"]

        def parts() -> list[int]:
            answer = on_engine.s3.list_parts(Bucket=on_engine.bucket, Key="slow", UploadId=upload)
            return [part["Size"] for part in answer.get("Parts", [])]

        wait_for(lambda: parts() == [MIN_PART_SIZE, MIN_PART_SIZE])
        assert on_engine.keys() == []
        client.sendall(data[-1:])
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert on_engine.s3.get_object(Bucket=on_engine.bucket, Key="slow")["Body"].read() == data

    def test_a_chunked_body_over_the_cap_leaves_nothing(self, on_engine: OnEngine) -> None:
        """A chunked body over the limit is 413, and its upload is aborted."""
        client = on_engine.daemon.connect()
        client.sendall(b"PUT /storage/put/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (MiB, b"x" * MiB)
        for _ in range(257):
            client.sendall(chunk)
        answer = client.recv(1000)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert on_engine.keys() == []
        assert on_engine.uploads() == []

    @pytest_twisted.ensureDeferred
    async def test_treq_streams_both_ways(self, on_engine: OnEngine) -> None:
        """Several concurrent PUTs and GETs of the Twisted client give the bytes that were stored."""
        pool = HTTPConnectionPool(reactor)
        client = StorageClient(on_engine.daemon.url, treq.client.HTTPClient(Agent(reactor, pool=pool)))
        bodies = {f"k/{number}": bytes([number]) * (number * 3 * MiB + 1) for number in range(4)}
        puts = [client.put(key, BytesBody(data)) for key, data in bodies.items()]
        assert [(await done).size for done in puts] == [len(data) for data in bodies.values()]
        assert [(item.key, item.size) for item in await client.list("k/")] == [
            (key, len(data)) for key, data in bodies.items()
        ]
        for key, data in bodies.items():
            consumer = Consumer()
            await client.get_to(key, consumer)
            assert consumer.data == data
            await client.delete(key)
        assert await client.list() == []
        await pool.closeCachedConnections()

    def test_sigterm_aborts_what_is_under_way(self, on_engine: OnEngine) -> None:
        """A second SIGTERM ends the daemon within seconds, and aborts the upload that is under way."""
        client = on_engine.daemon.connect()
        client.sendall(head("a", 100 * MiB) + b"x" * (12 * MiB))
        wait_for(lambda: len(on_engine.uploads()) == 1)
        start = time.monotonic()
        assert on_engine.daemon.stop(skip_drain=True) == 0
        assert time.monotonic() - start < 20
        assert on_engine.uploads() == []


class SeveralBucketsTests:
    """Key prefixes in several buckets."""

    def test_one_space_of_keys(self, all_engines: Engines, tmp_path: Path) -> None:
        """Objects and lists look the same to clients, whichever bucket the keys are in."""
        engine = all_engines.get("moto")
        name = engine.new_bucket()
        config = (
            engine.toml(name).replace("[s3]", "[buckets.remote]") + '[[policy]]\nprefix = "far/"\nbucket = "remote"\n'
        )
        with Daemon(tmp_path, config=config) as daemon:
            for key in ("a", "far/b", "g"):
                assert ask(daemon, "PUT", f"/storage/put/{key}", key.encode())[0] == 200
            listed = json.loads(ask(daemon, "GET", "/storage/list?prefix=")[1])["objects"]
            assert [item["key"] for item in listed] == ["a", "far/b", "g"]
            assert ask(daemon, "GET", "/storage/get/far/b") == (200, b"far/b")
        assert [item["Key"] for item in engine.client().list_objects_v2(Bucket=name)["Contents"]] == ["far/b"]
