"""What a start does with files that the index does not name: nothing is deleted that is not proven to be a leftover.

Proven is a file that the index itself says a commit has replaced; and a file with a note in `pending/` that was written
under the kernel that still runs: the note is removed after the commit and before anybody is told of it, in memory that
no kill -9 can take back. After the machine has lost its power, notes prove nothing. Blocking, and for the time before
the bucket serves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.index_writes import IndexWriter
from twisted_storaged.runtime.files import sync_folder

#: Lines that are logged of each kind of find, so that a million of them do not fill the disk.
LINES = 20


@dataclass
class SweepReport:
    """What was found, and what was done with it.

    Attributes:
        removed: contents of uploads that were broken off, or that were replaced.
        lost: contents that were moved to `lost/`.
        strays: names that are not storaged's, which were left alone.
    """

    removed: int = 0
    lost: int = 0
    strays: int = 0


def sweep(directory: DataFolder, index: IndexWriter, warn: Callable[[str], None]) -> SweepReport:
    """Clear a data folder of leftovers.

    Raises:
        OSError: a file cannot be moved or removed.
        sqlite3.Error: the index cannot be read; then nothing has been touched.
    """
    swept, boot = SweepReport(), directory.boot
    notes, replaced = directory.pending(), index.replaced()
    for name in list(directory.unnamed(index.files())):
        note = notes.get(name)
        if name in replaced or (note is not None and note.parent.name == boot):
            directory.path_of(name).unlink()
            swept.removed += 1
        else:
            _move(directory.path_of(name), directory.lost_path / name)
            swept.lost += 1
            _warn_of_the_first(
                swept.lost, warn, f"no key names {directory.path_of(name)}: moved to {directory.lost_path}"
            )
    if swept.lost:
        # The moves are durable before the notes go, which tell in turn why there were files without a row.
        sync_folder(directory.lost_path)
    index.forget_replaced()
    for note in notes.values():
        note.unlink(missing_ok=True)
    for folder in directory.pending_path.iterdir():
        if folder.name != boot and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for path in directory.strays():
        swept.strays += 1
        _warn_of_the_first(swept.strays, warn, f"{path} is not storaged's: left alone")
    return swept


def _move(path: Path, lost: Path) -> None:
    """Move a file, and never replace one: by a link, which an earlier start may have made before it was killed."""
    try:
        os.link(path, lost)
    except FileExistsError:
        if not path.samefile(lost):
            raise
    path.unlink()


def _warn_of_the_first(number: int, warn: Callable[[str], None], line: str) -> None:
    if number <= LINES:
        warn(line)
    elif number == LINES + 1:
        warn("and more, of which there are no lines")
