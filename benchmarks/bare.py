"""Measures boto3 with its default settings and no gateway: `bare.py S3 LOAD`, both as JSON, prints a `Sample` as JSON.

It is a process of its own, so that the sample has the cost of the transfer alone. Creating the client is not included,
as starting a daemon is not included for the others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain
from statistics import quantiles
from typing import Any

import boto3
from botocore.config import Config
from loads import BUCKET, Load, Sample, some_bytes
from place import S3
from processes import cpu_seconds, peak_rss


def main(s3: str, load: str) -> None:
    """Make one measurement and print it."""
    sample = measure(make_client(S3(**json.loads(s3))), Load(**json.loads(load)))
    print(json.dumps(asdict(sample)))


def make_client(s3: S3) -> Any:
    """Create a boto3 client with default settings, but for path-style URLs, which the benchmark's endpoints need."""
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def measure(client: Any, load: Load) -> Sample:
    """Make the requests of a load, with a thread for each connection."""
    own = os.getpid()
    some_bytes(load.size)  # cached: not part of the measurement
    requests = partial(_one_after_the_other, client, load, REQUESTS[load.verb, load.seconds > 0])
    cpu, start = cpu_seconds(own), time.monotonic()
    with ThreadPoolExecutor(load.connections) as pool:
        times = [*chain.from_iterable(pool.map(requests, range(load.connections)))]
    seconds = time.monotonic() - start
    moved = 0 if load.verb == "list" else len(times) * load.size
    p99 = quantiles(times, n=100)[98] if len(times) > 1 else times[0]
    return Sample(seconds, len(times), moved, p99 * 1e3, cpu_seconds(own) - cpu, peak_rss(own))


def upload(client: Any, load: Load, key: str) -> None:
    """Put one large object, from memory."""
    with open(f"/proc/self/fd/{some_bytes(load.size)}", "rb") as body:
        client.upload_fileobj(body, BUCKET, key)


def download(client: Any, load: Load, key: str) -> None:
    """Get one large object."""
    with open(os.devnull, "wb") as nowhere:
        client.download_fileobj(BUCKET, key, nowhere)


def put_object(client: Any, load: Load, key: str) -> None:
    """Put one small object."""
    client.put_object(Bucket=BUCKET, Key=key, Body=os.pread(some_bytes(load.size), load.size, 0))


def get_object(client: Any, load: Load, key: str) -> None:
    """Get one small object."""
    assert len(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()) == load.size


def list_objects(client: Any, load: Load, prefix: str) -> None:
    """List all keys under a prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    assert sum(len(page["Contents"]) for page in pages) == load.size


Request = Callable[[Any, Load, str], None]

#: The function that makes a request, by verb, and by whether the load has many small requests.
REQUESTS: dict[tuple[str, bool], Request] = {
    ("put", False): upload,
    ("get", False): download,
    ("put", True): put_object,
    ("get", True): get_object,
    ("list", True): list_objects,
}


def _one_after_the_other(client: Any, load: Load, request: Request, connection: int) -> list[float]:
    """Make the requests of one connection; returns the seconds that each took."""
    times: list[float] = []
    end = time.monotonic() + load.seconds
    while len(times) < load.count or (load.seconds and time.monotonic() < end):
        start = time.monotonic()
        request(client, load, load.key_of(connection, len(times)))
        times.append(time.monotonic() - start)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])
