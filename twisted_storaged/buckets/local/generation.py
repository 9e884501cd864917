"""Checks at start that an index, and its write-ahead log, belong to the files of the embedded bucket. Blocking.

The index holds a random generation and counts the starts of the daemon. The file `index.state` beside it holds the same
values, and whether a daemon has the index open. An index that is missing, empty, of another folder, older than its
files, or without its log is refused before anything relies on it: files that it does not name may be all that is left
of acknowledged objects.

Here SQLite's log is only read. SQLite reads it up to the first frame with a wrong checksum and ignores the rest without
an error. That is right after a loss of power, but hides lost commits where a bit was flipped. The wal-index (`-shm`)
counts the committed frames in shared memory, which survives a kill -9. It is updated after the fsync of a commit and
before the client gets its response, so that a commit that it does not count was never acknowledged, and may be torn.
https://sqlite.org/walformat.html
"""

from __future__ import annotations

import json
import os
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from twisted_storaged.buckets.local.index_writes import IndexWriter
from twisted_storaged.errors import StartError
from twisted_storaged.runtime.files import write_durably

#: The end of every error text of this module.
ADVICE = (
    "nothing was changed; restore the folder from a backup, or see 'Restoring the embedded bucket' in docs/buckets.md"
)


@dataclass(frozen=True)
class State:
    """The content of `index.state`.

    Attributes:
        generation: a random id, assigned when the index was created.
        starts: the number of starts of a daemon.
        boot: the kernel's boot id at the last start.
        is_open: whether a daemon has the index open, or ended without closing it.
    """

    generation: str
    starts: int
    boot: str
    is_open: bool


