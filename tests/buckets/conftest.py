"""Fixtures of the bucket tests."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import pytest_twisted

from tests.buckets.embedded import make
from twisted_storaged.buckets.local import LocalBucket


@pytest.fixture
def bucket(tmp_path: Path) -> Generator[LocalBucket, None, None]:
    """An embedded bucket, started."""
    bucket = make(tmp_path)
    bucket.start()
    yield bucket
    pytest_twisted.blockon(bucket.stop())
