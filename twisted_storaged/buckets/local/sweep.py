"""The sweep of a data folder at start: files that the index does not name are removed or moved. Blocking.

A file is removed only if it is proven to be a leftover: the index says that a commit replaced it; or it has a note in
`pending/` that was written since the kernel booted, since notes are removed after the commit and before the client is
told of it, which a kill -9 cannot undo. After a loss of power, notes prove nothing. All other files are moved to
`lost/`. It runs before the bucket serves requests.

Where several processes serve a bucket, each removes the leftovers of those that have ended, by their notes alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from twisted_storaged.buckets.local.files import DataFolder, is_name
from twisted_storaged.buckets.local.index_reads import IndexReader, open_index_reader
from twisted_storaged.buckets.local.index_writes import IndexWriter
from twisted_storaged.runtime.files import sync_folder

#: Lines that are logged of each kind, so that a million files do not fill the disk.
LINES = 20


@dataclass
class SweepReport:
    """The result of a sweep.

    Attributes:
        removed: removed contents of interrupted uploads, and replaced ones.
        lost: contents that were moved to `lost/`.
        strays: files and folders that are not storaged's, which were left alone.
    """

    removed: int = 0
    lost: int = 0
    strays: int = 0


def sweep(directory: DataFolder, index: IndexWriter, warn: Callable[[str], None]) -> SweepReport:
    """Remove leftovers from a data folder.

    Raises:
        OSError: a file cannot be moved or removed.
        sqlite3.Error: the index cannot be read; then nothing was changed.
    """
    swept = SweepReport()
    notes, replaced = directory.pending(), index.replaced()
    # The whole index is read before the first file is touched: it may turn out to be damaged.
    for name in list(directory.unnamed(index.files())):
        note = notes.get(name)
        if name in replaced or (note is not None and directory.is_of_this_boot(note)):
            directory.path_of(name).unlink()
            swept.removed += 1
        else:
            _move(directory.path_of(name), directory.lost_path / name)
            swept.lost += 1
            _warn_of_the_first(
                swept.lost, warn, f"no key names {directory.path_of(name)}: moved to {directory.lost_path}"
            )
    if swept.lost:
        # The moves must be durable before the notes are removed, which say why there were files without a row.
        sync_folder(directory.lost_path)
    # After the files: names of files that a killed start has removed already do no harm.
    index.forget_replaced()
    for note in notes.values():
        note.unlink(missing_ok=True)
    for folder in directory.pending_path.iterdir():
        if folder.name != directory.boot and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for path in directory.strays():
        swept.strays += 1
        _warn_of_the_first(swept.strays, warn, f"{path} is not storaged's: left alone")
    return swept


def sweep_abandoned(directory: DataFolder, index: IndexWriter, settle: Callable[[], None]) -> int:
    """Remove the leftovers of processes that were killed, while others serve; returns the number of contents.

    `settle` makes sure that no unfinished commit of theirs can come back.

    Raises:
        OSError: a file cannot be removed.
        sqlite3.Error: the index cannot be read.
        DamagedObject: a row is damaged, so that its file is unknown.
        WritesSuspended: `settle` has failed.
    """
    removed = 0
    # A connection of its own, since other threads use that of `index`.
    with closing(open_index_reader(directory.index_path)) as reader:
        for folder in directory.abandoned():
            removed += _sweep_notes(directory, folder, reader, settle)
        # Also those that a process which lives is about to remove: none is named by a key any more.
        for name in reader.replaced():
            removed += _remove(directory.path_of(name))
            index.removed(name)
    return removed


def _sweep_notes(directory: DataFolder, folder: Path, index: IndexReader, settle: Callable[[], None]) -> int:
    # Once its process has ended, and before the index is read: until then, a recovery of the log would bring back the
    # commit in which that process was killed.
    settle()
    notes = [note for note in folder.iterdir() if is_name(note.name)]
    unnamed = {note.name for note in notes if directory.path_of(note.name).exists()}
    removed = 0
    if unnamed:
        # The whole index: nothing but a row names a file.
        unnamed.difference_update(index.files())
        for name in unnamed:
            removed += _remove(directory.path_of(name))
    for note in notes:
        note.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
    return removed


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _move(path: Path, lost: Path) -> None:
    """Move a file without replacing one."""
    try:
        os.link(path, lost)
    except FileExistsError:
        # A start that was killed may have made this link already.
        # Otherwise it is another content of that name, which must not be lost either.
        if not path.samefile(lost):
            raise
    path.unlink()


def _warn_of_the_first(number: int, warn: Callable[[str], None], line: str) -> None:
    if number <= LINES:
        warn(line)
    elif number == LINES + 1:
        warn("further lines of this kind are suppressed")
