"""Put slots, of one process and of several."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from tests.support import result
from twisted_storaged import admission
from twisted_storaged.admission import (
    DEFAULT_PUT_SLOTS,
    DEFAULT_RETRY_AFTER,
    MAX_RETRY_AFTER,
    MIN_RETRY_AFTER,
    PutSlot,
    PutSlots,
    SharedPutSlots,
    make_slots_file,
)
from twisted_storaged.errors import NoFreeSlot

#: Makes slots of either kind: the arguments are those of PutSlots.
Make = Callable[..., PutSlots]


@pytest.fixture
def file() -> Iterator[int]:
    """The descriptor of a file of slots."""
    descriptor = make_slots_file()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def share(file: int) -> Iterator[Callable[..., SharedPutSlots]]:
    """Makes slots that stand for those of one process each, and share one file."""
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(closing(SharedPutSlots(file, *args)))


@pytest.fixture(params=["one process", "shared"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes slots of each kind, and one instance of them."""
    made: Make = PutSlots if request.param == "one process" else request.getfixturevalue("share")
    return made


class PutSlotsTests:
    """The limit on concurrent PUTs."""

    def test_four_by_default(self, make: Make) -> None:
        """The fifth concurrent PUT is refused at once, and is to try again after 5 seconds."""
        slots = make()
        for _ in range(DEFAULT_PUT_SLOTS):
            slots.acquire()
        with pytest.raises(NoFreeSlot) as caught:
            slots.acquire()
        assert (DEFAULT_PUT_SLOTS, caught.value.retry_after) == (4, 5)

    def test_a_slot_that_is_returned_is_free(self, make: Make) -> None:
        """A released slot can be acquired again."""
        slots = make(1)
        slots.acquire().release()
        slots.acquire()
        assert slots.free == 0

    def test_a_slot_is_returned_once(self, make: Make) -> None:
        """Releasing a slot twice is an error, as it would raise the limit."""
        slots = make(2)
        slots.acquire()
        slot = slots.acquire()
        slot.release()
        with pytest.raises(KeyError):
            slot.release()
        assert slots.free == 1

    def test_idle_when_all_are_back(self, make: Make) -> None:
        """`when_idle` fires when all slots are free, which a daemon that stops waits for."""
        slots = make(2)
        result(slots.when_idle())
        first, second = slots.acquire(), slots.acquire()
        idle = slots.when_idle()
        first.release()
        assert not idle.called
        second.release()
        result(idle)


class PrefixTests:
    """The limit on the slots that the keys under one prefix may hold."""

    def test_others_find_a_free_slot(self, make: Make) -> None:
        """Keys under a limited prefix are refused although slots are free, and others are not."""
        slots = make(4)
        held = [slots.acquire("_vectors/", 2) for _ in range(2)]
        with pytest.raises(NoFreeSlot, match=r"^all 2 put slots for keys under '_vectors/' are taken$"):
            slots.acquire("_vectors/", 2)
        slots.acquire("", None)
        held[0].release()
        slots.acquire("_vectors/", 2)
        assert slots.free == 1

    def test_others_may_take_all(self, make: Make) -> None:
        """A limit reserves nothing for its own prefix: if others hold all slots, its keys are refused as well."""
        slots = make(2)
        slots.acquire()
        slots.acquire()
        with pytest.raises(NoFreeSlot, match=r"^all 2 put slots are taken$"):
            slots.acquire("_vectors/", 1)


def estimating(make: Make, clock: Clock, limit: int = 4) -> PutSlots:
    """Make slots that estimate, without jitter."""
    return make(limit, None, clock.seconds, lambda least, most: (least + most) / 2)


def refused(slots: PutSlots) -> int:
    """The Retry-After of a PUT that is refused."""
    with pytest.raises(NoFreeSlot) as caught:
        slots.acquire()
    return caught.value.retry_after


