"""Starts after a kill: the wal-index says which commits the log must have."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.buckets.local.embedded import flip, make
from tests.buckets.local.test_generation import check, killed, stopped, with_the_last_commit_damaged
from twisted_storaged.buckets.local import start
from twisted_storaged.buckets.local.generation import Generation, read_wal_index
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.errors import StartError

HEADER, FRAME_HEADER, PAGE = 32, 24, 4096
FRAME = FRAME_HEADER + PAGE


def wal(path: Path) -> Path:
    return path / "index.sqlite-wal"


def frames(path: Path) -> int:
    return (wal(path).stat().st_size - HEADER) // FRAME


def append_torn_commit(path: Path) -> None:
    """Append the header of a frame without its page, as a kill between SQLite's two writes leaves it."""
    with wal(path).open("r+b") as file:
        salts = file.read(HEADER)[16:24]
        file.seek(0, os.SEEK_END)
        file.write(bytes([0, 0, 0, 1, 0, 0, 0, 20]) + salts + bytes(8))


class CommittedTests:
    """The log has all committed frames, or it is refused."""

    @pytest.mark.parametrize("rest", [0, 1, FRAME_HEADER, FRAME_HEADER + 1])
    @pytest_twisted.ensureDeferred
    async def test_a_log_that_was_cut(self, tmp_path: Path, rest: int) -> None:
        """A truncated log is refused, even if it was cut between two commits, and the rest is valid."""
        path = await killed(tmp_path)
        log = wal(path).read_bytes()
        for number in range(frames(path)):
            wal(path).write_bytes(log[: HEADER + number * FRAME + rest])
            with pytest.raises(StartError, match="nothing was changed"):
                make(path).start()

    @pytest.mark.parametrize("place", range(FRAME_HEADER))
    @pytest_twisted.ensureDeferred
    async def test_a_bit_in_the_head_of_the_last_commit(self, tmp_path: Path, place: int) -> None:
        """A flipped bit in the header of the last frame is refused, although its salts may be wrong then."""
        path = await killed(tmp_path)
        flip(wal(path), HEADER + (frames(path) - 1) * FRAME + place)
        with pytest.raises(StartError, match="nothing was changed"):
            make(path).start()

    @pytest_twisted.ensureDeferred
    async def test_a_scrub_does_not_make_damage_acceptable(self, tmp_path: Path) -> None:
        """A scrub does not open a damaged log with SQLite, which would reset the wal-index."""
        path = await killed(tmp_path)
        with_the_last_commit_damaged(path)
        for _ in range(2):
            scrub = Scrub(path, lambda line: None)
            with pytest.raises(StartError, match="nothing was changed"):
                scrub.run()
            assert scrub.report.damaged
            with pytest.raises(StartError, match="nothing was changed"):
                make(path).start()


class TornTests:
    """A torn commit, which was answered to nobody, is accepted."""

    @pytest_twisted.ensureDeferred
    async def test_by_a_kill(self, tmp_path: Path) -> None:
        """A log that ends in the header of a frame without its page is accepted."""
        path = await killed(tmp_path)
        append_torn_commit(path)
        await (await check(path)).stop()
        assert not any((path / "lost").iterdir())

    @pytest_twisted.ensureDeferred
    async def test_in_a_start(self, tmp_path: Path) -> None:
        """A kill in a start, which has made a new wal-index, loses nothing."""
        path = await killed(tmp_path)
        with closing(sqlite3.connect(path / "index.sqlite")) as connection:
            connection.execute("SELECT count(*) FROM objects").fetchone()
            shutil.copytree(path, tmp_path / "again")
        append_torn_commit(tmp_path / "again")
        await (await check(tmp_path / "again")).stop()


class LogIsKeptTests:
    """The log is kept as long as `index.state` says that it is needed."""

    @pytest.mark.parametrize("left", [killed, stopped])
    @pytest_twisted.ensureDeferred
    async def test_by_a_start_that_fails(self, tmp_path: Path, left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a failed start, the next one finds everything."""
        path = await left(tmp_path)

        def fail(*_: object) -> None:
            raise OSError("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(start, "sweep", fail)
            for _ in range(2):
                with pytest.raises(StartError, match="no space left"):
                    make(path).start()
        await (await check(path)).stop()

    @pytest_twisted.ensureDeferred
    async def test_by_a_stop_that_cannot_write_the_state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stop that cannot write `index.state`, as on a full disk, keeps the log."""
        bucket = await check(await stopped(tmp_path))

        def fail(_: Generation) -> None:
            raise OSError("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(Generation, "close", fail)
            await bucket.stop()
        await (await check(tmp_path / "stopped")).stop()


class WalIndexTests:
    """Reading how much of the log is committed."""

    @pytest_twisted.ensureDeferred
    async def test_tells_the_size_of_what_is_committed(self, tmp_path: Path) -> None:
        """The size is that of the log, to which nothing was written after the last commit."""
        path = await killed(tmp_path)
        with (path / "index.sqlite-shm").open("rb") as file:
            index = read_wal_index(file.fileno())
        assert index is not None
        assert (index.frames, index.size) == (frames(path), wal(path).stat().st_size)

    @pytest.mark.parametrize("place", [8, 20, 48 + 20])
    @pytest_twisted.ensureDeferred
    async def test_copies_that_differ_are_not_believed(self, tmp_path: Path, place: int) -> None:
        """SQLite writes the header twice; a bit that is flipped in one of the two copies is noticed."""
        path = await killed(tmp_path)
        flip(path / "index.sqlite-shm", place)
        with (path / "index.sqlite-shm").open("rb") as file:
            assert read_wal_index(file.fileno()) is None
