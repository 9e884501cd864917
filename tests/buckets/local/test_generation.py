"""Starts on data folders that are not as the last daemon left them: nothing that may be needed is removed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.buckets.local.embedded import contents, flip, large, logged, make, put, read, until
from twisted_storaged.buckets.local.bucket import LocalBucket
from twisted_storaged.errors import StartError

OBJECTS = 12


async def killed(path: Path) -> Path:
    """Make the folder of a daemon that was killed with -9: twelve objects, half of them in files."""
    bucket = make(path / "running")
    bucket.start()
    await fill(bucket)
    shutil.copytree(path / "running", path / "killed")
    await bucket.stop()
    return path / "killed"


async def stopped(path: Path) -> Path:
    """Make the folder of a daemon that was stopped."""
    bucket = make(path / "stopped")
    bucket.start()
    await fill(bucket)
    await bucket.stop()
    return path / "stopped"


async def fill(bucket: LocalBucket) -> None:
    for number in range(OBJECTS):
        data = b"%d" % number
        await put(bucket, str(number), large(data) if number % 2 else data)


async def check(path: Path) -> LocalBucket:
    """Start a daemon on the folder, check that it has all objects, and return it running."""
    bucket = make(path)
    bucket.start()
    for number in range(OBJECTS):
        data = b"%d" % number
        assert await read(bucket, str(number)) == (large(data) if number % 2 else data)
    return bucket


def one_content(path: Path) -> Path:
    return next((path / "objects").glob("*/*"))


def stray_file(path: Path) -> Path:
    (path / "objects" / "00" / "zzz").touch()
    return path / "objects" / "00" / "zzz"


def stray_folder(path: Path) -> Path:
    (path / "objects" / "00" / "lost+found").mkdir()
    return path / "objects" / "00" / "lost+found"


def core_file(path: Path) -> Path:
    (path / "objects" / "7f" / "core").write_bytes(b"x")
    return path / "objects" / "7f" / "core"


def content_in_another_folder(path: Path) -> Path:
    content = one_content(path)
    folder = "00" if content.parent.name != "00" else "01"
    return Path(shutil.copy(content, path / "objects" / folder / content.name))


def folder_with_a_name_of_ours(path: Path) -> Path:
    (path / "objects" / "00" / ("00" * 16)).mkdir()
    return path / "objects" / "00" / ("00" * 16)


def link_with_a_name_of_ours(path: Path) -> Path:
    (path / "objects" / "ff" / ("ff" * 16)).symlink_to("/etc/hostname")
    return path / "objects" / "ff" / ("ff" * 16)


def folder_beside(path: Path) -> Path:
    (path / "objects" / "backup").mkdir()
    return path / "objects" / "backup"


STRAYS = [
    stray_file,
    stray_folder,
    core_file,
    content_in_another_folder,
    folder_with_a_name_of_ours,
    link_with_a_name_of_ours,
    folder_beside,
]


class StrayTests:
    """Files and folders among the contents that are not storaged's."""

    @pytest.mark.parametrize("make_stray", STRAYS)
    @pytest.mark.parametrize("left", [killed, stopped])
    @pytest_twisted.ensureDeferred
    async def test_is_left_alone(self, tmp_path: Path, make_stray: Callable[[Path], Path], left: Any) -> None:
        """A stray is left in place and logged, and all objects are served."""
        path = await left(tmp_path)
        stray, before = make_stray(path), contents(path)
        with logged() as lines:
            bucket = await check(path)
        await bucket.stop()
        assert stray in stray.parent.iterdir()
        assert contents(path) == before
        assert not any((path / "lost").iterdir())
        assert lines == []


def truncated(path: Path) -> None:
    os.truncate(path / "index.sqlite", 0)


def missing(path: Path) -> None:
    (path / "index.sqlite").unlink()


def made_anew(path: Path) -> None:
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
        (path / name).unlink(missing_ok=True)
    connection = sqlite3.connect(path / "index.sqlite")
    connection.execute("CREATE TABLE other (x)")
    connection.close()


def without_its_log(path: Path) -> None:
    (path / "index.sqlite-wal").unlink()


def with_an_empty_log(path: Path) -> None:
    os.truncate(path / "index.sqlite-wal", 0)


