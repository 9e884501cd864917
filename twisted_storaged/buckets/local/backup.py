"""A consistent copy of an embedded bucket's folder, made beside a running daemon. Blocking.

The index is copied by SQLite out of one snapshot, and every file that this snapshot names is in the copy, though the
daemon goes on to replace and remove objects. Files never change, so that a hard link is a copy; where the copy is on
another file system, they are copied. Until it is whole, the copy has another name.
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

#: How often a snapshot is tried. Each round has only the files to link that are new since the one before, so that one
#: of them is replaced in this time only by chance.
ROUNDS = 100
#: What link(2) says where there can be no hard link.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}


def back_up(path: Path, target: Path) -> int:
    """Copy the data folder at `path` to `target`, which must not exist; returns how many files it has.

    Raises:
        StartError: there is no bucket, `target` exists, or the copy cannot be made; then nothing is left of it.
    """
    if os.path.lexists(target):
        raise StartError(f"{target} exists: a backup is made in a new folder")
    contents = ContentFiles(path)
    partial: Path | None = None
    try:
        if not contents.is_in_use():
            Generation(path, boot_id()).check_files(has_contents=any(contents.names()))
        with closing(connect_to_read(contents.index_path)) as index:
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
    """Fill the empty folder of the copy; returns how many files it has. Durable when it returns."""
    for folder in (copy.objects_path, *(copy.objects_path / f"{number:02x}" for number in range(256))):
        make_folder(folder)
    touch(copy.index_path)
    linked: set[str] = set()
    for _ in range(ROUNDS):
        with _snapshot(index):
            names = {name for (name,) in index.execute("SELECT etag FROM objects WHERE row IS NULL")}
            linked.update(_link(names - linked, contents, copy))
            if names <= linked:
                with closing(sqlite3.connect(copy.index_path)) as copied:
                    index.backup(copied)
                    origin = copied.execute("SELECT generation, starts FROM origin").fetchone()
                break
    else:
        raise StartError(f"{contents.index_path} is changed too fast for a backup")
    for name in linked - names:
        copy.path_of(name).unlink()
    write_copied(copy.index_path.parent, *origin)
    for folder in (*copy.objects_path.iterdir(), copy.objects_path, copy.objects_path.parent):
        sync_folder(folder)
    return len(names)


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything that is read is of one moment, also what `backup` copies."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _link(names: Iterable[str], contents: ContentFiles, copy: ContentFiles) -> Iterator[str]:
    """Have these files in the copy; gives the names of those that are still there to be had."""
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