class EstimateTests:
    """Retry-After, if it is computed."""

    def test_how_fast_slots_became_free(self, make: Make) -> None:
        """The estimate follows how long slots are held, divided by their number."""
        clock = Clock()
        slots = estimating(make, clock)
        for _ in range(40):
            held = [slots.acquire() for _ in range(4)]
            clock.advance(40)
            for slot in held:
                slot.release()
        for _ in range(4):
            slots.acquire()
        assert refused(slots) == 10

    def test_refused_clients_do_not_come_back_together(self, make: Make) -> None:
        """Each client that is refused is to wait for one slot more than the one before, until slots become free."""
        clock = Clock()
        slots = estimating(make, clock)
        held = [slots.acquire() for _ in range(4)]
        clock.advance(8)
        assert [refused(slots) for _ in range(4)] == [2, 4, 6, 8]
        for slot in held[:3]:
            slot.release()
        for _ in range(3):
            slots.acquire()
        # One of the four is still waiting. The held slots are younger now, but those before were held for 8 s.
        assert refused(slots) in (2, 4)

    def test_refusals_of_a_prefix(self, make: Make) -> None:
        """Clients that the limit of a prefix refused do not lengthen the wait of others, nor do those of earlier."""
        clock = Clock()
        slots = estimating(make, clock)
        held = slots.acquire("a/", 1)
        clock.advance(8)
        for _ in range(9):
            with pytest.raises(NoFreeSlot):
                slots.acquire("a/", 1)
        others = [slots.acquire() for _ in range(3)]
        assert refused(slots) == 1
        for slot in (held, *others):
            slot.release()
        slots.acquire("a/", 1)
        with pytest.raises(NoFreeSlot) as caught:
            slots.acquire("a/", 1)
        assert caught.value.retry_after <= 8

    def test_slots_that_are_held_for_long(self, make: Make) -> None:
        """If the slots have been held for longer than those before, the estimate follows their age."""
        clock = Clock()
        slots = estimating(make, clock)
        slots.acquire().release()
        for _ in range(4):
            slots.acquire()
        clock.advance(80)
        assert refused(slots) == 20

    @given(st.lists(st.sampled_from(["take", "give", "wait"]), max_size=60), st.floats(0.5, 1.5))
    def test_bounds(self, steps: list[str], jitter: float) -> None:
        """Whatever has happened, the estimate is a whole number of seconds within its bounds."""
        clock = Clock()
        slots = PutSlots(2, None, clock.seconds, lambda *_: jitter)
        held: list[PutSlot] = []
        for step in steps:
            if step == "wait":
                clock.advance(7)
            elif step == "give" and held:
                held.pop().release()
            elif step == "take":
                try:
                    held.append(slots.acquire())
                except NoFreeSlot as error:
                    seconds: Any = error.retry_after
                    assert isinstance(seconds, int)
                    assert MIN_RETRY_AFTER <= seconds <= MAX_RETRY_AFTER

    def test_jitter(self) -> None:
        """Without a given jitter, refused clients are told different times."""
        clock = Clock()
        told = set()
        for _ in range(40):
            slots = PutSlots(1, None, clock.seconds)
            slots.acquire()
            clock.advance(30)
            told.add(refused(slots))
        assert len(told) > 5
        assert max(told) <= 45


