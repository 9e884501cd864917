"""The upload journal: what a process that was killed leaves in it, and who may have that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twisted_storaged.buckets.journal import Begun, Journal
from twisted_storaged.errors import StartError


def opened(state: Path) -> Journal:
    journal = Journal(state)
    journal.open()
    return journal


def crash(journal: Journal) -> None:
    """Let go of the lock, as the kernel does for a process that was killed, and of nothing else."""
    assert journal._lock is not None
    os.close(journal._lock)
    journal._lock = None


def left(state: Path) -> list[tuple[str, str, str | None]]:
    return [(begun.bucket, begun.key, begun.upload_id) for begun in opened(state).left_behind("b")]


class JournalTests:
    """One process after the other."""

    def test_a_crash_leaves_what_had_not_ended(self, tmp_path: Path) -> None:
        """With its id, where that was known; and what had ended is forgotten."""
        journal = opened(tmp_path)
        journal.begin("b", "before it was created")
        journal.begin("b", "é\n").created("id-1")
        ended = journal.begin("b", "ended")
        ended.created("id-2")
        ended.ended()
        crash(journal)
        assert sorted(left(tmp_path)) == [("b", "before it was created", None), ("b", "é\n", "id-1")]

    def test_it_is_there_until_it_is_ended(self, tmp_path: Path) -> None:
        """However many processes look at it."""
        journal = opened(tmp_path)
        journal.begin("b", "k").created("id")
        crash(journal)
        assert left(tmp_path) == left(tmp_path) == [("b", "k", "id")]
        for begun in opened(tmp_path).left_behind("b"):
            begun.ended()
        assert left(tmp_path) == []

    def test_what_a_living_process_does_is_its_own(self, tmp_path: Path) -> None:
        """Several daemons may share a folder."""
        journal = opened(tmp_path)
        journal.begin("b", "k").created("id")
        assert left(tmp_path) == []
        assert list(journal.left_behind("b")) == []

    def test_what_it_gives_up_is_left_behind_too(self, tmp_path: Path) -> None:
        """Until it is ended after all."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        begun.created("id")
        journal.give_up(begun)
        for _ in range(2):
            assert [found.upload_id for found in journal.left_behind("b")] == ["id"]
        begun.ended()
        assert list(journal.left_behind("b")) == []

    def test_each_bucket_has_its_own(self, tmp_path: Path) -> None:
        """Another one's uploads are not this one's to abort; but their ids are known."""
        journal = opened(tmp_path)
        journal.begin("another", "k").created("id")
        crash(journal)
        assert left(tmp_path) == []
        assert opened(tmp_path).upload_ids() == {"id"}

    def test_when_it_was_begun_is_kept(self, tmp_path: Path) -> None:
        """An upload whose id is unknown is found by that."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        crash(journal)
        (found,) = opened(tmp_path).left_behind("b")
        assert found == Begun(begun.path, "b", "k", begun.began)

    @pytest.mark.parametrize(("keep", "expected"), [(10, []), (-2, [("b", "k", None)])])
    def test_a_torn_line_counts_for_nothing(self, tmp_path: Path, keep: int, expected: list[object]) -> None:
        """A first line means that S3 was not asked yet; a second, that the id is unknown."""
        journal = opened(tmp_path)
        begun = journal.begin("b", "k")
        if keep < 0:
            begun.created("id")
        begun.path.write_bytes(begun.path.read_bytes()[:keep])
        crash(journal)
        assert left(tmp_path) == expected

    def test_a_run_leaves_no_folder(self, tmp_path: Path) -> None:
        """Neither one that ended as it should, nor one that crashed, once all of it is ended."""
        journal = opened(tmp_path)
        journal.begin("b", "k").ended()
        journal.close()
        crashed = opened(tmp_path)
        crashed.begin("b", "k")
        crash(crashed)
        last = opened(tmp_path)
        for begun in last.left_behind("b"):
            begun.ended()
        list(last.left_behind("b"))
        last.close()
        assert list((tmp_path / "uploads").iterdir()) == []

    def test_a_folder_that_cannot_be_used(self, tmp_path: Path) -> None:
        """Is an error at the start, and names the folder."""
        (tmp_path / "uploads").write_text("a file")
        with pytest.raises(StartError, match="uploads"):
            Journal(tmp_path).open()
