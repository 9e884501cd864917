"""The upload journal: files that name the multipart uploads and probe objects that S3 may have. Blocking.

After a crash, the reaper finds in it what to abort, so that S3 does not keep parts that cost money.

    STATE/uploads/RUN/lock    a lock that the process of this run holds until it ends
    STATE/uploads/RUN/NAME    an entry: a line of JSON before the upload is created, another when its id is known
    STATE/uploads-damaged/    files from the folders above that are no entries

An entry is on disk before S3 is asked to create the upload, and is deleted when the upload has ended. Each process has
one run. If the lock of a run is free, its process has ended, and its entries are orphaned. A run without a lock file is
left alone, because its process may be alive.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twisted.logger import Logger

from twisted_storaged.errors import StartError
from twisted_storaged.runtime.files import make_folder, sync_folder

#: Kinds of entries: an upload, or the object of a probe, with all its versions.
UPLOAD, PROBE = "upload", "probe"

_LOCK = "lock"

_log = Logger()


class DamagedEntry(Exception):
    """A file in the journal is not an entry."""


@dataclass(frozen=True)
class JournalEntry:
    """One upload or probe in the journal.

    Attributes:
        bucket: the bucket, as a URL.
        key: the key of the object in that bucket.
        began: seconds since the epoch, by our clock, just before the upload was created.
        upload_id: S3's id of the upload; None if the process ended before it was known, and for a probe.
        kind: UPLOAD or PROBE.
    """

    path: Path
    bucket: str
    key: str
    began: float
    upload_id: str | None = None
    kind: str = UPLOAD

    def created(self, upload_id: str) -> None:
        """Add the id of the upload, durably."""
        _append(self.path, {"upload_id": upload_id})

    def ended(self) -> None:
        """Delete the entry: the upload was completed or aborted, or the probe removed."""
        self.path.unlink(missing_ok=True)


class Journal:
    """The journal of this process, in a folder that it shares with others."""

    def __init__(self, state: Path) -> None:
        self._uploads = state / "uploads"
        self._run = self._uploads / f"{time.time_ns():x}-{secrets.token_hex(4)}"
        self._lock: int | None = None
        self._folder: int | None = None
        self._deferred: dict[Path, None] = {}
        self._warned: set[Path] = set()

    def open(self) -> None:
        """Create the folder and the lock of this run.

        Raises:
            StartError: the folder cannot be used.
        """
        hidden = self._uploads / f".{self._run.name}"
        try:
            self._uploads.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_folder(self._uploads)
            hidden.mkdir(mode=0o700)
            self._lock = _lock(hidden)
            # Renamed when locked, because a run whose lock is free counts as ended.
            hidden.rename(self._run)
            sync_folder(self._uploads)
            self._folder = os.open(self._run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StartError(f"the upload journal cannot be kept in {self._uploads}: {error}") from error

    def close(self) -> None:
        """End this run. Entries that are left stay for the reaper of another."""
        if self._lock is not None:
            # Before the lock is released, as others may read the run from then on.
            _forget_if_empty(self._run)
            os.close(self._lock)
            self._lock = None
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def begin(self, bucket: str, key: str, kind: str = UPLOAD) -> JournalEntry:
        """Add an entry, durably, for an upload that is about to be created, or a probe object.

        Raises:
            OSError: the disk failed; then the upload must not be created.
        """
        assert self._folder is not None
        entry = JournalEntry(self._run / secrets.token_hex(8), bucket, key, time.time(), kind=kind)
        fields = {"bucket": bucket, "key": key, "began": entry.began}
        try:
            _append(entry.path, fields if kind == UPLOAD else {**fields, "kind": kind})
            os.fsync(self._folder)  # of the folder, as that of a file does not make its name durable: fsync(2)
        except OSError:
            # Otherwise the reaper would search for an upload that was never created.
            entry.path.unlink(missing_ok=True)
            raise
        return entry

    def defer_to_reaper(self, entry: JournalEntry) -> None:
        """Leave an upload of this run that could not be ended to the reaper."""
        self._deferred[entry.path] = None

    def known(self, bucket: str, key: str) -> set[str] | None:
        """The ids of all uploads in the journal, of all runs.

        None if a living process may be about to add the id of an upload of `key`: it has asked S3 for one, and the
        response is yet to come or to be noted. Then any upload of that key may be the one.
        """
        found: set[str] = set()
        for run in self._runs():
            for path in _entries(run):
                try:
                    entry = _read(path)
                except (DamagedEntry, OSError):
                    # Its process may be about to add the id.
                    unsure = True
                else:
                    unsure = entry is not None and _is_unknown(entry, bucket, key)
                    if entry is not None and entry.upload_id is not None:
                        found.add(entry.upload_id)
                if unsure and self._may_live(run, path):
                    return None
        return found

    def orphaned(self, bucket: str) -> list[JournalEntry]:
        """The entries for a bucket's reaper: those of runs that have ended, and those of this run deferred to it."""
        return [entry for entry in (*self._own(), *self._others()) if entry.bucket == bucket]

    def _own(self) -> Iterator[JournalEntry]:
        for path in list(self._deferred):
            yield from self._judged(path)
            # The reaper has ended it since.
            if not path.exists():
                del self._deferred[path]

    def _others(self) -> Iterator[JournalEntry]:
        for run in self._runs():
            if run == self._run:
                continue
            try:
                lock = _lock_again(run)
            except FileNotFoundError:
                self._has_no_lock(run)
                continue
            except OSError:  # its process is alive
                continue
            try:
                for path in _entries(run):
                    yield from self._judged(path)
                _forget_if_empty(run)
            except OSError as error:
                _log.warn("{run} of the upload journal cannot be read: {error}", run=run, error=error)
            finally:
                os.close(lock)

    def _has_no_lock(self, run: Path) -> None:
        try:
            run.rmdir()  # succeeds if a process was about to remove the run, and only the folder is left
        except OSError:
            if run.exists() and run not in self._warned:
                self._warned.add(run)
                _log.warn("{run} of the upload journal has no lock file: its uploads are not aborted", run=run)

    def _runs(self) -> list[Path]:
        # Hidden ones are not locked by their processes yet.
        return sorted(self._uploads.glob("[!.]*"))

    def _may_live(self, run: Path, path: Path) -> bool:
        """Whether the process that made an entry may still work on its upload."""
        if run == self._run:
            # The lock of this run says nothing: this process holds it.
            return path not in self._deferred
        try:
            # An error means that it is locked, or has no lock file, which proves nothing.
            os.close(_lock_again(run))
        except OSError:
            return True
        return False

    def _judged(self, path: Path) -> Iterator[JournalEntry]:
        """Read an entry that no process works on, if it is one."""
        try:
            if entry := _read(path):
                yield entry
            else:
                path.unlink(missing_ok=True)  # the process ended before it could ask S3 for anything
        # Errors are not raised, as one bad entry must not keep the others.
        except DamagedEntry as error:
            self._set_aside(path, error)
        except OSError as error:
            _log.warn("{path} of the upload journal cannot be read: {error}", path=path, error=error)

    def _set_aside(self, path: Path, error: DamagedEntry) -> None:
        folder = self._uploads.with_name(f"{self._uploads.name}-damaged")
        to = folder / f"{path.parent.name}-{path.name}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            path.rename(to)
        except OSError as trouble:
            _log.error(
                "{path} is not an entry of the upload journal: {error}; moving it failed: {trouble}",
                path=path,
                error=error,
                trouble=trouble,
            )
        else:
            _log.error(
                "{path} is not an entry of the upload journal: {error}; moved to {to}", path=path, error=error, to=to
            )


