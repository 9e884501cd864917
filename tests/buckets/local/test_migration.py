"""Data folders of older versions, made by those versions, are migrated."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import pytest_twisted

from tests.buckets.local.embedded import make, read
from twisted_storaged.buckets.local.index_schema import LAYOUT
from twisted_storaged.buckets.local.scrub import Report, Scrub
from twisted_storaged.model import ListQuery

FOLDERS = Path(__file__).with_name("folders")
LINES = b"".join(b"line %d\n" % number for number in range(200_000))
BODIES = {
    "empty": b"",
    "large/blocks": LINES[:700_001],
    "large/one block": LINES[:100_000],
    "replaced": b"now small",
    "small": b"abc",
    "ü/😀": b"utf-8",
}
ROOT = Path(__file__).parents[3]
# Opens an index, and is killed at the statement of this number, or after so many hundreds of steps of SQLite's machine.
KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from twisted_storaged.buckets.local.index_writes import IndexWriter
connect, what, left = sqlite3.connect, sys.argv[2], int(sys.argv[3])
def count(*_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def connecting(*arguments, **options):
    connection = connect(*arguments, **options)
    if what == "statement":
        connection.set_trace_callback(count)
    else:
        connection.set_progress_handler(count, 100)
    return connection
sqlite3.connect = connecting
IndexWriter(Path(sys.argv[1]))
os._exit(0)
"""


@pytest.fixture(params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Make a data folder of an older layout."""
    with tarfile.open(FOLDERS / f"layout-{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def rows(path: Path) -> tuple[int, list[tuple[object, ...]]]:
    """Return the layout of an index, and the columns of its objects that all layouts have."""
    with closing(sqlite3.connect(path)) as connection:
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        return layout, connection.execute("SELECT key, size, etag, last_modified FROM objects").fetchall()


class MigrationTests:
    """The first start on an old folder."""

    @pytest_twisted.ensureDeferred
    async def test_keeps_everything(self, folder: Path) -> None:
        """Bytes, metadata and digests are kept; the next start migrates nothing; a scrub can add checksums."""
        is_old = rows(folder / "index.sqlite")[0] == 2
        for _ in range(2):
            bucket = make(folder)
            bucket.start()
            assert [info.key for info in (await bucket.list(ListQuery())).objects] == list(BODIES)
            assert bucket._index.totals() == (len(BODIES), sum(map(len, BODIES.values())))
            for key, body in BODIES.items():
                assert await read(bucket, key) == body
            if not is_old:
                small = await bucket.head("small")
                assert small.metadata == (("content-type", "text/plain"), ("x-amz-meta-a", "ü"))
                assert list(small.digests) == ["sha-256"]
            await bucket.stop()
        assert rows(folder / "index.sqlite")[0] == LAYOUT
        size = sum(map(len, BODIES.values()))
        unknown = len(BODIES) if is_old else 2
        for repair, report in [
            (True, Report(objects=6, size=size, unknown=unknown, repaired=unknown)),
            (False, Report(objects=6, size=size)),
        ]:
            complaints: list[str] = []
            scrub = Scrub(folder, complaints.append, repair_checksums=repair)
            scrub.run()
            assert (scrub.report, complaints) == (report, [])

    @pytest.mark.parametrize(("what", "step"), [("statement", 1), ("steps", 3)])
    def test_survives_kill_9(self, folder: Path, what: str, step: int) -> None:
        """After a kill at any statement the index is of the old layout with all rows, or of the new one."""
        path = folder / "index.sqlite"
        old = rows(path)
        ended, left = -signal.SIGKILL, 0
        while ended == -signal.SIGKILL:
            command = [sys.executable, "-c", KILLED, str(path), what, str(left)]
            ended = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
            layout, found = rows(path)
            assert found == old[1]
            assert layout in (old[0], LAYOUT)
            left += step
        assert (ended, layout) == (0, LAYOUT)
        assert left > 2 * step
