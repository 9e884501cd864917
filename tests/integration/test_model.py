"""Random sequences of requests give what a dict would give, and of conditional writes that race one wins."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import ClassVar
from urllib.parse import quote
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.conftest import ENGINES, Engines
from tests.daemon import Daemon
from twisted_storaged.errors import RangeNotSatisfiable
from twisted_storaged.model import ByteRange

#: Engines that do not check a condition and write in one atomic step; storaged must find out the same.
CANNOT_CREATE = {"rclone", "swift"}
CANNOT_SWAP = {"rclone", "swift", "ceph"}

ROUNDS, WRITERS = 100, 12
COUNTERS, INCREMENTS = 8, 200


Answer = tuple[int, dict[str, str], bytes]


class Client:
    """A persistent connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request; returns the status, the headers with names in lower case, and the body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, body, named)
        response = self._connection.getresponse()
        data = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, data


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of `served` on each kind of bucket, and races not on moto."""
    if "served" in metafunc.fixturenames:
        races = metafunc.cls is RaceTests
        kinds = [kind for kind in ("local", *ENGINES) if not (races and kind == "moto")]
        metafunc.parametrize("served", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, all_engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    """The name of a kind of bucket, and the port of a daemon that has such a bucket."""
    config = "[storaged]\nput_slots = 16\n"
    if request.param != "local":
        engine = all_engines.get(request.param)
        config += engine.toml(engine.new_bucket())
        # moto checks and writes in two steps, so that a probe's result is random; without races it is correct.
        config += 'conditional_writes = "all"\n' if request.param == "moto" else ""
    with Daemon(tmp_path_factory.mktemp("model"), config=config) as daemon:
        yield request.param, daemon.port


KEYS = st.sampled_from(["a", "b", "dir/a", "dir/b/c", "é 😀"])
#: Bodies that the embedded bucket keeps in a file, and that S3 gets in two parts; the latter takes longer and is rarer.
FILE, PARTS = b"x" * 70_000, b"part" * 1_500_000
BODIES = st.integers(0, 19).flatmap(lambda n: st.just({0: PARTS, 1: FILE}[n]) if n < 2 else st.binary(max_size=20))
RANGES = st.builds(ByteRange, st.none(), st.integers(0, 30)) | st.integers(0, 30).flatmap(
    lambda first: st.builds(ByteRange, st.just(first), st.none() | st.integers(first, 40))
)


class StorageMachine(RuleBasedStateMachine):
    """A state machine of Hypothesis: a prefix of a bucket, and the dict that says what it must hold."""

    client: Client
    #: PARTS, or FILE on engines that list another ETag for a multipart upload than its PUT gave, or ignore conditions.
    parts: ClassVar[bytes] = PARTS
    etags: Bundle[str] = Bundle("etags")

    @initialize(target=etags)
    def begin(self) -> str:
        self.root = f"{uuid4().hex}/"
        self.objects: dict[str, tuple[bytes, str]] = {}
        return "never-an-etag"

    @rule(target=etags, key=KEYS, body=BODIES)
    def put(self, key: str, body: bytes) -> str:
        status, _, answer = self.ask("PUT", key, body)
        assert status == 200
        return self.stored(key, body, answer)

    @rule(target=etags, key=KEYS, body=BODIES)
    def create(self, key: str, body: bytes) -> str:
        status, _, answer = self.ask("PUT", key, body, If_None_Match="*")
        if status == 501:
            return ""
        assert status == (412 if key in self.objects else 200)
        return self.stored(key, body, answer) if status == 200 else self.objects[key][1]

    @rule(target=etags, key=KEYS, body=BODIES, etag=etags)
    def replace(self, key: str, body: bytes, etag: str) -> str:
        status, _, answer = self.ask("PUT", key, body, If_Match=f'"{etag}"')
        if status == 501:
            return ""
        assert status == (200 if self.etag(key) == etag else 412)
        return self.stored(key, body, answer) if status == 200 else etag

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.ask("DELETE", key)[0] == 204
        self.objects.pop(key, None)

    @rule(key=KEYS, etag=etags)
    def delete_if(self, key: str, etag: str) -> None:
        status, _, _ = self.ask("DELETE", key, If_Match=f'"{etag}"')
        if status == 204:
            # S3 answers 204 as well if there is no object.
            assert self.etag(key) in (etag, None)
            self.objects.pop(key, None)
        else:
            assert status == 501 or (status == 412 and self.etag(key) != etag)

    @rule(key=KEYS, method=st.sampled_from(["GET", "HEAD"]))
    def get(self, key: str, method: str) -> None:
        status, headers, body = self.ask(method, key)
        if key not in self.objects:
            assert status == 404
            return
        data, etag = self.objects[key]
        assert (status, headers["etag"], headers["content-length"]) == (200, f'"{etag}"', str(len(data)))
        assert body == (data if method == "GET" else b"")

    @rule(key=KEYS, wanted=RANGES)
    def get_range(self, key: str, wanted: ByteRange) -> None:
        status, headers, body = self.ask("GET", key, Range=str(wanted))
        data, _ = self.objects.get(key, (None, None))
        if data is None:
            assert status == 404
            return
        try:
            span = wanted.within(len(data))
        except RangeNotSatisfiable:
            assert (status, headers["content-range"]) == (416, f"bytes */{len(data)}")
        else:
            assert (status, body) == (206, data[span.start : span.end])

    @rule(key=KEYS, etag=etags)
    def get_if_changed(self, key: str, etag: str) -> None:
        status, _, _ = self.ask("GET", key, If_None_Match=f'"{etag}"')
        assert status == (404 if key not in self.objects else 304 if self.etag(key) == etag else 200)

    @rule(prefix=st.sampled_from(["", "dir/", "é", "none"]), limit=st.none() | st.integers(1, 3))
    def list(self, prefix: str, limit: int | None) -> None:
        query = f"/storage/list?prefix={quote(self.root + prefix)}"
        status, _, body = self.client.ask("GET", query if limit is None else f"{query}&limit={limit}")
        assert status == 200
        listed = json.loads(body)["objects"]
        found = [(item["key"].removeprefix(self.root), item["size"], item["etag"]) for item in listed]
        keys = sorted((key for key in self.objects if key.startswith(prefix)), key=str.encode)
        expected = [(key, len(self.objects[key][0]), self.objects[key][1]) for key in keys]
        assert found == expected[:limit]

    def ask(self, method: str, key: str, body: bytes | None = None, **headers: str) -> Answer:
        body = self.parts if body == PARTS else body
        return self.client.ask(method, f"/objects/{quote(self.root + key)}", body, **headers)

    def stored(self, key: str, body: bytes, answer: bytes) -> str:
        etag: str = json.loads(answer)["etag"]
        self.objects[key] = (self.parts if body == PARTS else body, etag)
        return etag

    def etag(self, key: str) -> str | None:
        return self.objects[key][1] if key in self.objects else None


class ModelTests:
    """Sequences of requests, compared with a dict."""

    def test_every_sequence(self, served: tuple[str, int]) -> None:
        """PUT, GET, ranges, HEAD, list and DELETE, with and without conditions, give what the dict says."""

        class Machine(StorageMachine):
            client = Client(served[1])
            parts = FILE if served[0] in ("moto", "rclone") else PARTS

        limits = settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(Machine, settings=limits)


class RaceTests:
    """Conditional writes that race: the condition is checked in one atomic step with the write."""

    @pytest.fixture
    def clients(self, served: tuple[str, int]) -> list[Client]:
        return [Client(served[1]) for _ in range(WRITERS)]

    def test_create_only(self, served: tuple[str, int], clients: list[Client]) -> None:
        """Of twelve concurrent PUTs with If-None-Match: *, exactly one succeeds, in each round."""
        if clients[0].ask("PUT", "/objects/probe", b"x", If_None_Match="*")[0] == 501:
            assert served[0] in CANNOT_CREATE
            return
        assert served[0] not in CANNOT_CREATE
        with ThreadPoolExecutor(WRITERS) as pool:
            for number in range(ROUNDS):
                together = Barrier(WRITERS)

                def create(writer: int, path: str = f"/objects/race/{number}", together: Barrier = together) -> int:
                    together.wait()
                    return clients[writer].ask("PUT", path, b"%d" % writer, If_None_Match="*")[0]

                statuses = list(pool.map(create, range(WRITERS)))
                assert sorted(statuses) == [200] + [412] * (WRITERS - 1)
                _, _, body = clients[0].ask("GET", f"/objects/race/{number}")
                assert statuses[int(body)] == 200

    def test_compare_and_swap(self, served: tuple[str, int], clients: list[Client]) -> None:
        """A counter that eight clients increment with If-Match loses no increment."""
        etag = json.loads(clients[0].ask("PUT", "/objects/counter", b"0")[2])["etag"]
        status, _, _ = clients[0].ask("PUT", "/objects/counter", b"0", If_Match=f'"{etag}"')
        if status == 501:
            assert served[0] in CANNOT_SWAP
            return
        assert served[0] not in CANNOT_SWAP

        def count(client: Client) -> None:
            for _ in range(INCREMENTS // COUNTERS):
                while True:
                    _, headers, body = client.ask("GET", "/objects/counter")
                    status, _, _ = client.ask(
                        "PUT", "/objects/counter", b"%d" % (int(body) + 1), If_Match=headers["etag"]
                    )
                    assert status in (200, 409, 412)
                    if status == 200:
                        break

        with ThreadPoolExecutor(COUNTERS) as pool:
            list(pool.map(count, clients[:COUNTERS]))
        assert clients[0].ask("GET", "/objects/counter")[2] == b"%d" % INCREMENTS
