"""The upload journal: which multipart uploads, and which probes, were begun and have not ended, on disk, so that a
crash leaves no parts that somebody pays for. Blocking.

    STATE/uploads/RUN/lock    held by the process whose run it is, for as long as it lives
    STATE/uploads/RUN/NAME    one upload: a line of JSON before it is created, another once its id is known; or a probe
    STATE/uploads-damaged/    files that were found among these, and are none of them

An upload's file is on the disk before S3 hears of the upload, and goes when the upload has ended. A run that nobody
holds any more is a crashed process's; what it left, and what a process could not abort itself, is for the reaper. A run
whose lock is missing is nobody's to judge, and left alone.
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

#: What an entry is of: an upload, or the object that conditional writes are tried on, with its versions.
UPLOAD, PROBE = "upload", "probe"

_LOCK = "lock"

_log = Logger()


class DamagedEntry(Exception):
    """A file in the journal that no journal has written."""


@dataclass(frozen=True)
class JournalEntry:
    """An upload, or a probe, that the journal names.

    Attributes:
        bucket: where it is, as the journal's user says it.
        key: of the object, in that bucket.
        began: seconds since the epoch, by our clock, just before it was created.
        upload_id: S3's; None where the process ended before it was known, and for a probe.
        kind: which of the two it is.
    """

    path: Path
    bucket: str
    key: str
    began: float
    upload_id: str | None = None
    kind: str = UPLOAD

    def created(self, upload_id: str) -> None:
        """Note the id that S3 gave it, durably."""
        _append(self.path, {"upload_id": upload_id})

    def ended(self) -> None:
        """Forget it: it was completed, aborted or removed."""
        self.path.unlink(missing_ok=True)


class Journal:
    """The journal of this process, in a folder that others share."""

    def __init__(self, state: Path) -> None:
        self._uploads = state / "uploads"
        self._run = self._uploads / f"{time.time_ns():x}-{secrets.token_hex(4)}"
        self._lock: int | None = None
        self._folder: int | None = None
        self._deferred: dict[Path, None] = {}
        self._warned: set[Path] = set()

    def open(self) -> None:
        """Begin this run.

        Raises:
            StartError: the folder cannot be used.
        """
        hidden = self._uploads / f".{self._run.name}"
        try:
            self._uploads.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_folder(self._uploads)
            hidden.mkdir(mode=0o700)
            self._lock = _lock(hidden)
            # Only now, as a run that nobody holds is one that has ended.
            hidden.rename(self._run)
            sync_folder(self._uploads)
            self._folder = os.open(self._run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StartError(f"the upload journal cannot be kept in {self._uploads}: {error}") from error

    def close(self) -> None:
        """End this run; what it could not end stays, for the next."""
        if self._lock is not None:
            _forget_if_empty(self._run)
            os.close(self._lock)
            self._lock = None
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def begin(self, bucket: str, key: str, kind: str = UPLOAD) -> JournalEntry:
        """Note that an upload is about to be created, or a probe to be made, durably.

        Raises:
            OSError: the disk failed; then it must not be.
        """
        assert self._folder is not None
        entry = JournalEntry(self._run / secrets.token_hex(8), bucket, key, time.time(), kind=kind)
        fields = {"bucket": bucket, "key": key, "began": entry.began}
        try:
            _append(entry.path, fields if kind == UPLOAD else {**fields, "kind": kind})
            os.fsync(self._folder)  # of the folder, as that of a file does not make its name durable: fsync(2)
        except OSError:
            entry.path.unlink(missing_ok=True)
            raise
        return entry

    def defer_to_reaper(self, entry: JournalEntry) -> None:
        """Leave an upload of this run, which could not be ended, to the reaper."""
        self._deferred[entry.path] = None

    def known(self, bucket: str, key: str) -> set[str] | None:
        """The ids of all uploads that anybody has noted.

        None where a process that lives may be about to note one more of `key`, so that an upload of that key which is
        not among them may be its: it was asked for, and the answer is still to come, or to be noted.
        """
        found: set[str] = set()
        for run in self._runs():
            for path in _entries(run):
                try:
                    entry = _read(path)
                except (DamagedEntry, OSError):
                    unsure = True
                else:
                    unsure = entry is not None and _is_unknown(entry, bucket, key)
                    if entry is not None and entry.upload_id is not None:
                        found.add(entry.upload_id)
                if unsure and self._may_live(run, path):
                    return None
        return found

    def orphaned(self, bucket: str) -> list[JournalEntry]:
        """What is for the reaper of a bucket: what runs that have ended did not end, and what this one gave up."""
        return [entry for entry in (*self._own(), *self._others()) if entry.bucket == bucket]

    def _own(self) -> Iterator[JournalEntry]:
        for path in list(self._deferred):
            yield from self._judged(path)
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
            except OSError:  # held by a process that lives
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
            run.rmdir()  # all that can be left of one that was being forgotten
        except OSError:
            if run.exists() and run not in self._warned:
                self._warned.add(run)
                _log.warn("{run} of the upload journal has no lock: it is left alone, with what it names", run=run)

    def _runs(self) -> list[Path]:
        return sorted(self._uploads.glob("[!.]*"))

    def _may_live(self, run: Path, path: Path) -> bool:
        """Whether the process that has this entry may still be at it."""
        if run == self._run:
            return path not in self._deferred
        try:
            os.close(_lock_again(run))
        except OSError:
            return True
        return False

    def _judged(self, path: Path) -> Iterator[JournalEntry]:
        """The entry of a process that is not at it any more, if it is one. Trouble with one must not keep others."""
        try:
            if entry := _read(path):
                yield entry
            else:
                path.unlink(missing_ok=True)  # the process ended before it could ask S3 for anything
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
                "{path} is no entry of an upload journal: {error}; {trouble}", path=path, error=error, trouble=trouble
            )
        else:
            _log.error(
                "{path} is no entry of an upload journal: {error}; it is now {to}", path=path, error=error, to=to
            )


def _entries(run: Path) -> list[Path]:
    try:
        return sorted(path for path in run.iterdir() if path.name != _LOCK)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_unknown(entry: JournalEntry, bucket: str, key: str) -> bool:
    return (entry.kind, entry.bucket, entry.key, entry.upload_id) == (UPLOAD, bucket, key, None)


def _read(path: Path) -> JournalEntry | None:
    """An entry; None where there is none any more, or not even its first line is whole: S3 was not asked yet.

    Where the second line is not what it should be, the id is unknown.

    Raises:
        DamagedEntry: it is none.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    first, *more = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")] or [b""]
    if not first:
        return None
    try:
        fields = json.loads(first)
        texts = [fields["bucket"], fields["key"], fields.get("kind", UPLOAD)]
        if not all(isinstance(text, str) for text in texts) or not isinstance(fields["began"], (int, float)):
            raise TypeError("its first line has other fields")
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
    """Write a line, durably: all of it, or none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        try:
            left = memoryview(json.dumps(fields).encode("ascii") + b"\n")
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
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
    """Lock a run that was made by somebody else; a lock that is missing is not made, as its holder may live."""
    return _lock(run, flags=0)


def _forget_if_empty(run: Path) -> None:
    if [path.name for path in run.iterdir()] == [_LOCK]:
        (run / _LOCK).unlink()
        run.rmdir()
