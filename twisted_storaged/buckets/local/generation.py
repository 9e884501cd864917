"""Whether an index, and its write-ahead log, are those that the files of an embedded bucket belong to. Blocking."""

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

# Whether the index of an embedded bucket is the one that its files belong to. Blocking.
#
# The index holds a random generation and counts the starts of the daemon; the file `index.state` beside it holds the
# same, and whether a daemon has the index open. Both are written at every start. So an index that is missing, empty,
# of another folder, older than its files, or without its write-ahead log is recognised before anything goes by what
# it says, and refused: files that it does not name any more may be all that is left of acknowledged objects.

#: What every refusal ends with.
ADVICE = (
    "nothing was changed; restore the folder from a backup, or see 'Restoring the embedded bucket' in docs/buckets.md"
)


@dataclass(frozen=True)
class State:
    """What `index.state` says.

    Attributes:
        generation: a random name, given to the index when it was made.
        starts: how often a daemon has started on it.
        boot: the kernel's boot id at the last start.
        is_open: whether a daemon has it open, or has not closed it before it ended.
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
        """Look at the files, before SQLite opens them and changes them.

        Raises:
            StartError: they are not what the last daemon left.
        """
        self._state = state = self._read()
        self._has_contents = has_contents
        if not self._index_path.exists():
            if state is not None or has_contents:
                raise _refused(self._index_path, "does not exist, but there are objects that it named")
            return
        if self._index_path.stat().st_size == 0 and (state is not None or has_contents):
            raise _refused(self._index_path, "is empty, but there are objects that it named")
        if state is not None and state.is_open:
            self._check_wal(state)

    def _check_wal(self, state: State) -> None:
        """A daemon that ended without closing the index leaves a log, with at least the commit of its start."""
        wal_path = self._index_path.with_name("index.sqlite-wal")
        wal = read_wal(wal_path)
        if wal is None:
            raise _refused(wal_path, "is missing, empty or damaged, but the last daemon has not closed the index")
        committed = self._committed(state, wal)
        if committed is not None and wal.frames < committed.frames:
            raise _refused(wal_path, f"is damaged: of {committed.frames} committed frames, {wal.frames} can be read")
        if committed is not None and committed.is_counted:
            return
        # The machine may lose its power while the last commit is on its way to the disk, and with it any part of that
        # commit; whoever asked for it got no answer. A kill -9 or a full disk can leave the one of a start so.
        excused = 1 if state.boot != self._boot or committed is not None else 0
        if wal.unreadable > excused:
            raise _refused(wal_path, f"is damaged: {wal.unreadable} commits in it cannot be read")

    def _committed(self, state: State, wal: WalState) -> WalIndex | None:
        """What the wal-index says of this log, if no loss of power came between."""
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
        """Compare the index with the file, and note in both that a daemon has started on it. Durable when it returns.

        Raises:
            StartError: the index is another one, or an older copy.
        """
        self._compare(index)
        generation, starts = index.count_start()
        self._write(State(generation, starts, self._boot, is_open=True))

    def _compare(self, index: IndexWriter) -> None:
        state, (generation, starts) = self._state, index.identity()
        if state is None:
            if self._has_contents and index.is_empty():
                raise _refused(self._index_path, "names no object, but there are files of objects")
            return
        if generation != state.generation:
            raise _refused(self._index_path, f"is not the index of these objects: its generation is {generation!r}")
        if starts < state.starts:
            raise _refused(self._index_path, f"is an older copy, of start {starts} of {state.starts}")

    def close(self) -> None:
        """Note that the index will be closed now. After this, SQLite may remove its log."""
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
    """Write `index.state` of a copy of a data folder, in which the index is closed."""
    write_durably(path / "index.state", json.dumps(asdict(State(generation, starts, "", is_open=False))).encode())


def _refused(path: Path, why: str) -> StartError:
    return StartError(f"{os.fspath(path)} {why}; {ADVICE}")


# SQLite's write-ahead log as a file: whether it holds commits that SQLite would pass over.
#
# SQLite reads its log up to the first frame whose checksum is wrong, and says nothing of what comes after: that is
# right where the machine lost its power while it wrote, and hides lost commits where a bit was flipped. This module
# reads and changes nothing. https://sqlite.org/walformat.html
#
# The wal-index beside it (`-shm`) counts the frames that were committed. It is memory that is shared, so that it
# outlives a kill -9, and it is written after the fsync of a commit and before anybody is told of it. Until the
# machine loses its power it is exact: a commit that it does not count was answered to nobody, and may be torn.

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
#: The wal-index begins with two copies of this: changes since it was made, whether it is, page size, committed frames,
#: salts. https://sqlite.org/walformat.html#the_wal_index_file_format
_WAL_INDEX = struct.Struct("=8xIBxHI12x8s8x")
#: The first word of a log; its lowest bit tells the byte order that checksums are computed in.
_MAGIC = 0x377F0682


class WalState(NamedTuple):
    """What a log holds: commits that SQLite will find, and commits behind a damaged place, which it will not."""

    readable: int
    unreadable: int
    #: The number of frames up to the last commit that SQLite will find.
    frames: int
    #: What tells this round of the log from others.
    salts: bytes


class WalIndex(NamedTuple):
    """What the wal-index says of the log.

    Attributes:
        frames: how many frames of the log are committed.
        size: bytes of the log up to the last of these.
        salts: which round of the log it is about, as in `WalState`.
        is_counted: whether there were commits since the wal-index was made; else the number is what was found in the
            log then.
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
    if len(first) < _WAL_INDEX.size or first != second:
        return None
    changes, is_made, page_size, frames, salts = _WAL_INDEX.unpack(first)
    if not is_made:
        return None
    frame_size = _FRAME.size + (65536 if page_size == 1 else page_size)  # 1, as 65536 does not fit
    return WalIndex(frames, _HEADER.size + frames * frame_size, salts, changes > 0)


def read_wal(path: Path) -> WalState | None:
    """What the log at `path` holds; None if there is none, it is empty, or its header is damaged.

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
    """Count the commits up to the first frame that is not valid, and those after it that were written by the same log:
    what an earlier round of it left behind has other salts.
    """
    readable = unreadable = last = 0
    intact = True
    for number, frame in enumerate(frames, 1):
        if len(frame) < _FRAME.size:
            break
        _, pages, *frame_salts, sum1, sum2 = _FRAME.unpack_from(frame)
        ours = tuple(frame_salts) == salts
        if intact:
            checksum.add(frame[:8])
            checksum.add(frame[_FRAME.size :])
            intact = ours and checksum.sums == (sum1, sum2)
        # A frame that ends a transaction tells how many pages the database then has.
        if ours and pages:
            if intact:
                readable, last = readable + 1, number
            else:
                unreadable += 1
    return WalState(readable, unreadable, last, struct.pack(">2I", *salts))


class _Checksum:
    """The running checksum of a log, over pairs of 32-bit words."""

    def __init__(self, bigendian: bool) -> None:
        self._swap = bigendian != (sys.byteorder == "big")
        self.sums = (0, 0)

    def add(self, data: bytes) -> None:
        """Take in bytes, whose number is a multiple of 8 (of a frame that is cut short, those that fit)."""
        words = array("I", data[: len(data) // 8 * 8])
        if self._swap:
            words.byteswap()
        sum1, sum2 = self.sums
        pairs = iter(words)
        for first, second in zip(pairs, pairs, strict=True):
            sum1 = (sum1 + first + sum2) & 0xFFFFFFFF
            sum2 = (sum2 + second + sum1) & 0xFFFFFFFF
        self.sums = sum1, sum2
