"""The files of the embedded bucket."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
from pathlib import Path

import pytest

from twisted_storaged.buckets.local import files as directory_module
from twisted_storaged.buckets.local.files import ALIGNMENT, DataFolder
from twisted_storaged.errors import StartError
from twisted_storaged.runtime.buffers import PIECE, BufferPool
from twisted_storaged.runtime.files import make_folder


class DirectoryTests:
    """Writing, finding and removing contents."""

    def test_writes_anywhere_in_any_order(self, tmp_path: Path) -> None:
        """Parts of a content may be written in any order."""
        directory = DataFolder(tmp_path / "new" / "data")
        content = directory.create()
        content.write(memoryview(b"world"), 5)
        content.write(memoryview(b"hello"), 0)
        assert content.seal() == 10
        descriptor = directory.open(content.name)
        assert os.read(descriptor, 100) == b"helloworld"
        os.close(descriptor)

    @pytest.mark.parametrize("direct", [True, False])
    def test_whole_blocks_and_the_rest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
        """Whole blocks and the rest make up the content, also on file systems without O_DIRECT."""
        if not direct:
            monkeypatch.setattr(directory_module, "_DIRECT", os.O_DIRECTORY)
        data = random.Random(0).randbytes(3 * PIECE + ALIGNMENT + 1)
        parts = [(at, memoryview(data[at : at + PIECE + ALIGNMENT])) for at in range(0, len(data), PIECE + ALIGNMENT)]
        content = DataFolder(tmp_path).create()
        for offset, part in reversed(parts):
            content.write(part, offset)
        assert content.seal() == len(data)
        assert next((tmp_path / "objects").glob("*/*")).read_bytes() == data

    def test_whole_blocks_do_not_wait_for_the_fsync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whole blocks are written with O_DIRECT, an incomplete block through the page cache."""
        flags: list[int] = []
        pwrite = os.pwrite

        def recording_pwrite(descriptor: int, data: memoryview, offset: int) -> int:
            flags.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
            return pwrite(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", recording_pwrite)
        content = DataFolder(tmp_path).create()
        if len(content._descriptors) == 1:
            pytest.skip("this file system knows no O_DIRECT")
        memory = BufferPool(PIECE, keep=0).take(PIECE)
        content.write(memory[:ALIGNMENT], 0)
        content.write(memory[: ALIGNMENT + 1], ALIGNMENT)
        assert flags == [os.O_DIRECT, 0]

    def test_memory_that_the_disk_cannot_read_from(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A body in memory that is not aligned is written through the page cache."""
        pwrite = os.pwrite

        def refuse(descriptor: int, data: memoryview, offset: int) -> int:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return pwrite(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", refuse)
        content = DataFolder(tmp_path).create()
        content.write(memoryview(b"x" * ALIGNMENT), 0)
        assert content.seal() == ALIGNMENT

    def test_a_disk_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Other errors of a write past the page cache are raised, and it is not tried a second time."""
        tried = []

        def fail(descriptor: int, data: memoryview, offset: int) -> int:
            tried.append(offset)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="Input/output"):
            DataFolder(tmp_path).create().write(memoryview(b"x" * ALIGNMENT), 0)
        assert tried == [0]

    def test_closes_what_it_opened(self, tmp_path: Path) -> None:
        """`seal` and `discard` close all descriptors."""
        directory = DataFolder(tmp_path)
        before = os.listdir("/proc/self/fd")
        directory.create().seal()
        directory.create().discard()
        assert os.listdir("/proc/self/fd") == before

    def test_who_has_it_open_reads_on(self, tmp_path: Path) -> None:
        """A content that was removed can still be read by a reader that has it open."""
        directory = DataFolder(tmp_path)
        content = directory.create()
        content.write(memoryview(b"old"), 0)
        content.seal()
        descriptor = directory.open(content.name)
        directory.remove(content.name)
        assert os.read(descriptor, 100) == b"old"
        os.close(descriptor)
        with pytest.raises(FileNotFoundError):
            directory.open(content.name)

    def test_discarding_leaves_nothing(self, tmp_path: Path) -> None:
        """`discard` removes the content and its note, and may be called twice."""
        directory = DataFolder(tmp_path)
        content = directory.create()
        content.discard()
        content.discard()
        assert list(directory.names()) == []
        assert directory.pending() == {}

    def test_unnamed(self, tmp_path: Path) -> None:
        """`unnamed` finds exactly the contents that are not in the sorted names."""
        directory = DataFolder(tmp_path)
        names = []
        for _ in range(50):
            content = directory.create()
            content.seal()
            names.append(content.name)
        named = sorted([*names[:20], "0" * 32, "f" * 32])
        assert list(directory.unnamed(iter(named))) == sorted(names[20:])

    @pytest.mark.parametrize(
        "stray", ["zzz", "core", "lost+found/", "00" * 15 + "0", "ff" * 16, "0" * 32 + "/", "00" * 17]
    )
    def test_strays_are_no_contents(self, tmp_path: Path, stray: str) -> None:
        """Other files and folders are strays, and do not disturb the search for unnamed contents."""
        directory = DataFolder(tmp_path)
        contents = [directory.create() for _ in range(40)]
        for content in contents:
            content.seal()
        names = sorted(content.name for content in contents)
        path = tmp_path / "objects" / "00" / stray.rstrip("/")
        if stray.endswith("/"):
            path.mkdir()
        else:
            path.touch()
        (tmp_path / "objects" / "Trash").mkdir()
        assert list(directory.unnamed(iter(names))) == []
        assert list(directory.names()) == names
        assert sorted(directory.strays()) == sorted([path, tmp_path / "objects" / "Trash"])

    def test_a_link_is_no_content(self, tmp_path: Path) -> None:
        """A symbolic link with the name of a content is a stray."""
        directory = DataFolder(tmp_path)
        link = tmp_path / "objects" / "00" / ("00" * 16)
        link.symlink_to("/etc/passwd")
        assert list(directory.names()) == []
        assert list(directory.strays()) == [link]

    def test_a_note_while_a_content_is_written(self, tmp_path: Path) -> None:
        """A note exists from the creation of a content to its commit or removal."""
        directory = DataFolder(tmp_path)
        kept, dropped = directory.create(), directory.create()
        assert set(directory.pending()) == {kept.name, dropped.name}
        kept.seal()
        dropped.discard()
        assert set(directory.pending()) == {kept.name}
        directory.drop_note(kept.name)
        assert directory.pending() == {}

    def test_one_daemon_per_directory(self, tmp_path: Path) -> None:
        """A folder that another daemon has locked is refused, by its path."""
        first = DataFolder(tmp_path)
        with pytest.raises(StartError, match=f"{tmp_path} is in use by another storaged"):
            DataFolder(tmp_path)
        first.close()
        DataFolder(tmp_path)

    def test_contents_are_for_the_daemon_alone(self, tmp_path: Path) -> None:
        """Contents are not accessible to other users."""
        directory = DataFolder(tmp_path / "data")
        content = directory.create()
        content.seal()
        assert (tmp_path / "data").stat().st_mode & 0o077 == 0
        assert next((tmp_path / "data" / "objects").glob("*/*")).stat().st_mode & 0o077 == 0


class SharedTests:
    """A folder that several processes of one daemon have open."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> DataFolder:
        """The folder, as its supervisor has locked it."""
        return DataFolder(tmp_path)

    def share(self, folder: DataFolder) -> DataFolder:
        return DataFolder(folder.index_path.parent, lock=os.dup(folder.lock))

    def test_the_lock_is_that_of_all(self, folder: DataFolder, tmp_path: Path) -> None:
        """The folder is locked until the last process has closed it."""
        shared = self.share(folder)
        folder.close()
        with pytest.raises(StartError, match="is in use by another storaged"):
            DataFolder(tmp_path)
        shared.close()
        DataFolder(tmp_path)

    def test_a_lock_that_is_none(self, folder: DataFolder, tmp_path: Path) -> None:
        """A descriptor of another file, or one that has not locked the folder, is refused."""
        for path in (tmp_path / "lock", tmp_path / "other"):
            path.touch()
            descriptor = os.open(path, os.O_RDWR)
            with pytest.raises(StartError, match=f"{tmp_path} is not locked by this daemon"):
                DataFolder(tmp_path, lock=descriptor)
            os.close(descriptor)

    def test_abandoned(self, folder: DataFolder) -> None:
        """The notes of a process are abandoned once it has ended, and not those of others, or of other boots."""
        one, two = self.share(folder), self.share(folder)
        name = one.create().name
        two.create()
        (folder.pending_path / f"another-boot.{'0' * 32}").mkdir()
        assert list(two.abandoned()) == []
        assert set(folder.pending()) > {name}
        one.close()
        assert [[note.name for note in notes.iterdir()] for notes in two.abandoned()] == [[name]]

    def test_abandoned_ones_are_locked(self, folder: DataFolder) -> None:
        """A folder that one process is about to remove is left to it by others."""
        one, two, three = self.share(folder), self.share(folder), self.share(folder)
        one.create()
        one.close()
        found = two.abandoned()
        assert next(found)
        assert list(three.abandoned()) == []
        found.close()
        assert len(list(three.abandoned())) == 1

    @pytest.mark.parametrize("opened", [False, True])
    def test_removed_before_it_was_locked(
        self, folder: DataFolder, monkeypatch: pytest.MonkeyPatch, opened: bool
    ) -> None:
        """A process whose new folder of notes is taken for an abandoned one makes another."""
        other, flock = self.share(folder), fcntl.flock
        removed: list[Path] = []

        def lose() -> None:
            if not removed:
                removed.append(folder.pending_path)
                for one in other.abandoned():
                    removed.append(one)
                    one.rmdir()

        def make_and_lose(path: Path) -> None:
            make_folder(path)
            lose()

        def lose_and_lock(descriptor: int, how: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                lose()
            flock(descriptor, how)

        if opened:
            monkeypatch.setattr(fcntl, "flock", lose_and_lock)
        else:
            monkeypatch.setattr(directory_module, "make_folder", make_and_lose)
        name = self.share(folder).create().name
        assert len(removed) == 2
        assert list(folder.pending()) == [name]

    def test_closing_leaves_no_folder(self, folder: DataFolder) -> None:
        """A process that has no uploads leaves no folder of notes."""
        before = os.listdir(folder.pending_path)
        self.share(folder).close()
        assert os.listdir(folder.pending_path) == before
