"""The buckets of a daemon by name."""

from __future__ import annotations

import pytest

from tests.support import MemoryBucket, result
from twisted_storaged.errors import StartError, UnknownBucket
from twisted_storaged.routing import Registry


class RegistryTests:
    """Finding, opening and closing buckets."""

    def test_by_name(self) -> None:
        """A bucket is found by its name, and an unknown name raises UnknownBucket."""
        one, two = MemoryBucket("one"), MemoryBucket("two")
        registry = Registry([one, two])
        registry.start()
        assert (registry.get("one"), registry.get("two")) == (one, two)
        with pytest.raises(UnknownBucket, match="three"):
            registry.get("three")
        result(registry.stop())

    def test_a_bucket_that_cannot_be_opened(self) -> None:
        """The buckets that were opened before it are closed, and no other."""
        told: list[str] = []

        class Recording(MemoryBucket):
            def start(self) -> None:
                told.append(f"start {self.name}")
                if self.name == "two":
                    raise StartError("no")

            def close(self) -> None:
                told.append(f"close {self.name}")

        with pytest.raises(StartError):
            Registry([Recording("one"), Recording("two"), Recording("three")]).start()
        assert told == ["start one", "start two", "close one"]