class Generation:
    """The file `index.state` of a data folder."""

    def __init__(self, path: Path, boot: str) -> None:
        """`path` is the data folder, `boot` the kernel's boot id."""
        self._index_path = path / "index.sqlite"
        self._path = path / "index.state"
        self._boot = boot
        self._state: State | None = None
        self._has_contents = False

    def check_files(self, has_contents: bool) -> None:
        """Check the files, before SQLite opens and changes them.

        Raises:
            StartError: they are not those that the last daemon left.
        """
        self._state = state = self._read()
        self._has_contents = has_contents
        if not self._index_path.exists():
            if state is not None or has_contents:
                raise _refused(self._index_path, "does not exist, but there are objects that it should name")
            return
        # Without either, it is what a first start left that was killed before SQLite wrote to it.
        if self._index_path.stat().st_size == 0 and (state is not None or has_contents):
            raise _refused(self._index_path, "is empty, but there are objects that it should name")
        if state is not None and state.is_open:
            self._check_wal(state)

    def _check_wal(self, state: State) -> None:
        """Check the log that a daemon leaves which ended without closing the index."""
        wal_path = self._index_path.with_name("index.sqlite-wal")
        wal = read_wal(wal_path)
        # There must be one: a daemon commits its start before it notes in `index.state` that the index is open.
        if wal is None:
            raise _refused(wal_path, "is missing, empty or damaged, but the last daemon has not closed the index")
        committed = self._committed(state, wal)
        if committed is not None and wal.frames < committed.frames:
            raise _refused(wal_path, f"is damaged: of {committed.frames} committed frames, {wal.frames} can be read")
        # All acknowledged commits are among the counted frames, so that what follows these need not be readable.
        if committed is not None and committed.is_counted:
            return
        # A loss of power can tear the last commit, which was never acknowledged. A kill -9 or a full disk can tear the
        # commit of a start.
        excused = 1 if state.boot != self._boot or committed is not None else 0
        if wal.unreadable > excused:
            raise _refused(wal_path, f"is damaged: {wal.unreadable} commits in it cannot be read")

    def _committed(self, state: State, wal: WalState) -> WalIndex | None:
        """Return what the wal-index says of this log; None if that is unknown."""
        # SQLite never syncs the wal-index, so that it proves nothing after a loss of power. https://sqlite.org/walformat.html
        if state.boot != self._boot:
            return None
        try:
            descriptor = os.open(self._index_path.with_name("index.sqlite-shm"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            committed = read_wal_index(descriptor)
        finally:
            os.close(descriptor)
        return committed if committed is not None and committed.salts == wal.salts else None

    def open(self, index: IndexWriter) -> None:
        """Compare the index with `index.state`, and count a start in both, durably.

        Raises:
            StartError: it is another index, or an older copy.
        """
        self._compare(index)
        # The index first: after a kill in between it is ahead of `index.state`, which is accepted. If it was behind, it
        # would be taken for an older copy.
        generation, starts = index.count_start()
        self._write(State(generation, starts, self._boot, is_open=True))

    def _compare(self, index: IndexWriter) -> None:
        state, (generation, starts) = self._state, index.identity()
        if state is None:
            # The folder is new, an older version wrote it, or the operator removed `index.state` to accept the index.
            if self._has_contents and index.is_empty():
                raise _refused(self._index_path, "names no object, but there are files of objects")
            return
        if generation != state.generation:
            raise _refused(self._index_path, f"is not the index of these objects: its generation is {generation!r}")
        if starts < state.starts:
            raise _refused(self._index_path, f"is an older copy, of start {starts} of {state.starts}")

    def check_prepared(self, index: IndexWriter) -> None:
        """Check that another process has prepared this index with `open`.

        Raises:
            StartError: it is another index, or `index.state` does not say that it is open.
        """
        state = self._read()
        if state is None or not state.is_open or (state.generation, state.starts) != index.identity():
            raise _refused(self._index_path, "is not the index that this daemon has started with")
        self._state = state

    def close(self) -> None:
        """Note that the index is about to be closed. After this, SQLite may remove its log."""
        if self._state is not None and self._state.is_open:
            self._write(replace(self._state, is_open=False))

    def _read(self) -> State | None:
        try:
            return State(**json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise _refused(self._path, f"is damaged: {error}") from error

    def _write(self, state: State) -> None:
        write_durably(self._path, json.dumps(asdict(state)).encode())
        self._state = state


def write_copied(path: Path, generation: str, starts: int) -> None:
    """Write the `index.state` of a backup, in which the index is closed."""
    write_durably(path / "index.state", json.dumps(asdict(State(generation, starts, "", is_open=False))).encode())


def _refused(path: Path, why: str) -> StartError:
    return StartError(f"{os.fspath(path)} {why}; {ADVICE}")


_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
#: The wal-index begins with two copies of this: changes since it was made, whether it is, page size, committed frames,
#: salts. https://sqlite.org/walformat.html#the_wal_index_file_format
_WAL_INDEX = struct.Struct("=8xIBxHI12x8s8x")
#: The first word of a log. Its lowest bit tells the byte order of its checksums.
_MAGIC = 0x377F0682


class WalState(NamedTuple):
    """The content of a log.

    Attributes:
        readable: commits that SQLite finds.
        unreadable: commits after a damaged place, which SQLite ignores.
        frames: the number of frames up to the last commit that SQLite finds.
        salts: numbers that SQLite changes each time it begins to overwrite the log.
    """

    readable: int
    unreadable: int
    frames: int
    salts: bytes


class WalIndex(NamedTuple):
    """What the wal-index says of the log.

    Attributes:
        frames: the number of committed frames.
        size: bytes of the log up to the last of these.
        salts: those of the log that it is about, as in `WalState`.
        is_counted: whether there were commits since the wal-index was created; otherwise the numbers are those that
            were found in the log then.
    """

    frames: int
    size: int
    salts: bytes
    is_counted: bool


def read_wal_index(descriptor: int) -> WalIndex | None:
    """Read the wal-index that is open as `descriptor`; None if it is incomplete, or its two copies differ.

    The caller opens it, as closing a file of SQLite's drops the locks that this process has on it. See fcntl(2)

    Raises:
        OSError: it cannot be read.
    """
    first, second = (os.pread(descriptor, _WAL_INDEX.size, at) for at in (0, _WAL_INDEX.size))
    # SQLite writes one copy after the other, so that they differ if it was killed in between.
    if len(first) < _WAL_INDEX.size or first != second:
        return None
    changes, is_made, page_size, frames, salts = _WAL_INDEX.unpack(first)
    if not is_made:
        return None
    frame_size = _FRAME.size + (65536 if page_size == 1 else page_size)  # 1, as 65536 does not fit
    return WalIndex(frames, _HEADER.size + frames * frame_size, salts, changes > 0)


def read_wal(path: Path) -> WalState | None:
    """Read the log at `path`; None if there is none, it is empty, or its header is damaged.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            magic, _, page_size, _, *salts_and_sums = _HEADER.unpack(header)
            checksum = _Checksum(bigendian=bool(magic & 1))
            checksum.add(header[:24])
            if magic & ~1 != _MAGIC or checksum.sums != tuple(salts_and_sums[2:]):
                return None
            frames = iter(lambda: file.read(_FRAME.size + page_size), b"")
            return _count(frames, tuple(salts_and_sums[:2]), checksum)
    except FileNotFoundError:
        return None


def _count(frames: Iterator[bytes], salts: tuple[int, ...], checksum: _Checksum) -> WalState:
    """Count the commits up to the first invalid frame, and those after it that have the salts of this log.

    Frames with other salts are left over from before SQLite began to overwrite the log.
    """
    readable = unreadable = last = 0
    intact = True
    for number, frame in enumerate(frames, 1):
        if len(frame) < _FRAME.size:
            break
        _, pages, *frame_salts, sum1, sum2 = _FRAME.unpack_from(frame)
        is_current = tuple(frame_salts) == salts
        if intact:
            checksum.add(frame[:8])
            checksum.add(frame[_FRAME.size :])
            intact = is_current and checksum.sums == (sum1, sum2)
        # The last frame of a transaction has the number of pages of the database, others have 0.
        if is_current and pages:
            if intact:
                readable, last = readable + 1, number
            else:
                unreadable += 1
    return WalState(readable, unreadable, last, struct.pack(">2I", *salts))


class _Checksum:
    """The cumulative checksum of a log, over pairs of 32-bit words."""

    def __init__(self, bigendian: bool) -> None:
        self._swap = bigendian != (sys.byteorder == "big")
        self.sums = (0, 0)

    def add(self, data: bytes) -> None:
        """Add bytes, in multiples of 8; an incomplete rest, of a truncated frame, is ignored."""
        words = array("I", data[: len(data) // 8 * 8])
        if self._swap:
            words.byteswap()
        sum1, sum2 = self.sums
        pairs = iter(words)
        for first, second in zip(pairs, pairs, strict=True):
            sum1 = (sum1 + first + sum2) & 0xFFFFFFFF
            sum2 = (sum2 + second + sum1) & 0xFFFFFFFF
        self.sums = sum1, sum2
