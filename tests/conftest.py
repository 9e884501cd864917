"""Engines that are started once and shared, and the buckets that the same tests run against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import engines
from tests.engines import Engine

#: Every engine that the tests know.
ENGINES = ["moto", "rclone", "swift", "ceph"]
#: The same, and what differs from one of them in how it is built, not in what it does.
ALL_ENGINES = [*ENGINES, "swift-3"]


class Engines:
    """Starts an engine when it is first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._running: dict[str, Engine] = {}

    def get(self, name: str) -> Engine:
        """The engine of this name; skips the test where it is not installed."""
        if name == "ceph" and not engines.has_ceph():
            pytest.skip("Ceph is not installed: apt-get install radosgw ceph-mon ceph-osd curl")
        if name not in self._running:
            start = {
                "moto": engines.moto,
                "rclone": lambda: engines.rclone(self._folder),
                "swift": lambda: engines.swift(self._folder),
                "swift-3": lambda: engines.swift(self._folder, nodes=3),
                "ceph": lambda: engines.ceph(self._folder),
            }
            self._running[name] = self._stack.enter_context(start[name]())
        return self._running[name]


@pytest.fixture(scope="session")
def all_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """All engines, none of them running yet."""
    with ExitStack() as stack:
        yield Engines(tmp_path_factory.mktemp("engines"), stack)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, all_engines: Engines) -> Engine:
    """Each engine in turn."""
    return all_engines.get(request.param)
