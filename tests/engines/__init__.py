"""S3 engines on loopback, and how to start them: moto in this process; rclone, Ceph and Swift as processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler

from twisted_storaged.buckets.s3.session import S3Settings

FOLDER = Path(__file__).parent
#: The number of this worker of pytest-xdist.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
#: Where the engines of this worker's own process listen. Each worker has an address of its own, all of them loopback:
#: once a port is closed, another worker may get the same, and must not receive what was meant for the first.
HOST = f"127.0.0.{2 + _WORKER}"
READY_SECONDS = 120
#: Engines that do not list keys in the order of their bytes.
WITHOUT_ORDER = {"rclone"}


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str

    def client(self) -> Any:
        """A boto3 client for direct access to the engine."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required"),
        )

    def new_bucket(self) -> str:
        """Create a bucket; returns its name."""
        name = f"test-{uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def settings(self, bucket: str, prefix: str = "") -> S3Settings:
        """The settings of a bucket on the engine."""
        settings = S3Settings(bucket, prefix, self.endpoint, "us-east-1", True, self.access_key, self.secret_key)
        return replace(settings, lists_in_order=self.name not in WITHOUT_ORDER)

    def toml(self, bucket: str) -> str:
        """The settings of a bucket on the engine, as a section of a configuration."""
        return (
            f'[s3]\nendpoint = "{self.endpoint}"\nregion = "us-east-1"\nbucket = "{bucket}"\nuse_path_style = true\n'
            f'access_key_id = "{self.access_key}"\nsecret_access_key = "{self.secret_key}"\n'
            f"lists_in_order = {str(self.name not in WITHOUT_ORDER).lower()}\n"
        )


@contextmanager
def moto() -> Iterator[Engine]:
    """Start moto in a thread of this process: it accepts any credentials, and keeps everything in memory."""
    # Else each answer's body waits up to 40 ms until the client has acknowledged its head.
    WSGIRequestHandler.disable_nagle_algorithm = True
    server = ThreadedMotoServer(HOST, 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Engine("moto", f"http://{host}:{port}", "any", "any")
    finally:
        server.stop()


@contextmanager
def rclone(folder: Path) -> Iterator[Engine]:
    """Start `rclone serve s3` on a folder."""
    binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with _script("rclone", folder, free_ports(1), RCLONE=binary or "rclone") as engine:
        yield engine


@contextmanager
def ceph(folder: Path, gigabytes: int = 4, store: str = "memstore", osds: int = 1) -> Iterator[Engine]:
    """Start Ceph's radosgw on OSDs in memory or (bluestore) on the disk; `folder`/ceph/ctl controls its processes."""
    with _script("ceph", folder, free_ports(60), OSDS=str(osds), STORE=store, OSD_GB=str(gigabytes)) as engine:
        yield engine


@contextmanager
def swift(folder: Path, nodes: int = 1) -> Iterator[Engine]:
    """Start OpenStack Swift with so many object servers, each of which holds a replica."""
    folder = folder / f"{nodes}"
    folder.mkdir()
    with _script("swift", folder, free_ports(11), NODES=str(nodes), BIN=str(Path(sys.executable).parent)) as engine:
        yield engine


def has_ceph() -> bool:
    """Whether Ceph's packages are installed; see the head of ceph.sh."""
    return all(shutil.which(name) for name in ("radosgw", "ceph-mon", "ceph-osd", "curl"))


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports, of those for this worker of pytest-xdist."""
    lowest = 20000 + _WORKER % 3 * 4000
    # Offset by the process id, so that concurrent runs of the tests on this machine rarely collide.
    for first in range(lowest + os.getpid() % 30 * 60, lowest + 4000, 60):
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def _script(name: str, folder: Path, port: int, **environ: str) -> Iterator[Engine]:
    data = folder / name
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        command = ["bash", str(FOLDER / f"{name}.sh"), str(data), str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environ})
    try:
        ready = _wait_until_ready(process, data / "ready.env", log)
        yield Engine(name, ready["S3_ENDPOINT"], ready["S3_ACCESS_KEY"], ready["S3_SECRET_KEY"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, str]:
    end = time.monotonic() + READY_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} did not start: {log.read_text('utf-8', 'replace')[-2000:]}")
        time.sleep(0.05)
    return dict(line.split("=", 1) for line in ready.read_text("utf-8").splitlines())
