"""The peers: for each place of the table, the functions that measure a peer there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace

from embedded import copied, direct, embedded, served_by_nginx, synced
from loads import Load, Sample, Server
from nginx import nginx, nginx_with_its_buffers, nginx_with_tls, s3_behind_tls
from place import Place, far_s3
from processes import HERE, CannotMeasure, environment
from rows import UNVERIFIED
from servers import rclone, storaged, storaged_unverified, storaged_with_tls

#: Runs loads at a place, in a fresh process.
Peer = Callable[[Place, Sequence[Load]], Sample]


def served(by: Callable[[Place], AbstractContextManager[Server]]) -> Peer:
    """A peer that is a server, on which clients run the loads."""

    def measure(place: Place, loads: Sequence[Load]) -> Sample:
        with by(place) as server:
            return server.measure(*loads)

    return measure


def one(by: Callable[[Place, Load], Sample]) -> Peer:
    """A peer that is a function of one load."""

    def measure(place: Place, loads: Sequence[Load]) -> Sample:
        (load,) = loads
        return by(place, load)

    return measure


def far(peer: Peer) -> Peer:
    """The peer with S3 far away."""

    def measure(place: Place, loads: Sequence[Load]) -> Sample:
        with far_s3(place.port + 1, place.s3) as s3:
            return peer(replace(place, s3=s3), loads)

    return measure


def over_tls(peer: Peer) -> Peer:
    """The peer with TLS to S3."""

    def measure(place: Place, loads: Sequence[Load]) -> Sample:
        with s3_behind_tls(place) as s3:
            return peer(replace(place, s3=s3), loads)

    return measure


def boto3(place: Place, load: Load) -> Sample:
    """Measure boto3 with its default settings and no gateway, in a process of its own."""
    arguments = [json.dumps(asdict(place.s3)), json.dumps(asdict(load))]
    command = [sys.executable, str(HERE / "bare.py"), *arguments]
    more = place.s3.environment
    ended = subprocess.run(command, env={**environment(), **more}, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise CannotMeasure(f"boto3: {load} failed: {ended.stderr}")
    return Sample(**json.loads(ended.stdout))


#: The peers by place and name. The first of each place is storaged.
PEERS: dict[str, dict[str, Peer]] = {
    "s3": {
        "storaged": served(storaged),
        "rclone": served(rclone),
        "nginx": served(nginx),
        "nginx, its own buffers": served(nginx_with_its_buffers),
        "boto3": one(boto3),
        UNVERIFIED: served(storaged_unverified),
    },
    "far": {"storaged": far(served(storaged)), "boto3": far(one(boto3))},
    "embedded": {
        "storaged": one(embedded),
        "dd oflag=direct": one(direct),
        "cp + fsync": one(copied),
        "fsync each": one(synced),
        "nginx": one(served_by_nginx),
    },
    "tls-in": {"storaged": served(storaged_with_tls), "nginx": served(nginx_with_tls)},
    "tls-out": {
        "storaged": over_tls(served(storaged)),
        "nginx": over_tls(served(nginx)),
        "boto3": over_tls(one(boto3)),
        UNVERIFIED: over_tls(served(storaged_unverified)),
    },
}
