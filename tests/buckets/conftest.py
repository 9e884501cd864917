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
from tests.support import UPKEEP, reactor
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.buckets.s3.bucket import S3Bucket

OnScripted = tuple[Scripted, Callable[..., S3Bucket]]


@pytest.fixture
def on_scripted() -> Generator[OnScripted, None, None]:
    """A scripted endpoint, and what makes a started bucket on it, with these settings other than usual."""
    buckets = []
    with scripted() as (endpoint, engine):

        def make_bucket(**changes: Any) -> S3Bucket:
            bucket = S3Bucket("primary", replace(engine.settings("bucket"), **changes), reactor, 4, UPKEEP)
            bucket.start()
            buckets.append(bucket)
            return bucket

        yield endpoint, make_bucket
        for bucket in buckets:
            pytest_twisted.blockon(bucket.stop())


@pytest.fixture
def bucket(tmp_path: Path) -> Generator[LocalBucket, None, None]:
    """An embedded bucket, started."""
    bucket = make(tmp_path)
    bucket.start()
    yield bucket
    pytest_twisted.blockon(bucket.stop())
