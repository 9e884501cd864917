"""The upload journal: which multipart uploads were begun and have not ended, on disk, so that a crash leaves no parts
that somebody pays for. Blocking.

    STATE/uploads/RUN/lock    held by the process whose run it is, for as long as it lives
    STATE/uploads/RUN/NAME    one upload: a line of JSON before it is created, another once its id is known

An upload's file is on the disk before S3 hears of the upload, and goes when the upload has ended. A run that nobody
holds any more is a crashed process's; what it left, and what a process could not abort itself, is for the reaper.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from twisted_storaged.buckets.private import sync_folder
from twisted_storaged.errors import StartError

_LOCK = "lock"


@dataclass(frozen=True)
class Begun:
    """An upload that the journal names.

    Attributes:
        bucket: where it is, as the journal's user says it.
        key: of the object, in that bucket.
        began: seconds since the epoch, by our clock, just before it was created.
        upload_id: S3's; None where the process ended before it was known.
    """

    path: Path
    bucket: str
    key: str
    began: float
    upload_id: str | None = None

    def created(self, upload_id: str) -> None:
        """Note the id that S3 gave it, durably."""
        _append(self.path, {"upload_id": upload_id})

    def ended(self) -> None:
        """Forget it: it was completed or aborted."""
        self.path.unlink(missing_ok=True)


class Journal:
    """The journal of this process, in a folder that others share."""

    def __init__(self, state: Path) -> None:
        self._uploads = state / "uploads"
        self._run = self._uploads / f"{time.time_ns():x}-{secrets.token_hex(4)}"
        self._lock: int | None = None
        self._given_up: dict[Path, None] = {}

    def open(self) -> None:
        """Begin this run.

        Raises:
            StartError: the folder cannot be used.
        """
        hidden = self._uploads / f".{self._run.name}"
        try:
            hidden.mkdir(mode=0o700, parents=True)
            self._lock = _lock(hidden)
            # Only now, as a run that nobody holds is one that has ended.
            hidden.rename(self._run)
            sync_folder(self._uploads)
        except OSError as error:
            raise StartError(f"the upload journal cannot be kept in {self._uploads}: {error}") from error

    def close(self) -> None:
        """End this run; what it could not end stays, for the next."""
        if self._lock is not None:
            _forget_if_empty(self._run)
            os.close(self._lock)
            self._lock = None

    def begin(self, bucket: str, key: str) -> Begun:
        """Note that an upload is about to be created, durably.

        Raises:
            OSError: the disk failed; then no upload must be created.
        """
        begun = Begun(self._run / secrets.token_hex(8), bucket, key, time.time())
        _append(begun.path, {"bucket": bucket, "key": key, "began": begun.began})
        sync_folder(self._run)
        return begun

    def give_up(self, begun: Begun) -> None:
        """Leave an upload of this run, which could not be ended, to the reaper."""
        self._given_up[begun.path] = None

    def upload_ids(self) -> set[str]:
        """The ids of all uploads that are known to anybody, whether they live or not."""
        found = (_read(path) for path in self._uploads.glob("*/*") if path.name != _LOCK)
        return {begun.upload_id for begun in found if begun and begun.upload_id}

    def left_behind(self, bucket: str) -> Iterator[Begun]:
        """What is for the reaper of a bucket: what runs that have ended did not end, and what this one gave up."""
        return (begun for begun in self._left_behind() if begun.bucket == bucket)

    def _left_behind(self) -> Iterator[Begun]:
        for path in list(self._given_up):
            if begun := _read(path):
                yield begun
            else:
                del self._given_up[path]
        for run in sorted(self._uploads.glob("[!.]*")):
            if run == self._run:
                continue
            with suppress(OSError):  # held by a process that lives, or gone this moment
                lock = _lock(run)
                try:
                    yield from _begun_in(run)
                    _forget_if_empty(run)
                finally:
                    os.close(lock)


def _begun_in(run: Path) -> Iterator[Begun]:
    for path in sorted(run.iterdir()):
        if path.name != _LOCK:
            begun = _read(path)
            if begun is None:
                path.unlink(missing_ok=True)  # the process ended before it could ask S3 for anything
            else:
                yield begun


def _read(path: Path) -> Begun | None:
    """An upload's file; None where there is none any more, or not even its first line is whole."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    fields = {name: value for line in lines for name, value in json.loads(line).items()}
    return Begun(path, **fields) if fields else None


def _append(path: Path, fields: dict[str, object]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps(fields).encode("ascii") + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(run: Path) -> int:
    descriptor = os.open(run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _forget_if_empty(run: Path) -> None:
    if [path.name for path in run.iterdir()] == [_LOCK]:
        shutil.rmtree(run)
