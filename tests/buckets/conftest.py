"""Fixtures of the bucket tests."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.buckets.local.embedded import make
from tests.engines.scripted import Scripted, scripted
from tests.support import reactor
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.buckets.s3 import read_ahead, reader, response_body
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.buckets.s3.session import Upkeep
from twisted_storaged.runtime.buffers import DeliveryBudget

OnScripted = tuple[Scripted, Callable[..., S3Bucket]]


@pytest.fixture
def on_scripted(tmp_path: Path) -> Generator[OnScripted, None, None]:
    """A scripted endpoint, and a function that makes a started bucket on it, with changes to the usual settings.

    The journal is the test's own: if the endpoint had the port of an earlier test's, the reaper would find that test's
    uploads in a common one, and make calls that the test does not expect.
    """
    upkeep = Upkeep(tmp_path / "state")
    buckets = []
    with scripted() as (endpoint, engine):

        def make_bucket(**changes: Any) -> S3Bucket:
            bucket = S3Bucket("primary", replace(engine.settings("bucket"), **changes), reactor, 4, upkeep)
            bucket.start()
            buckets.append(bucket)
            return bucket

        yield endpoint, make_bucket
        for bucket in buckets:
            pytest_twisted.blockon(bucket.stop())


@pytest.fixture
def early_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let GETs from S3 read ahead after a few reads, in small ranges, however fast S3 seems and loaded this host is."""
    sizes = {
        "FROM_SIZE": 1 << 20,
        "TIMED_BYTES": 1 << 17,
        "FAST_BYTES_PER_SECOND": float("inf"),
        "SEGMENT": 1 << 17,
        "LEAD": 1 << 18,
    }
    for module in (read_ahead, reader, response_body):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value, raising=False)
    # A read of all that has come meanwhile could be past the place where ranges begin.
    monkeypatch.setattr(DeliveryBudget, "next_size", lambda *_: 1 << 16)


@pytest.fixture
def bucket(tmp_path: Path) -> Generator[LocalBucket, None, None]:
    """An embedded bucket, started."""
    bucket = make(tmp_path)
    bucket.start()
    yield bucket
    pytest_twisted.blockon(bucket.stop())