class SharedTests:
    """Slots that several processes share; each instance opens the file anew, as a process does."""

    def test_all_processes_together(self, share: Callable[..., SharedPutSlots]) -> None:
        """What one process holds is taken for all, and `free` and `taken` say so."""
        first, second = share(2), share(2)
        slot = first.acquire()
        assert [(slots.free, slots.taken) for slots in (first, second)] == [(1, 1), (1, 0)]
        second.acquire()
        for slots in (first, second):
            with pytest.raises(NoFreeSlot, match=r"^all 2 put slots are taken$"):
                slots.acquire()
        assert first.free == second.free == 0
        slot.release()
        second.acquire()
        assert (first.taken, second.taken) == (0, 2)

    def test_a_prefix(self, share: Callable[..., SharedPutSlots]) -> None:
        """The limit of a prefix holds for all processes together, and each prefix has its own."""
        first, second = share(4), share(4)
        slot = first.acquire("a/", 1)
        with pytest.raises(NoFreeSlot, match=r"^all 1 put slots for keys under 'a/' are taken$"):
            second.acquire("a/", 1)
        second.acquire("b/", 1)
        slot.release()
        second.acquire("a/", 1)
        assert first.free == 2

    def test_a_refused_prefix_keeps_nothing(self, share: Callable[..., SharedPutSlots]) -> None:
        """A client that is refused as all slots are taken gives back that of its prefix, which others can use then."""
        first, second, third = share(2), share(2), share(2)
        slots = [first.acquire(), first.acquire()]
        for _ in range(2):
            with pytest.raises(NoFreeSlot, match=r"^all 2 put slots are taken$"):
                second.acquire("a/", 1)
        slots[0].release()
        third.acquire("a/", 1)

    def test_different_limits(self, share: Callable[..., SharedPutSlots]) -> None:
        """While old and new workers have different limits, the larger ones hold for all of them together."""
        old, new = share(2), share(3)
        slots = [old.acquire("a/", 1), new.acquire("a/", 2), new.acquire()]
        assert (old.free, new.free) == (0, 0)
        for one, limit in ((old, 1), (new, 2)):
            with pytest.raises(NoFreeSlot):
                one.acquire("a/", limit)
        slots[0].release()
        # The old worker may have its slot again, and the new one cannot take it as well.
        old.acquire("a/", 1)
        with pytest.raises(NoFreeSlot):
            new.acquire()

    def test_each_stays_with_its_slots(self, share: Callable[..., SharedPutSlots]) -> None:
        """A process takes the slot again that it returned, though others are free: to find those costs more."""
        one, other = share(), share()
        held = [other.acquire(), other.acquire()]
        slot = one.acquire()
        for each in (*held, slot):
            each.release()
        assert one.acquire().locks == slot.locks

    def test_idle_is_of_one_process(self, share: Callable[..., SharedPutSlots]) -> None:
        """A worker that stops waits for its own PUTs only, whose slots others can take when it is told."""
        first, second = share(1), share(1)
        result(first.when_idle())
        slot = first.acquire()
        idle = first.when_idle()
        result(second.when_idle())
        idle.addCallback(lambda _: second.acquire())
        slot.release()
        result(idle)

    def test_its_own_file(self, share: Callable[..., SharedPutSlots]) -> None:
        """A process that is started inherits no descriptor, so that it cannot keep slots; closing twice is harmless."""
        slots = share(1)
        assert not os.get_inheritable(slots._descriptor)
        slots.acquire()
        slots.close()
        slots.close()
        assert share(1).free == 1


class RetryTests:
    """Retry-After of shared slots: what other processes hold is not known."""

    def estimating(self, share: Callable[..., SharedPutSlots], clock: Clock) -> list[PutSlots]:
        return [estimating(share, clock) for _ in range(2)]

    def test_others_hold_all(self, share: Callable[..., SharedPutSlots]) -> None:
        """A process that holds nothing says how long it held slots before or, if it never did, the default."""
        clock = Clock()
        first, second = self.estimating(share, clock)
        for _ in range(4):
            first.acquire()
        assert [refused(second) for _ in range(3)] == [DEFAULT_RETRY_AFTER] * 3
        second._mean = 17
        assert [refused(second) for _ in range(3)] == [17] * 3

    def test_its_share(self, share: Callable[..., SharedPutSlots]) -> None:
        """A process that holds some of the slots goes by those."""
        clock = Clock()
        first, second = self.estimating(share, clock)
        for slots in (first, first, second, second):
            slots.acquire()
        clock.advance(8)
        assert [refused(first), refused(first), refused(second)] == [4, 8, 4]

    def test_fixed(self, share: Callable[..., SharedPutSlots]) -> None:
        """A fixed time is told as it is."""
        first, second = share(1, 9), share(1, 9)
        first.acquire()
        assert refused(second) == 9


