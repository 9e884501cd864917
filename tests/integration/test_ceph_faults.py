"""Processes of a Ceph cluster are killed, paused and restarted under the daemon. Its three OSDs keep their data."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests import engines
from tests.faultproxy import fault_proxy
from tests.integration.test_daemon import head, wait_for
from tests.integration.test_s3_faults import DATA, Behind, MiB

pytestmark = pytest.mark.full

#: Seconds that a fault lasts, and the time limit of a request to S3: a gateway restarts in about two.
LASTS, DEADLINE = 0.5, 15
#: An object larger than all socket buffers between client and S3.
LARGE = DATA * 4
FAULTS = [
    ("kill", "start", ["osd.0"]),
    ("pause", "resume", ["osd.0"]),
    ("pause", "resume", ["osd.0", "osd.1"]),
    ("kill", "start", ["client.rgw"]),
    ("pause", "resume", ["client.rgw"]),
]


Fault = Callable[[], None]


class Cluster:
    """A Ceph cluster, and one daemon in front of it for all tests."""

    def __init__(self, behind: Behind, ctl: Path) -> None:
        self.behind = behind
        self._ctl = ctl

    def do(self, what: str, names: list[str]) -> None:
        for name in names:
            subprocess.run([self._ctl, what, name], check=True)

    def settle(self) -> None:
        """Wait until the cluster accepts writes."""

        def works() -> bool:
            with suppress(BotoCoreError, ClientError):
                self.behind.store("k", b"old")
                return True
            return False

        wait_for(works, 60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not engines.has_ceph():
        pytest.skip("Ceph is not installed: apt-get install radosgw ceph-mon ceph-osd curl")
    folder = tmp_path_factory.mktemp("cluster")
    with engines.ceph(folder, store="bluestore", osds=3) as engine, fault_proxy(engine) as proxy:
        behind = Behind(proxy, folder, deadline=DEADLINE, reap_interval=1)
        behind.store("large", LARGE)
        yield Cluster(behind, folder / "ceph" / "ctl")
        behind.daemon.kill()


@pytest.fixture
def behind(cluster: Cluster) -> Behind:
    cluster.settle()
    cluster.behind.proxy.requests.clear()
    return cluster.behind


@pytest.fixture(params=FAULTS, ids=lambda fault: f"{fault[0]} {' '.join(fault[2])}")
def fault(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Fault]:
    """A function that begins a fault, which ends by itself after LASTS seconds."""
    begin, end, names = request.param
    ending = Timer(LASTS, cluster.do, (end, names))

    def happen() -> None:
        cluster.do(begin, names)
        ending.start()

    yield happen
    ending.join()


class CephFaultTests:
    """Faults at different moments of a request."""

    def test_in_the_middle_of_parts(self, behind: Behind, fault: Fault) -> None:
        """A fault while some parts are uploaded and others are still to come leaves the new object or the old one."""
        with behind.daemon.connect() as client:
            client.settimeout(60)
            client.sendall(head("k", len(DATA)) + DATA[: 12 * MiB])
            wait_for(lambda: behind.proxy.count(b"partNumber=2&") > 0)
            fault()
            client.sendall(DATA[12 * MiB :])
            self.check(behind, int(client.recv(1000).split()[1]))

    def test_between_the_last_part_and_complete(self, behind: Behind, fault: Fault) -> None:
        """A fault before CompleteMultipartUpload leaves the new object or the old one."""
        with ThreadPoolExecutor(1) as clients:
            put = clients.submit(behind.put, "k", DATA)
            wait_for(lambda: behind.proxy.count(b"partNumber=1&") > 0)
            behind.proxy.hang(b"POST ")
            wait_for(lambda: behind.proxy.count(b"k?uploadId=") > 0)
            fault()
            behind.proxy.heal()
            self.check(behind, put.result()[0])

    def test_during_a_get(self, behind: Behind, fault: Fault) -> None:
        """A GET that meets a fault still gives all bytes in one 200 response."""
        with behind.daemon.connect() as client:
            client.settimeout(60)
            client.sendall(b"GET /storage/get/large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = bytearray(client.recv(MiB))
            fault()
            while data := client.recv(MiB):
                received += data
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == LARGE

    @staticmethod
    def check(behind: Behind, status: int) -> None:
        """Expect the new object after a 200 and the old one after an error, and that no upload is left."""
        assert status in (200, 502, 504)
        wait_for(lambda: behind.get("k") == (200, DATA if status == 200 else b"old"), 60)
        wait_for(lambda: not behind.uploads())