def with_a_log_that_is_damaged(path: Path) -> None:
    size = (path / "index.sqlite-wal").stat().st_size
    flip(path / "index.sqlite-wal", size // 2)


def with_the_last_commit_damaged(path: Path) -> None:
    flip(path / "index.sqlite-wal", (path / "index.sqlite-wal").stat().st_size - 1)


def with_the_header_of_the_log_damaged(path: Path) -> None:
    flip(path / "index.sqlite-wal", 20)


def with_a_damaged_state(path: Path) -> None:
    (path / "index.state").write_bytes(b"{")


def an_older_copy(path: Path) -> None:
    state = json.loads((path / "index.state").read_bytes())
    (path / "index.state").write_text(json.dumps({**state, "starts": state["starts"] + 1}))


def of_another_folder(path: Path) -> None:
    state = json.loads((path / "index.state").read_bytes())
    (path / "index.state").write_text(json.dumps({**state, "generation": "0" * 32}))


class DamagedIndexTests:
    """An index that is damaged, missing, or another one."""

    @pytest.mark.parametrize(
        "damage", [truncated, missing, made_anew, with_a_damaged_state, an_older_copy, of_another_folder]
    )
    @pytest.mark.parametrize("left", [killed, stopped])
    @pytest_twisted.ensureDeferred
    async def test_is_refused(self, tmp_path: Path, damage: Callable[[Path], None], left: Any) -> None:
        """The start fails with advice, and no file is changed."""
        await self._refused(await left(tmp_path), damage)

    @pytest.mark.parametrize(
        "damage",
        [
            without_its_log,
            with_an_empty_log,
            with_a_log_that_is_damaged,
            with_the_last_commit_damaged,
            with_the_header_of_the_log_damaged,
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_log_that_lost_commits_is_refused(self, tmp_path: Path, damage: Callable[[Path], None]) -> None:
        """After a kill, a log with unreadable commits is refused: SQLite would ignore these."""
        await self._refused(await killed(tmp_path), damage)

    async def _refused(self, path: Path, damage: Callable[[Path], None]) -> None:
        before = contents(path)
        damage(path)
        for _ in range(2):
            with pytest.raises(StartError, match="nothing was changed; restore the folder from a backup"):
                make(path).start()
        assert contents(path) == before
        assert not any((path / "lost").iterdir())

    @pytest_twisted.ensureDeferred
    async def test_after_a_loss_of_power_the_last_commit_may_be_torn(self, tmp_path: Path) -> None:
        """A torn last commit is accepted, as nobody was told of it; its file is moved to lost/."""
        path = await killed(tmp_path)
        state = json.loads((path / "index.state").read_bytes())
        (path / "index.state").write_text(json.dumps({**state, "boot": "another"}))
        with_the_last_commit_damaged(path)
        bucket = make(path)
        bucket.start()
        await bucket.stop()
        assert len(list((path / "lost").iterdir())) == 1

    @pytest_twisted.ensureDeferred
    async def test_rows_that_are_gone(self, tmp_path: Path) -> None:
        """Files whose rows are missing are moved to lost/, once, with a log line each."""
        path = await stopped(tmp_path)
        connection = sqlite3.connect(path / "index.sqlite")
        connection.execute("DELETE FROM objects WHERE row IS NULL")
        connection.commit()
        connection.close()
        before = contents(path)
        for _ in range(2):
            bucket = make(path)
            bucket.start()
            await bucket.stop()
        assert {lost.name for lost in (path / "lost").iterdir()} == before
        assert contents(path) == set()

    @pytest_twisted.ensureDeferred
    async def test_a_move_that_was_broken_off(self, tmp_path: Path) -> None:
        """A start that was killed while it moved a file to lost/ is continued by the next."""
        path = await stopped(tmp_path)
        name = "ab" * 16
        (path / "lost" / name).write_bytes(b"x")
        (path / "objects" / "ab" / name).hardlink_to(path / "lost" / name)
        bucket = await check(path)
        await bucket.stop()
        assert name not in contents(path)
        assert (path / "lost" / name).read_bytes() == b"x"


class ReplacedTests:
    """Files of objects that were replaced or deleted."""

    @pytest_twisted.ensureDeferred
    async def test_are_removed_after_a_kill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replaced files are removed at the next start, also after a loss of power, as the index names them."""
        bucket = make(tmp_path / "running")
        bucket.start()
        await fill(bucket)
        with monkeypatch.context() as patch:
            patch.setattr(bucket, "_remove", lambda _: None)
            for _ in range(3):
                await fill(bucket)
            await put(bucket, "more", large(b"x"))
            await bucket.delete("more")
            shutil.copytree(tmp_path / "running", tmp_path / "killed")
        await bucket.stop()
        state = json.loads((tmp_path / "killed" / "index.state").read_bytes())
        (tmp_path / "killed" / "index.state").write_text(json.dumps({**state, "boot": "another"}))
        assert len(contents(tmp_path / "killed")) > OBJECTS
        bucket = await check(tmp_path / "killed")
        assert len(contents(tmp_path / "killed")) == OBJECTS // 2
        assert not any((tmp_path / "killed" / "lost").iterdir())
        assert bucket._index.replaced() == set()
        await bucket.stop()

    @pytest_twisted.ensureDeferred
    async def test_are_not_remembered_for_ever(self, tmp_path: Path) -> None:
        """The index forgets a replaced file with the commit after its removal."""
        bucket = make(tmp_path)
        bucket.start()
        for _ in range(20):
            await put(bucket, "a", large(b"x"))
            assert await until(lambda: len(contents(tmp_path)) == 1)
        assert len(bucket._index.replaced()) <= 2
        await bucket.stop()


class OtherReaderTests:
    """Another program that reads the index, as --scrub and --backup do."""

    @pytest_twisted.ensureDeferred
    async def test_a_stop_beside_it_leaves_a_log_that_is_needed(self, tmp_path: Path) -> None:
        """If a reader keeps the log from being checkpointed at a stop, a start without it is refused."""
        bucket = make(tmp_path / "data")
        bucket.start()
        bucket._index.is_checkpointed()
        reader = sqlite3.connect(f"file:{tmp_path / 'data' / 'index.sqlite'}?mode=ro", uri=True, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM objects").fetchone()
        await fill(bucket)
        await bucket.stop()
        shutil.copytree(tmp_path / "data", tmp_path / "without")
        reader.close()
        without_its_log(tmp_path / "without")
        with pytest.raises(StartError, match=r"index.sqlite-wal is missing"):
            make(tmp_path / "without").start()
        bucket = await check(tmp_path / "data")
        await bucket.stop()


class PendingTests:
    """Files of interrupted uploads."""

    @pytest_twisted.ensureDeferred
    async def test_is_removed_after_a_kill(self, tmp_path: Path) -> None:
        """The file of an interrupted upload is removed, as its note proves that nobody was told of it."""
        path = await killed(tmp_path)
        before = contents(path)
        bucket = await check(path)
        bucket._directory.create().seal()
        shutil.copytree(path, tmp_path / "again")
        await bucket.stop()
        bucket = await check(tmp_path / "again")
        assert contents(tmp_path / "again") == before
        assert not any((tmp_path / "again" / "lost").iterdir())
        assert bucket._directory.pending() == {}
        await bucket.stop()

    @pytest_twisted.ensureDeferred
    async def test_is_kept_after_a_loss_of_power(self, tmp_path: Path) -> None:
        """A note of an earlier boot proves nothing, so its file is moved to lost/."""
        path = await stopped(tmp_path)
        name, before = "ab" * 16, contents(path)
        (path / "objects" / "ab" / name).write_bytes(b"x")
        note = path / "pending" / "another-boot" / name
        note.parent.mkdir()
        note.touch()
        bucket = await check(path)
        await bucket.stop()
        assert contents(path) == before
        assert (path / "lost" / name).read_bytes() == b"x"
        assert not note.parent.exists()

    @pytest_twisted.ensureDeferred
    async def test_a_note_of_a_committed_upload(self, tmp_path: Path) -> None:
        """A kill between the commit and the removal of the note loses nothing."""
        path = await killed(tmp_path)
        (boot,) = (path / "pending").iterdir()
        for content in contents(path):
            (boot / content).touch()
        before = contents(path)
        bucket = await check(path)
        await bucket.stop()
        assert contents(path) == before

    @pytest_twisted.ensureDeferred
    async def test_no_note_is_left_by_what_was_answered(self, tmp_path: Path) -> None:
        """Neither a successful PUT nor one whose condition fails leaves a note."""
        path = await stopped(tmp_path)
        assert list(path.glob("pending/*/*")) == []


class PermissionTests:
    """Permissions of the folder and its files."""

    @pytest_twisted.ensureDeferred
    async def test_whatever_the_umask_is(self, tmp_path: Path) -> None:
        """All that the daemon creates is inaccessible to other users, whatever the umask."""
        (tmp_path / "data").mkdir(0o755)
        (tmp_path / "data").chmod(0o755)
        umask = os.umask(0)
        try:
            bucket = make(tmp_path / "data")
            bucket.start()
            await fill(bucket)
            modes = {path.name: path.stat().st_mode for path in (tmp_path / "data").rglob("*")}
        finally:
            os.umask(umask)
        await bucket.stop()
        assert modes.keys() > {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "index.state", "lock"}
        assert [name for name, mode in modes.items() if mode & 0o077] == []

    @pytest_twisted.ensureDeferred
    async def test_what_is_laxer_is_tightened(self, tmp_path: Path) -> None:
        """Permissions that an earlier version left to other users are removed."""
        path = await killed(tmp_path)
        lax = [
            path / "index.sqlite",
            path / "index.sqlite-wal",
            path / "lock",
            path / "objects",
            path / "objects" / "00",
        ]
        for one in lax:
            one.chmod(0o777 if one.is_dir() else 0o666)
        bucket = await check(path)
        assert [one for one in lax if one.stat().st_mode & 0o077] == []
        await bucket.stop()

    @pytest_twisted.ensureDeferred
    async def test_what_belongs_to_another_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of another user is refused, as its owner could change its permissions."""
        path, owner = await stopped(tmp_path), os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(StartError, match=rf"lock belongs to user {owner}, and storaged runs as 12345"):
            make(path).start()
