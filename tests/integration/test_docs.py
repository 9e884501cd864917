"""The examples in the README and docs/ that need DuckDB, whose extension httpfs would otherwise be downloaded."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import duckdb
import pytest

from tests.daemon import Daemon
from tests.test_docs import PAGES, RUN, blocks, name, needs_duckdb, run

FOUND = {page: [block for block in blocks(page, *RUN) if needs_duckdb(block)] for page in PAGES}

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed: apt-get install curl"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder in which DuckDB finds httpfs installed."""
    version = f"v{duckdb.__version__}"
    rows = duckdb.sql("PRAGMA platform").fetchall()
    target = tmp_path / ".duckdb" / "extensions" / version / rows[0][0]
    target.mkdir(parents=True)
    extension = files("duckdb_extension_httpfs") / "extensions" / version / "httpfs.duckdb_extension"
    shutil.copy(str(extension), target)
    return tmp_path


@pytest.mark.parametrize("page", [page for page, found in FOUND.items() if found], ids=name)
def test_runs(page: Path, home: Path) -> None:
    """The examples of a page that make a Parquet file, store it and query it with DuckDB run in their order."""
    with Daemon(home) as daemon:
        run(FOUND[page], daemon, home)


def test_there_are_examples() -> None:
    """The README and the quickstart have such examples."""
    assert {page.name for page, found in FOUND.items() if found} == {"README.md", "quickstart.md"}
