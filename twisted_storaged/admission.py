"""Put slots: a limit on concurrent PUTs. A request beyond it is refused at once; there is no queue.

`PutSlots` counts the slots of one process; `SharedPutSlots` are those of several processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from math import ceil
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from twisted_storaged.errors import NoFreeSlot
from twisted_storaged.runtime.files import FLOCK, lock_byte

_log = Logger()

DEFAULT_PUT_SLOTS = 4
#: Seconds after which a refused client is to try again, by default.
DEFAULT_RETRY_AFTER = 5
#: The same, in seconds, if they are computed: the least and the most.
MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1, 60

#: The weight of the last PUT in the mean time for which slots are held.
_WEIGHT = 0.2

#: A region is so large that no process could hold all slots in it, and a hash of this many bytes tells one region from
#: another: that two of 100 prefixes have the same region, hence share their limits, is less likely than 10**-8. Offsets
#: are less than 2**63.
_REGION_SIZE = 1 << 22
_HASH_SIZE = 5


class PutSlot:
    """A slot that is taken.

    Attributes:
        prefix: of the keys that it counts for.
        since: when it was taken, by the clock of its PutSlots.
        locks: the bytes that are locked for it, if several processes share the slots.
        holder: the request that it was taken for, as its handler sets it.
    """

    __slots__ = ("_returned", "_taken", "holder", "locks", "prefix", "since")

    def __init__(
        self,
        prefix: str,
        since: float,
        taken: set[PutSlot],
        returned: Callable[[PutSlot], None],
        locks: tuple[int, ...] = (),
    ) -> None:
        """Join the slots that are `taken`; `returned` is called once the slot has left them."""
        self.prefix = prefix
        self.since = since
        self.locks = locks
        self.holder: Any = None
        self._taken = taken
        self._returned = returned
        taken.add(self)

    def release(self) -> None:
        """Return the slot. Raises KeyError if it was returned before."""
        self._taken.remove(self)
        self._returned(self)


class PutSlots:
    """A counting semaphore whose `acquire` never waits.

    Attributes:
        limit: the number of slots.
    """

    def __init__(
        self,
        limit: int = DEFAULT_PUT_SLOTS,
        retry_after: int | None = DEFAULT_RETRY_AFTER,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Let refused clients try again after `retry_after` seconds; None: after an estimate of when a slot is free."""
        self.limit = limit
        self._retry_after = retry_after
        self._clock = clock
        self._jitter = jitter
        self._taken: set[PutSlot] = set()
        self._idle: list[Deferred[None]] = []
        #: The mean seconds for which the last slots were held.
        self._mean = 0.0
        #: Refused clients for which no slot has become free since: by the prefix whose limit refused them, or None.
        self._refused: dict[str | None, int] = {}

    @property
    def taken(self) -> int:
        """The number of slots that this process holds."""
        return len(self._taken)

    @property
    def holders(self) -> list[Any]:
        """The requests that hold slots of this process."""
        return [slot.holder for slot in self._taken if slot.holder is not None]

    @property
    def free(self) -> int:
        """The number of slots that nobody holds."""
        return self.limit - len(self._taken)

    def acquire(self, prefix: str = "", limit: int | None = None) -> PutSlot:
        """Take a slot for a key under `prefix`, whose keys may hold at most `limit` of the slots (None: all).

        Raises:
            NoFreeSlot: all are taken, or as many as keys under `prefix` may hold.
        """
        if len(self._taken) == self.limit:
            raise self._all_taken()
        if limit is not None and len(self._held(prefix)) >= limit:
            raise self._all_taken(prefix, limit)
        return PutSlot(prefix, self._clock(), self._taken, self._returned)

    def when_idle(self) -> Deferred[None]:
        """Return a Deferred that fires as soon as this process holds no slot."""
        if not self._taken:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle

    def _returned(self, slot: PutSlot) -> None:
        """Note that a slot is free again."""
        self._mean += _WEIGHT * (self._clock() - slot.since - self._mean)
        for refuser in (None, slot.prefix):
            if self._refused.get(refuser):
                self._refused[refuser] -= 1
        if not self._taken:
            self._refused.clear()
            # Replaced first: a callback may call `when_idle` again.
            waiting, self._idle = self._idle, []
            for idle in waiting:
                idle.callback(None)

    def _held(self, prefix: str | None) -> set[PutSlot]:
        """The slots that keys under `prefix` hold in this process; None: all keys."""
        return self._taken if prefix is None else {slot for slot in self._taken if slot.prefix == prefix}

    def _all_taken(self, prefix: str | None = None, limit: int | None = None) -> NoFreeSlot:
        """Return the error for a client that the `limit` of a prefix refused, or that of all slots."""
        which = f"all {self.limit} put slots" if prefix is None else f"all {limit} put slots for keys under {prefix!r}"
        seconds = self._estimate(prefix) if self._retry_after is None else self._retry_after
        return NoFreeSlot(f"{which} are taken", seconds)

    def _estimate(self, refuser: str | None) -> int:
        """Estimate in how many seconds there is a slot for a client that was refused now."""
        held = self._held(refuser)
        if held:
            # As if the refused clients stood in a queue, so that they do not all come back at once: this one is free
            # when as many slots have been released as clients were refused before it. Slots that are held for longer
            # than the mean of those before say more than that mean. If other processes hold slots as well, they have
            # their share of the refused clients, too.
            refused = self._refused[refuser] = self._refused.get(refuser, 0) + 1
            now = self._clock()
            mean = max(self._mean, sum(now - slot.since for slot in held) / len(held))
            seconds = mean / len(held) * refused
        else:
            # Others hold all. There is no queue either, since no release of this process would shorten it.
            seconds = self._mean or DEFAULT_RETRY_AFTER
        return ceil(min(max(self._jitter(0.5, 1.5) * seconds, MIN_RETRY_AFTER), MAX_RETRY_AFTER))


