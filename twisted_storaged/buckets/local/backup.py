"""Backup: a consistent copy of an embedded bucket's folder, made beside a running daemon. Blocking.

SQLite copies the index from one snapshot, and every file that this snapshot names is in the copy, even while the daemon
replaces and removes objects. Files are immutable, so that hard links suffice; on another file system they are copied.
The copy has a temporary name until it is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from twisted_storaged.buckets.local.files import ContentFiles, boot_id
from twisted_storaged.buckets.local.generation import Generation, write_copied
from twisted_storaged.buckets.local.index_reads import connect_to_read
from twisted_storaged.errors import StartError
from twisted_storaged.runtime.files import make_folder, sync_folder, touch

#: Attempts at a snapshot whose files all exist. Each has to link only the files that are new since the one before, so
#: that it is unlikely that one of them is replaced meanwhile.
ROUNDS = 100
#: Errors of link(2) where hard links are impossible.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}


def back_up(path: Path, target: Path) -> int:
    """Copy the data folder at `path` to `target`, which must not exist; returns how many files it has.

    Raises:
        StartError: there is no bucket, `target` exists, or the copy failed; then nothing of it is left.
    """
    if os.path.lexists(target):
        raise StartError(f"{target} exists: a backup is made in a new folder")
    contents = ContentFiles(path)
    partial: Path | None = None
    try:
        # A daemon has checked them at its start. Without one, opening a damaged log would reset the wal-index, which
        # tells the next start what was committed.
        if not contents.is_in_use():
            Generation(path, boot_id()).check_files(has_contents=any(contents.names()))
        with closing(connect_to_read(contents.index_path)) as index:
            # The copy is made beside its target, as rename(2) cannot move it from another file system.
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
            count = _copy(index, contents, ContentFiles(partial))
        partial.rename(target)
        sync_folder(target.parent)
    except BaseException as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, (OSError, sqlite3.Error)):
            raise StartError(f"{path} cannot be backed up: {error}") from error
        raise
    return count


def _copy(index: sqlite3.Connection, contents: ContentFiles, copy: ContentFiles) -> int:
    """Fill the empty folder of the copy, durably; returns how many files it has."""
    for folder in (copy.objects_path, *(copy.objects_path / f"{number:02x}" for number in range(256))):
        make_folder(folder)
    # Before SQLite creates it, with a mode that lets others read it.
    touch(copy.index_path)
    linked: set[str] = set()
    for _ in range(ROUNDS):
        with _snapshot(index):
            names = {name for (name,) in index.execute("SELECT etag FROM objects WHERE row IS NULL")}
            linked.update(_link(names - linked, contents, copy))
            # Only once all files are linked: a file whose object was replaced since cannot be linked any more.
            if names <= linked:
                with closing(sqlite3.connect(copy.index_path)) as copied:
                    index.backup(copied)
                    origin = copied.execute("SELECT generation, starts FROM origin").fetchone()
                break
    else:
        raise StartError(f"{contents.index_path} changes too fast for a backup: try again when there are fewer writes")
    # Files of earlier attempts, whose objects were replaced since.
    for name in linked - names:
        copy.path_of(name).unlink()
    write_copied(copy.index_path.parent, *origin)
    # The contents of all files are durable by now, but not their names in these new folders.
    for folder in (*copy.objects_path.iterdir(), copy.objects_path, copy.objects_path.parent):
        sync_folder(folder)
    return len(names)


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction: everything that is read, or copied by `backup`, is of one snapshot."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _link(names: Iterable[str], contents: ContentFiles, copy: ContentFiles) -> Iterator[str]:
    """Link files into the copy; yields the names of those that still existed."""
    for name in names:
        try:
            _link_one(contents.path_of(name), copy.path_of(name))
        except FileNotFoundError:
            continue
        yield name


def _link_one(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        touch(target)
        with source.open("rb") as read, target.open("wb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())
