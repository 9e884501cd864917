"""The option `--all`, the order of test files, and engines that each worker starts once and shares among tests.

A plain `pytest` runs the core: tests that need no more than the extra `test`, and no long load. `--all` adds tests that
need other engines (Ceph, Swift, rclone), data tools (DuckDB, pandas, polars, pyarrow), other programs (curl, strace, a
C compiler), or long loads. These have the marker `full`: `--all -m full` runs only them. The extra `integration` has
those of the packages that PyPI provides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader
from hypothesis import HealthCheck, settings

from tests import engines
from tests.engines import Engine

#: Every engine that the tests know.
ENGINES = ["moto", "rclone", "swift", "ceph"]
#: With those that differ from one of them in how they are built, not in what they do.
ALL_ENGINES = [*ENGINES, "swift-3"]

#: Engines that need more than the extra `test`.
EXTERNAL = {*ALL_ENGINES} - {"moto"}
#: Modules that import packages of the extra `integration`.
IMPORT_MORE = {("integration", "test_data_tools.py"), ("integration", "test_docs.py"), ("integration", "test_page.py")}
#: The files of the core that take longest, in this order.
LONGEST = [
    "test_s3_faults.py",
    "test_daemon.py",
    "test_contract.py",
    "test_on_engines.py",
    "test_conformance.py",
    "test_resets.py",
    "test_model.py",
    "test_packaging.py",
    "test_shared_bucket.py",
    "test_kills.py",
    "test_workers.py",
    "test_workers_faults.py",
    "test_scrub.py",
    "test_config.py",
    "test_probe.py",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--all`."""
    parser.addoption("--all", action="store_true", help="run all tests, not only the core: see tests/conftest.py")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker `full`, and let Hypothesis measure no time: it depends on what else the machine does."""
    config.addinivalue_line("markers", "full: needs other programs or much time; runs only with --all")
    settings.register_profile("storaged", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("storaged")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore modules that could not be imported with the extra `test` alone."""
    return True if collection_path.parts[-2:] in IMPORT_MORE and not config.getoption("--all") else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests that are not in the core: those of some modules, and those that have an external engine's name."""
    callspec = getattr(item, "callspec", None)
    values = [] if callspec is None else callspec.params.values()
    if item.path.parts[-2:] in IMPORT_MORE or any(isinstance(one, str) and one in EXTERNAL for one in values):
        item.add_marker("full")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--all`, deselect tests that are not in the core; put the files that take longest first."""
    if not config.getoption("--all"):
        deselected = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    # pytest-xdist hands out files in this order: one that takes long must not be the last, alone on its worker.
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


class Engines:
    """Starts each engine when it is needed first."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._running: dict[str, Engine] = {}

    def get(self, name: str) -> Engine:
        """The engine of this name, started if necessary; skips the test if it is not installed."""
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


@pytest.fixture(scope="session", autouse=True)
def service_models() -> Iterator[None]:
    """Let botocore parse its descriptions of services once: without this, each new session parses megabytes of JSON."""
    load_file = cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: load_file(path))
        yield


@pytest.fixture(scope="session")
def all_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """All engines, none of them running yet."""
    with ExitStack() as stack:
        yield Engines(tmp_path_factory.mktemp("engines"), stack)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, all_engines: Engines) -> Engine:
    """Each engine in turn."""
    return all_engines.get(request.param)
