"""Where a row is measured: a folder, the ports that may be taken, and the S3 that is behind the peers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import CannotMeasure, build, running

#: What each connection gets of an S3 that is far away: MB a second, and ms until an answer begins.
FAR_MB, FAR_MS = 80, 30


@dataclass(frozen=True)
class S3:
    """An S3 endpoint, its region, the credentials for it, and over TLS the file of the certificate to trust."""

    endpoint: str
    region: str = "us-east-1"
    access_key_id: str = "benchmark"
    secret_access_key: str = "benchmark-secret"
    trust: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process trust the certificate: the one variable is boto3's, the other OpenSSL's."""
        return {"AWS_CA_BUNDLE": self.trust, "SSL_CERT_FILE": self.trust} if self.trust else {}


@dataclass(frozen=True)
class Place:
    """What a peer is given.

    Attributes:
        folder: for its files; empty, and on the disk that is measured.
        port: to listen on; `port + 1` is for what is between it and S3.
        s3: what it puts its objects into.
        put_slots: how many PUTs storaged is to take at once.
    """

    folder: Path
    port: int
    s3: S3
    put_slots: int = 4


def given_s3() -> S3:
    """The S3 that the environment names, as in `tests/engines/with-engine.sh`. Raises CannotMeasure."""
    names = ("S3_ENDPOINT", "S3_REGION", "S3_ACCESS_KEY", "S3_SECRET_KEY")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise CannotMeasure(f"the environment has no {', '.join(missing)}")
    return S3(*(os.environ[name] for name in names))


@contextmanager
def s3_sink(port: int) -> Iterator[S3]:
    """An S3 that is nobody's bottleneck: it keeps no bytes, and gives as many as were put."""
    with running([build("s3sink"), str(port)], port):
        yield S3(f"http://127.0.0.1:{port}")


@contextmanager
def far_s3(port: int, near: S3) -> Iterator[S3]:
    """The same S3, as if it were far away."""
    near_port = near.endpoint.rpartition(":")[2]
    with running([build("slowproxy"), str(port), near_port, str(FAR_MB), str(FAR_MS)], port):
        yield S3(f"http://127.0.0.1:{port}")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1 that nobody else will ever trust; gives their files."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=127.0.0.1"
    name = ["-addext", "subjectAltName=IP:127.0.0.1"]
    command = [*made.split(), *name, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return key, certificate
