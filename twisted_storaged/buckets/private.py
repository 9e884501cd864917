"""Files and folders that only the daemon's user can use, whatever its umask is. Blocking."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted_storaged.errors import StartError


def make_folder(path: Path) -> None:
    """Make a folder with mode 0700 if there is none; one that others can use is closed to them.

    Raises:
        StartError: it belongs to another user.
        OSError: it cannot be made, or is no folder.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    tighten(path)


def touch(path: Path) -> None:
    """Make an empty file with mode 0600 if there is none; one that others can use is closed to them.

    Raises:
        StartError: it belongs to another user.
        OSError: it cannot be made.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    tighten(path)


def tighten(path: Path) -> None:
    """Take all access from group and others, if they have some. Does nothing if the path does not exist.

    Raises:
        StartError: it belongs to another user, who could give it back.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if status.st_uid != os.geteuid():
        raise StartError(
            f"{path} belongs to user {status.st_uid}, and storaged runs as {os.geteuid()}: run it as its owner"
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(stat.S_IMODE(status.st_mode) & stat.S_IRWXU)


def write_durably(path: Path, data: bytes) -> None:
    """Replace what a file holds: after a crash it holds the old or the new, whole."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: fsync of a file does not. See fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
