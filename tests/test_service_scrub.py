"""`--scrub`: what it reports, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.logger import LogLevel

from tests.buckets.local.embedded import flip, logged
from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.errors import StartError, WorkEnded
from twisted_storaged.model import ObjectInfo
from twisted_storaged.service import ScrubService


def fill(path: Path) -> Path:
    """Make a bucket with one object; returns its file."""
    folder = DataFolder(path)
    content = folder.create()
    content.write(memoryview(b"\0"), 0)
    content.seal()
    folder.drop_note(content.name)
    index = IndexWriter(folder.index_path)
    index.commit([Change("a", Entry(ObjectInfo("a", 1, content.name, 1.5), None, 0x527D5351))])
    index.close()
    folder.close()
    return path / "objects" / content.name[:2] / content.name


def status(service: ScrubService) -> object:
    """What the process ends with."""
    with pytest.raises(WorkEnded) as caught:
        service.startService()
    return caught.value.code


class ScrubServiceTests:
    """The service."""

    def test_ends_with_0_if_all_is_well(self, tmp_path: Path) -> None:
        """In every bucket."""
        for name in ("one", "two"):
            fill(tmp_path / name)
        assert status(ScrubService({"one": tmp_path / "one", "two": tmp_path / "two"})) == 0

    def test_ends_with_1_if_anything_is_damaged(self, tmp_path: Path) -> None:
        """In any; the others are looked at all the same."""
        flip(fill(tmp_path / "one"), 0)
        fill(tmp_path / "two").unlink()
        with logged(LogLevel.info) as lines:
            assert status(ScrubService({"one": tmp_path / "one", "two": tmp_path / "two"})) == 1
        assert [line for line in lines if "sound" in line] == [
            "scrub of one: 0 objects with 0 bytes are sound (0 without all checksums, 0 of them repaired), "
            "1 damaged, 0 of them without their file; 0 files that no key names, 0 in lost/, "
            "0 names that are not storaged's",
            "scrub of two: 0 objects with 0 bytes are sound (0 without all checksums, 0 of them repaired), "
            "1 damaged, 1 of them without their file; 0 files that no key names, 0 in lost/, "
            "0 names that are not storaged's",
        ]
        assert any(line.startswith("scrub of one: 'a'") for line in lines)

    def test_ends_as_twistd_needs_it(self, tmp_path: Path) -> None:
        """Without a traceback, and after its pid file was removed."""
        ended = WorkEnded(1)
        assert isinstance(ended, SystemExit)
        assert isinstance(ended, Exception)

    def test_a_bucket_that_is_not_there(self, tmp_path: Path) -> None:
        """Is a line for the operator."""
        with pytest.raises(StartError, match="cannot be scrubbed"):
            ScrubService({"one": tmp_path}).startService()