def make_slots_file() -> int:
    """Make the file that `SharedPutSlots` of several processes lock; returns its descriptor. Raises OSError.

    It is in memory, exists for as long as a process has it open, and is empty: bytes can be locked that do not exist.
    """
    return os.memfd_create("put-slots", os.MFD_CLOEXEC)


class SharedPutSlots(PutSlots):
    """Slots that several processes share, with one instance in each; `acquire` never waits either.

    A slot is a lock on one byte of a file: an open file description lock, see fcntl(2). The kernel releases those of a
    process that ends, however it ends. The first `limit` bytes are the slots. A prefix with a limit of its own has a
    region of as many bytes elsewhere, one of which is locked in addition. Which region it is depends on the prefix
    alone, so that processes with different rules agree. Processes with different limits try the same bytes, and the
    larger limit holds for all of them together.
    """

    def __init__(
        self,
        descriptor: int,
        limit: int = DEFAULT_PUT_SLOTS,
        retry_after: int | None = DEFAULT_RETRY_AFTER,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Open the file of `make_slots_file` anew, whose `descriptor` may be closed afterwards. Raises OSError."""
        super().__init__(limit, retry_after, clock, jitter)
        # Locks belong to the open file description, which processes that inherit a descriptor share.
        self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        #: The bytes that are locked here: the kernel would let the same description lock them again.
        self._locked: set[int] = set()
        #: The bytes of each region that were unlocked here, the latest last.
        self._unlocked: dict[int, list[int]] = {}

    def close(self) -> None:
        """Close the file, which frees the slots that are still held. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            # The number may belong to another file now.
            self._descriptor = -1

    @property
    def free(self) -> int:
        """The number of slots that nobody holds. Raises OSError."""
        return sum(byte not in self._locked and not self._is_locked_elsewhere(byte) for byte in range(self.limit))

    def acquire(self, prefix: str = "", limit: int | None = None) -> PutSlot:
        """Take a slot: see `PutSlots.acquire`.

        Raises:
            NoFreeSlot: all are taken, or as many as keys under `prefix` may hold, or the kernel lacks memory for locks.
            OSError: the file cannot be locked at all.
        """
        locks: list[int] = []
        try:
            # This order, since a slot that is taken and given back could make another process refuse any client.
            if limit is not None and not self._lock_one(_region(prefix), limit, locks):
                raise self._all_taken(prefix, limit)
            if not self._lock_one(0, self.limit, locks):
                raise self._all_taken()
        except BaseException:
            self._unlock(locks)
            raise
        return PutSlot(prefix, self._clock(), self._taken, self._unlock_returned, tuple(locks))

    def _unlock_returned(self, slot: PutSlot) -> None:
        self._unlock(slot.locks)
        self._returned(slot)

    def _lock_one(self, first: int, count: int, locks: list[int]) -> bool:
        """Lock one of `count` bytes from `first` on, and add it to `locks`; False if all are locked."""
        # First those that were unlocked here. So each process stays with its own, and one attempt is mostly enough: all
        # the attempts at 64 slots would cost as much as the rest of a PUT.
        unlocked = self._unlocked.setdefault(first // _REGION_SIZE, [])
        while unlocked:
            byte = unlocked.pop()
            if byte < first + count and self._lock(byte, locks):
                return True
        return any(self._lock(byte, locks) for byte in range(first, first + count))

    def _lock(self, byte: int, locks: list[int]) -> bool:
        if byte in self._locked or not self._try_lock(byte):
            return False
        self._locked.add(byte)
        locks.append(byte)
        return True

    def _try_lock(self, byte: int) -> bool:
        try:
            lock_byte(self._descriptor, fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno != errno.ENOLCK:
                raise
            # Temporary, as a lack of slots is.
            _log.error("a PUT is refused, as the kernel cannot lock its slot: {error}", error=error)
            reason = "no put slot can be locked"
            raise NoFreeSlot(reason, self._retry_after or DEFAULT_RETRY_AFTER) from error
        return True

    def _is_locked_elsewhere(self, byte: int) -> bool:
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, *_ = FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)

    def _unlock(self, locks: Iterable[int]) -> None:
        for byte in locks:
            # First: if it stays locked, `acquire` can at least take it again here.
            self._locked.remove(byte)
            self._unlocked[byte // _REGION_SIZE].append(byte)
            try:
                lock_byte(self._descriptor, fcntl.F_UNLCK, byte)
            # Not raised: the PUT has its result, and other bytes are to be unlocked.
            except OSError as error:
                _log.error("a put slot stays taken for other processes until it is used again: {error}", error=error)


def _region(prefix: str) -> int:
    """The first byte of the region of a prefix, beyond the slots themselves."""
    digest = blake2b(prefix.encode(), digest_size=_HASH_SIZE).digest()
    return (1 + int.from_bytes(digest)) * _REGION_SIZE
