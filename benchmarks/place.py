"""Where a peer is measured: a folder, free ports, and the S3 behind it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import CannotMeasure, build, running

#: The pace of a connection to an S3 far away: MB a second, and ms until the first byte of a response.
FAR_MB, FAR_MS = 80, 30


@dataclass(frozen=True)
class S3:
    """An S3 endpoint: its region and credentials, and for TLS the file of the certificate to trust."""

    endpoint: str
    region: str = "us-east-1"
    access_key_id: str = "benchmark"
    secret_access_key: str = "benchmark-secret"
    trust: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make boto3 (AWS_CA_BUNDLE) and OpenSSL (SSL_CERT_FILE) trust the certificate."""
        return {"AWS_CA_BUNDLE": self.trust, "SSL_CERT_FILE": self.trust} if self.trust else {}


@dataclass(frozen=True)
class Place:
    """What a peer may use.

    Attributes:
        folder: an empty folder, on the disk that is measured.
        port: the port to listen on; `port + 1` is for a proxy in front of S3.
        s3: the S3 to store objects in.
        put_slots: the number of put slots of storaged.
        workers: the number of its workers.
    """

    folder: Path
    port: int
    s3: S3
    put_slots: int = 4
    workers: int = 1


def given_s3() -> S3:
    """The S3 that environment variables name, as `tests/engines/with-engine.sh` sets them. Raises CannotMeasure."""
    names = ("S3_ENDPOINT", "S3_REGION", "S3_ACCESS_KEY", "S3_SECRET_KEY")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise CannotMeasure(f"the environment has no {', '.join(missing)}")
    return S3(*(os.environ[name] for name in names))


@contextmanager
def s3_sink(port: int) -> Iterator[S3]:
    """A fake S3 that is never the bottleneck: it discards bodies, and serves as many bytes as were put."""
    with running([build("s3sink"), str(port)], port):
        yield S3(f"http://127.0.0.1:{port}")


@contextmanager
def far_s3(port: int, near: S3) -> Iterator[S3]:
    """The S3 behind a proxy that makes it as slow as one far away."""
    near_port = near.endpoint.rpartition(":")[2]
    with running([build("slowproxy"), str(port), near_port, str(FAR_MB), str(FAR_MS)], port):
        yield S3(f"http://127.0.0.1:{port}")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a key and a self-signed certificate for 127.0.0.1; returns their paths."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=127.0.0.1"
    name = ["-addext", "subjectAltName=IP:127.0.0.1"]
    command = [*made.split(), *name, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return key, certificate
