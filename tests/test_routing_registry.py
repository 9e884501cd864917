"""Names to buckets."""

from __future__ import annotations

import pytest

from tests.support import MemoryBucket, result
from twisted_storaged.errors import UnknownBucket
from twisted_storaged.routing import Registry


class RegistryTests:
    """The buckets of a daemon."""

    def test_by_name(self) -> None:
        """Each its own; another is an error of its own."""
        one, two = MemoryBucket("one"), MemoryBucket("two")
        registry = Registry([one, two])
        registry.start()
        assert (registry.get("one"), registry.get("two")) == (one, two)
        with pytest.raises(UnknownBucket, match="three"):
            registry.get("three")
        result(registry.stop())
