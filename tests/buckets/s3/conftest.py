"""Fixtures of the tests of buckets in S3."""

from __future__ import annotations

import pytest

from tests.buckets.conftest import OnScripted
from tests.buckets.s3.conditional import Made


@pytest.fixture
def conditional(on_scripted: OnScripted) -> Made:
    """A scripted endpoint that checks all conditions, and a function that makes a bucket with a setting."""
    endpoint, make_bucket = on_scripted
    return endpoint, lambda claimed: make_bucket(conditional_writes=claimed)
