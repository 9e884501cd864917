"""Starts storaged, in the ways it is measured, and rclone: a fresh process for each measurement."""

from __future__ import annotations

import socket
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loads import BUCKET, Server, s3_path, storaged_path
from place import Place, make_certificate
from processes import START_SECONDS, running

SCRIPTS = Path(sysconfig.get_path("scripts"))
TWISTD = (str(SCRIPTS / "twistd"),)


@contextmanager
def storaged(place: Place) -> Iterator[Server]:
    """Storaged in front of S3."""
    with _ready(place, _command(place, s3_options(place))) as pid:
        yield Server(pid, place.port, storaged_path)


@contextmanager
def storaged_unverified(place: Place) -> Iterator[Server]:
    """Storaged in front of S3 with `verify_reads = false`."""
    with _ready(place, _command(place, s3_options(place, "verify_reads = false\n"))) as pid:
        yield Server(pid, place.port, storaged_path)


@contextmanager
def storaged_with_tls(place: Place) -> Iterator[Server]:
    """Storaged in front of S3 for clients that use TLS."""
    key, certificate = make_certificate(place.folder)
    bind = f"ssl:{place.port}:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    with _ready(place, _command(place, s3_options(place), bind)) as pid:
        yield Server(pid, place.port, storaged_path, tls=True)


@contextmanager
def storaged_embedded(place: Place, settings: str = "", twistd: Sequence[str] = TWISTD) -> Iterator[Server]:
    """Storaged on the embedded bucket in `place.folder / "data"`, with more settings of its section `storaged`."""
    with _ready(place, _command(place, embedded_options(place, settings), twistd=twistd)) as pid:
        yield Server(pid, place.port, storaged_path)


@contextmanager
def rclone(place: Place) -> Iterator[Server]:
    """`rclone serve s3` in front of S3; without --auth-key it accepts unsigned requests.

    --no-checksum: by default it hashes everything that it reads, though it has nothing to compare the hash with. This
    would halve its speed for GETs.
    """
    config = place.folder / "rclone.conf"
    s3 = place.s3
    config.write_text(
        f"[s3]\ntype = s3\nprovider = Other\nendpoint = {s3.endpoint}\nregion = {s3.region}\n"
        f"list_version = 2\naccess_key_id = {s3.access_key_id}\nsecret_access_key = {s3.secret_access_key}\n"
    )
    command = [
        str(SCRIPTS / "rclone"),
        "serve",
        "s3",
        "s3:",
        "--no-checksum",
        f"--config={config}",
        f"--cache-dir={place.folder}",
    ]
    with running([*command, f"--addr=127.0.0.1:{place.port}"], place.port) as pid:
        yield Server(pid, place.port, s3_path)


@contextmanager
def _ready(place: Place, command: Sequence[str]) -> Iterator[int]:
    """Run a storaged from when it is ready to the end of the block; yields its id.

    With several workers, it listens as soon as one of them serves, and is ready when all do.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        # In the abstract namespace: a path may be too long. See unix(7).
        name = f"storaged-bench-{place.port}"
        told.bind(f"\0{name}")
        told.settimeout(START_SECONDS)
        environment = {**place.s3.environment, "NOTIFY_SOCKET": f"@{name}"}
        with running(command, place.port, environment) as pid:
            while b"READY=1" not in told.recv(4096).splitlines():
                pass
            # What it tells from now on is not read. It does not wait for that.
            yield pid


def _command(place: Place, options: Sequence[str], bind: str = "", twistd: Sequence[str] = TWISTD) -> list[str]:
    log = f"--logfile={place.folder / 'storaged.log'}"
    return [
        *twistd,
        "--nodaemon",
        "--pidfile=",
        log,
        "storaged",
        f"--bind={bind or f'127.0.0.1:{place.port}'}",
        *options,
    ]


def embedded_options(place: Place, settings: str = "") -> list[str]:
    """Write the configuration of a storaged on the embedded bucket; returns the options for it."""
    config = place.folder / "storaged.toml"
    config.write_text(_slots(place) + settings)
    return [f"--config={config}", f"--data={place.folder / 'data'}"]


def s3_options(place: Place, settings: str = "") -> list[str]:
    """Write the configuration and secrets of a storaged in front of S3; returns the options for them."""
    config, secrets, s3 = place.folder / "storaged.toml", place.folder / "secrets.toml", place.s3
    where = f'[s3]\nbucket = "{BUCKET}"\nendpoint = "{s3.endpoint}"\nregion = "{s3.region}"\nuse_path_style = true\n'
    config.write_text(_slots(place) + where + settings)
    # The daemon refuses a secrets file that others can read.
    secrets.touch(mode=0o600)
    secrets.write_text(f'[s3]\naccess_key_id = "{s3.access_key_id}"\nsecret_access_key = "{s3.secret_access_key}"\n')
    return [f"--config={config}", f"--secrets={secrets}"]


def _slots(place: Place) -> str:
    workers = "" if place.workers == 1 else f"workers = {place.workers}\n"
    return f'[storaged]\nput_slots = {place.put_slots}\nstate = "{place.folder}"\n{workers}'