class FailureTests:
    """The kernel does not lock or unlock a byte."""

    FLOCK = Struct("hhqqi4x")

    @contextmanager
    def failing(self, monkeypatch: pytest.MonkeyPatch, kind: int, number: int, error: int) -> Iterator[None]:
        """Let the call of fcntl with this `number` fail, of those that lock or unlock (`kind`)."""
        calls: list[int] = []
        real = fcntl.fcntl

        def failing(descriptor: int, command: int, flock: bytes) -> bytes:
            if self.FLOCK.unpack(flock)[0] == kind:
                calls.append(command)
                if len(calls) == number:
                    raise OSError(error, os.strerror(error))
            return real(descriptor, command, flock)

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "fcntl", failing)
            yield

    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize(("error", "raised"), [(errno.ENOLCK, NoFreeSlot), (errno.EIO, OSError)])
    def test_locking(
        self,
        share: Callable[..., SharedPutSlots],
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        error: int,
        raised: type[Exception],
    ) -> None:
        """A PUT is refused if the kernel has no memory for its lock, and fails with other errors; nothing stays taken.

        This is so for the lock of the prefix, which is the first, and for that of all slots.
        """
        slots, other = share(1, None), share(1)
        with self.failing(monkeypatch, fcntl.F_WRLCK, number, error), pytest.raises(raised):
            slots.acquire("a/", 1)
        assert (slots.taken, slots.free, slots._locked) == (0, 1, set())
        other.acquire("a/", 1)

    def test_unlocking(self, share: Callable[..., SharedPutSlots], monkeypatch: pytest.MonkeyPatch) -> None:
        """A slot that cannot be unlocked does not make its PUT fail, and is not lost to its own process."""
        slots, other = share(1), share(1)
        slot = slots.acquire("a/", 1)
        idle = slots.when_idle()
        with self.failing(monkeypatch, fcntl.F_UNLCK, 2, errno.ENOLCK):
            slot.release()
        result(idle)
        assert (slots.taken, other.free) == (0, 0)
        slots.acquire("a/", 1).release()
        other.acquire("a/", 1)

    def test_no_file(self) -> None:
        """A descriptor that is not open is an error at the start."""
        descriptor = make_slots_file()
        os.close(descriptor)
        with pytest.raises(FileNotFoundError):
            SharedPutSlots(descriptor)


class SharedMachine(RuleBasedStateMachine):
    """Three processes with limits that differ as in a reload take and return slots, and are killed.

    The model is which bytes each of them has locked.
    """

    LIMITS = (2, 4, 4)
    #: The limits of a prefix, in each process.
    RULES = (("a/", (1, 2, 2)), ("b/", (2, 1, 1)), ("", (None, None, None)))
    processes = st.sampled_from(range(3))

    def __init__(self) -> None:
        super().__init__()
        self.file = make_slots_file()
        self.slots = [SharedPutSlots(self.file, limit) for limit in self.LIMITS]
        self.held: list[list[PutSlot]] = [[], [], []]

    def teardown(self) -> None:
        for slots in self.slots:
            slots.close()
        os.close(self.file)

    def bytes_of(self, prefix: str | None) -> set[int]:
        """The place in its region of each byte that is locked for a prefix, or of each that is a slot (None)."""
        found = [slot for held in self.held for slot in held if prefix in (None, slot.prefix)]
        places = [slot.locks[-1 if prefix is None else 0] for slot in found]
        assert len(set(places)) == len(places), "a byte is locked twice"
        return {place % admission._REGION_SIZE for place in places}

    @rule(process=processes, chosen=st.sampled_from(RULES))
    def take(self, process: int, chosen: tuple[str, Sequence[int | None]]) -> None:
        """A slot is to be had if a byte is that this process may lock, of the prefix and of all."""
        prefix, limit = chosen[0], chosen[1][process]
        own = limit is None or set(range(limit)) - self.bytes_of(prefix)
        possible = bool(own and set(range(self.LIMITS[process])) - self.bytes_of(None))
        try:
            self.held[process].append(self.slots[process].acquire(prefix, limit))
        except NoFreeSlot:
            assert not possible
        else:
            assert possible

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """Return one of the slots."""
        held = data.draw(st.sampled_from([held for held in self.held if held]))
        held.pop(data.draw(st.integers(0, len(held) - 1))).release()

    @rule(process=processes)
    def kill(self, process: int) -> None:
        """What the kernel does for a process that is killed, and then another one starts."""
        self.slots[process].close()
        self.slots[process] = SharedPutSlots(self.file, self.LIMITS[process])
        self.held[process].clear()

    @invariant()
    def never_more(self) -> None:
        """No limit is exceeded beyond the largest."""
        assert len(self.bytes_of(None)) <= max(self.LIMITS)
        for prefix, limits in self.RULES[:2]:
            assert len(self.bytes_of(prefix)) <= max(filter(None, limits))

    @invariant()
    def counts(self) -> None:
        """Each process knows what it holds, and what is free for it."""
        locked = self.bytes_of(None)
        for slots, held in zip(self.slots, self.held, strict=True):
            assert slots.taken == len(held)
            assert slots.free == len(set(range(slots.limit)) - locked)
            assert slots._locked == {byte for slot in held for byte in slot.locks}


