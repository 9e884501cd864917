"""What a key may have: the model that every read, and every audit, is held against.

Each key is a register that several clients write and read at the same time. A write that was answered has taken
place between its beginning and its end. One that was not answered may have, until it was given up, or not at all.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import shake_128
from itertools import count
from typing import NamedTuple

#: Bytes after which a content repeats: a prime, so that no part of an object is like that of another at its place.
_PERIOD = 65_521


class Version(NamedTuple):
    """What one PUT stores: bytes that are a function of its number and its size, and of nothing else."""

    number: int
    size: int

    def content(self) -> bytes:
        """All of its bytes."""
        period = shake_128(b"%d %d" % self).digest(min(_PERIOD, self.size))
        return (period * (self.size // _PERIOD + 1))[: self.size]


#: What a key may have; None is no object.
State = Version | None


@dataclass(eq=False)
class Write:
    """A PUT or a DELETE; beginning and end are of the model's own clock."""

    state: State
    begin: float
    end: float = math.inf
    answered: bool = False


@dataclass
class _Key:
    writes: list[Write] = field(default_factory=lambda: [Write(None, -1, -1, True)])
    reads: list[float] = field(default_factory=list)


class Model:
    """All keys, from when none of them had an object."""

    def __init__(self) -> None:
        self._keys: defaultdict[str, _Key] = defaultdict(_Key)
        self._versions: defaultdict[int, list[Version]] = defaultdict(list)
        self._lock = threading.Lock()
        self._clock = count()
        self._numbers = count(1)

    def keys(self) -> list[str]:
        """All keys that were ever written."""
        with self._lock:
            return sorted(self._keys)

    def new_version(self, size: int) -> Version:
        """A version of so many bytes that was never put before."""
        version = Version(next(self._numbers), size)
        with self._lock:
            self._versions[size].append(version)
        return version

    def is_whole(self, content: bytes) -> bool:
        """Whether it is a version that was put at some time, under whatever key."""
        return any(version.content() == content for version in list(self._versions[len(content)]))

    def begin(self, key: str, state: State) -> Write:
        """From here on, the key may have this state."""
        with self._lock:
            write = Write(state, next(self._clock))
            self._keys[key].writes.append(write)
            return write

    def answered(self, key: str, write: Write) -> None:
        """It has taken place: what was there before it began is there no more."""
        with self._lock:
            write.end, write.answered = next(self._clock), True
            self._forget(self._keys[key])

    def given_up(self, write: Write) -> None:
        """It has taken place by now, or never will."""
        with self._lock:
            write.end = next(self._clock)

    def refused(self, key: str, write: Write) -> None:
        """It has not taken place."""
        with self._lock:
            self._keys[key].writes.remove(write)

    def found(self, key: str, state: State) -> None:
        """While nobody wrote, this was found: from here on it is the only possible state."""
        with self._lock:
            self._keys[key].writes = [Write(state, next(self._clock), next(self._clock), True)]

    @contextmanager
    def reading(self, key: str) -> Iterator[float]:
        """While this lasts, no state is forgotten that a read which began now may find; gives when that was."""
        with self._lock:
            since = next(self._clock)
            self._keys[key].reads.append(since)
        try:
            yield since
        finally:
            with self._lock:
                self._keys[key].reads.remove(since)

    def possible(self, key: str, since: float = math.inf) -> set[State]:
        """The states that a read may find which began at `since` and ends now."""
        with self._lock:
            return {write.state for write in _possible(self._keys[key].writes, since)}

    def _forget(self, key: _Key) -> None:
        key.writes = list(_possible(key.writes, min(key.reads, default=math.inf)))


def _possible(writes: list[Write], since: float) -> Iterable[Write]:
    """All but those after whose end another began that was answered before `since`."""
    latest = max((write.begin for write in writes if write.answered and write.end < since), default=-math.inf)
    return [write for write in writes if write.end >= latest]
