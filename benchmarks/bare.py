"""The other side of `compare.py`: the same objects, moved by boto3 with its own defaults and nothing in between.

It is a process of its own, so that its cost is that of the transfer alone: `bare.py URL VERB KIND SIZE COUNT THREADS`
prints a `Sample` as JSON. Making the client is not in the sample, as starting the daemon is not in the other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import boto3
from botocore.config import Config
from harness import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Sample, cpu_seconds, peak_rss


def main(url: str, verb: str, kind: str, *numbers: str) -> None:
    """Make one measurement and print it."""
    transfer = {"put large": put_large, "get large": get_large, "put small": put_small, "get small": get_small}
    sample = measure(transfer[f"{verb} {kind}"], make_client(url), *map(int, numbers))
    print(json.dumps(asdict(sample)))


def make_client(url: str) -> Any:
    """A client as anybody makes it; the path style is only for an endpoint that has no bucket's name in it."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
        config=Config(s3={"addressing_style": "path"}),
    )


def measure(transfer: Callable[..., None], client: Any, size: int, count: int, threads: int) -> Sample:
    """Make a transfer, and see what it cost."""
    own = os.getpid()
    cpu, start = cpu_seconds(own), time.monotonic()
    transfer(client, size, count, threads)
    return Sample(time.monotonic() - start, cpu_seconds(own) - cpu, peak_rss(own))


def put_large(client: Any, size: int, count: int, threads: int) -> None:
    """Upload one object; it is read from memory, in which it has no pages of its own."""
    with os.fdopen(os.memfd_create("large"), "w+b") as body:
        body.truncate(size)
        client.upload_fileobj(body, BUCKET, "_vectors/large")


def get_large(client: Any, size: int, count: int, threads: int) -> None:
    """Download one object, which the sink makes up by its name."""
    with open(os.devnull, "wb") as nowhere:
        client.download_fileobj(BUCKET, f"_vectors/size-{size}", nowhere)


def put_small(client: Any, size: int, count: int, threads: int) -> None:
    """Put `count` objects."""
    body = os.urandom(size)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda number: client.put_object(Bucket=BUCKET, Key=f"small/{number}", Body=body), range(count)))


def get_small(client: Any, size: int, count: int, threads: int) -> None:
    """Get the objects that `put_small` put."""

    def get(number: int) -> None:
        body = client.get_object(Bucket=BUCKET, Key=f"small/{number}")["Body"].read()
        assert len(body) == size

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(get, range(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