SharedMachineTests = SharedMachine.TestCase

#: Takes slots, prints a line, and holds them until it is killed, or at the latest for 20 seconds.
HOLD = """
import sys, time
from twisted_storaged.admission import SharedPutSlots
slots = SharedPutSlots(int(sys.argv[1]), 2)
held = [slots.acquire("a/", 1), slots.acquire()]
print("held", flush=True)
time.sleep(20)
"""

#: Takes and returns slots for a second. In the files that all processes share, a byte is the number of slots that they
#: hold, counted under a lock of its own; one file is for keys under a prefix. Prints how many it got, and was refused,
#: and the largest numbers of slots that it saw to be held.
HAMMER = """
import fcntl, os, sys, time
from twisted_storaged.admission import SharedPutSlots
from twisted_storaged.errors import NoFreeSlot

def count(file, change):
    fcntl.flock(file, fcntl.LOCK_EX)
    number = os.pread(file, 1, 0)[0] + change
    os.pwrite(file, bytes([number]), 0)
    fcntl.flock(file, fcntl.LOCK_UN)
    return number

slots = SharedPutSlots(int(sys.argv[1]), 3)
files = [os.open(path, os.O_RDWR) for path in sys.argv[2:]]
most, got, refused = [0, 0], 0, 0
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + 1
while time.monotonic() < end:
    of_prefix = (got + refused) % 2
    try:
        slot = slots.acquire("a/", 2) if of_prefix else slots.acquire()
    except NoFreeSlot:
        refused += 1
        continue
    got += 1
    for kind in range(1 + of_prefix):
        most[kind] = max(most[kind], count(files[kind], 1))
    time.sleep(0.0005)
    for kind in range(1 + of_prefix):
        count(files[kind], -1)
    slot.release()
print(got, refused, *most, flush=True)
"""


def started(code: str, file: int, *args: str) -> subprocess.Popen[str]:
    """Start a process that has the file of slots, and wait for its first line."""
    command = [sys.executable, "-c", code, str(file), *args]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, pass_fds=[file])
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


class ProcessTests:
    """Slots that real processes share."""

    def test_a_process_is_killed(self, file: int, share: Callable[..., SharedPutSlots]) -> None:
        """While a process holds all slots, another is refused without waiting; after kill -9, they are free at once."""
        slots = share(2)
        with started(HOLD, file) as process:
            try:
                began = time.monotonic()
                for _ in range(10):
                    assert slots.free == 0
                    with pytest.raises(NoFreeSlot):
                        slots.acquire()
                    with pytest.raises(NoFreeSlot):
                        slots.acquire("a/", 1)
                assert time.monotonic() - began < 5
            finally:
                process.kill()
            killed = time.monotonic()
            while slots.free < 2 and time.monotonic() < killed + 10:
                pass
            assert time.monotonic() - killed < 0.1
        held = [slots.acquire("a/", 1), slots.acquire()]
        assert len(held) == 2

    def test_never_more_than_the_limit(self, file: int, tmp_path: Path) -> None:
        """However many processes take slots at the same time, as many are held as the limits allow, and never more."""
        files = [tmp_path / "all", tmp_path / "prefix"]
        for path in files:
            path.write_bytes(bytes(1))
        start = partial(started, HAMMER, file, *map(str, files))
        with ExitStack() as stack:
            processes = [stack.enter_context(start()) for _ in range(6)]
            for process in processes:
                stack.callback(process.kill)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            told = [process.communicate(timeout=60)[0].split() for process in processes]
        got, refusals, most, most_of_prefix = zip(*(map(int, words) for words in told), strict=True)
        assert min(sum(got), sum(refusals)) > 100
        assert (max(most), max(most_of_prefix)) == (3, 2)
        assert [path.read_bytes() for path in files] == [bytes(1)] * 2