def _entries(run: Path) -> list[Path]:
    try:
        return sorted(path for path in run.iterdir() if path.name != _LOCK)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_unknown(entry: JournalEntry, bucket: str, key: str) -> bool:
    return (entry.kind, entry.bucket, entry.key, entry.upload_id) == (UPLOAD, bucket, key, None)


def _read(path: Path) -> JournalEntry | None:
    """Read an entry; None if there is no file, or not even a complete first line, so that S3 was not asked yet.

    If the second line is not as it should be, the id counts as unknown.

    Raises:
        DamagedEntry: the file is not an entry.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    # A line without its end was not written completely, and so nothing was done that depends on it.
    first, *more = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")] or [b""]
    if not first:
        return None
    try:
        fields = json.loads(first)
        texts = [fields["bucket"], fields["key"], fields.get("kind", UPLOAD)]
        if not all(isinstance(text, str) for text in texts) or not isinstance(fields["began"], (int, float)):
            raise TypeError("its first line has other fields")
    # json raises RecursionError for deeply nested arrays.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedEntry(f"{type(error).__name__}: {error}") from error
    bucket, key, kind = texts
    return JournalEntry(path, bucket, key, fields["began"], next(filter(None, map(_upload_id, more)), None), kind)


def _upload_id(line: bytes) -> str | None:
    try:
        upload_id = json.loads(line)["upload_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return upload_id if isinstance(upload_id, str) else None


def _append(path: Path, fields: dict[str, object]) -> None:
    """Append a line, durably: all of it, or nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        try:
            left = memoryview(json.dumps(fields).encode("ascii") + b"\n")
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
            # The next line must not be appended to half of this one.
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _lock(run: Path, flags: int = os.O_CREAT) -> int:
    descriptor = os.open(run / _LOCK, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock_again(run: Path) -> int:
    """Lock the run of another process. A missing lock file is not created, as the process may be alive."""
    return _lock(run, flags=0)


def _forget_if_empty(run: Path) -> None:
    if [path.name for path in run.iterdir()] == [_LOCK]:
        (run / _LOCK).unlink()
        run.rmdir()
