"""Whether the index of an embedded bucket is the one that its files belong to. Blocking.

The index holds a random generation and counts the starts of the daemon; the file `index.state` beside it holds the
same, and whether a daemon has the index open. Both are written at every start. So an index that is missing, empty, of
another folder, older than its files, or without its write-ahead log is recognised before anything goes by what it says,
and refused: files that it does not name any more may be all that is left of acknowledged objects.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from twisted_storaged.buckets.index import Index
from twisted_storaged.buckets.private import write_durably
from twisted_storaged.buckets.wal import Committed, WalState, read_wal, read_wal_index
from twisted_storaged.errors import StartError

#: What every refusal ends with.
ADVICE = "nothing was changed; restore the folder from a backup, or see 'Restoring the embedded bucket' in README.md"


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

    def _committed(self, state: State, wal: WalState) -> Committed | None:
        """What the wal-index says of this log, if no loss of power came between."""
        if state.boot != self._boot:
            return None
        committed = read_wal_index(self._index_path.with_name("index.sqlite-shm"))
        return committed if committed is not None and committed.salts == wal.salts else None

    def open(self, index: Index) -> None:
        """Compare the index with the file, and note in both that a daemon has started on it. Durable when it returns.

        Raises:
            StartError: the index is another one, or an older copy.
        """
        self._compare(index)
        generation, starts = index.count_start()
        self._write(State(generation, starts, self._boot, is_open=True))

    def _compare(self, index: Index) -> None:
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
