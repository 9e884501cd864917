"""The model of what a key may hold, with which each read and each audit is compared.

Each key is a register that several clients write and read concurrently. A write that was acknowledged has taken place
between its beginning and its end. One that was not may have taken place before it was given up, or not at all.
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

#: Period of a content in bytes: a prime, so that no part of an object equals another.
_PERIOD = 65_521


class Version(NamedTuple):
    """The content of one PUT: bytes that depend only on its number and its size."""

    number: int
    size: int

    def content(self) -> bytes:
        """The bytes."""
        period = shake_128(b"%d %d" % self).digest(min(_PERIOD, self.size))
        return (period * (self.size // _PERIOD + 1))[: self.size]


#: The state of a key; None means that there is no object.
State = Version | None


@dataclass(eq=False)
class Write:
    """A PUT or a DELETE; beginning and end are times of the model's own clock."""

    state: State
    begin: float
    end: float = math.inf
    answered: bool = False


@dataclass
class _Key:
    writes: list[Write] = field(default_factory=lambda: [Write(None, -1, -1, True)])
    reads: list[float] = field(default_factory=list)


class Model:
    """The possible states of all keys; at first, none has an object."""

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
        """A new version of this size."""
        version = Version(next(self._numbers), size)
        with self._lock:
            self._versions[size].append(version)
        return version

    def is_whole(self, content: bytes) -> bool:
        """Whether these bytes are a complete version of any key."""
        return any(version.content() == content for version in list(self._versions[len(content)]))

    def begin(self, key: str, state: State) -> Write:
        """Begin a write: from now on, the key may have this state."""
        with self._lock:
            write = Write(state, next(self._clock))
            self._keys[key].writes.append(write)
            return write

    def answered(self, key: str, write: Write) -> None:
        """Record that a write was acknowledged: the states from before it began are impossible now."""
        with self._lock:
            write.end, write.answered = next(self._clock), True
            self._forget(self._keys[key])

    def given_up(self, write: Write) -> None:
        """Record that a write without an answer has taken place by now, or never will."""
        with self._lock:
            write.end = next(self._clock)

    def refused(self, key: str, write: Write) -> None:
        """Record that a write has not taken place."""
        with self._lock:
            self._keys[key].writes.remove(write)

    def found(self, key: str, state: State) -> None:
        """Record what was found while nobody wrote: it is the only possible state now."""
        with self._lock:
            self._keys[key].writes = [Write(state, next(self._clock), next(self._clock), True)]

    @contextmanager
    def reading(self, key: str) -> Iterator[float]:
        """Keep all states that a read which begins now may find; yields the time of its beginning."""
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
    """The writes without those that ended before another one began which was acknowledged before `since`."""
    latest = max((write.begin for write in writes if write.answered and write.end < since), default=-math.inf)
    return [write for write in writes if write.end >= latest]
