"""Put slots."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.support import result
from twisted_storaged.admission import DEFAULT_PUT_SLOTS, MAX_RETRY_AFTER, MIN_RETRY_AFTER, PutSlot, PutSlots
from twisted_storaged.errors import NoFreeSlot


class PutSlotsTests:
    """The limit on concurrent PUTs."""

    def test_four_by_default(self) -> None:
        """The fifth concurrent PUT is refused at once, and is to try again after 5 seconds."""
        slots = PutSlots()
        for _ in range(DEFAULT_PUT_SLOTS):
            slots.acquire()
        with pytest.raises(NoFreeSlot) as caught:
            slots.acquire()
        assert (DEFAULT_PUT_SLOTS, caught.value.retry_after) == (4, 5)

    def test_a_slot_that_is_returned_is_free(self) -> None:
        """A released slot can be acquired again."""
        slots = PutSlots(1)
        slots.acquire().release()
        slots.acquire()
        assert slots.free == 0

    def test_a_slot_is_returned_once(self) -> None:
        """Releasing a slot twice is an error, as it would raise the limit."""
        slots = PutSlots(2)
        slots.acquire()
        slot = slots.acquire()
        slot.release()
        with pytest.raises(KeyError):
            slot.release()
        assert slots.free == 1

    def test_idle_when_all_are_back(self) -> None:
        """`when_idle` fires when all slots are free, which a daemon that stops waits for."""
        slots = PutSlots(2)
        result(slots.when_idle())
        first, second = slots.acquire(), slots.acquire()
        idle = slots.when_idle()
        first.release()
        assert not idle.called
        second.release()
        result(idle)


class PrefixTests:
    """The limit on the slots that the keys under one prefix may hold."""

    def test_others_find_a_free_slot(self) -> None:
        """Keys under a limited prefix are refused although slots are free, and others are not."""
        slots = PutSlots(4)
        held = [slots.acquire("_vectors/", 2) for _ in range(2)]
        with pytest.raises(NoFreeSlot, match=r"^all 2 put slots for keys under '_vectors/' are taken$"):
            slots.acquire("_vectors/", 2)
        slots.acquire("", None)
        held[0].release()
        slots.acquire("_vectors/", 2)
        assert slots.free == 1

    def test_others_may_take_all(self) -> None:
        """A limit reserves nothing for its own prefix: if others hold all slots, its keys are refused as well."""
        slots = PutSlots(2)
        slots.acquire()
        slots.acquire()
        with pytest.raises(NoFreeSlot, match=r"^all 2 put slots are taken$"):
            slots.acquire("_vectors/", 1)


def estimating(clock: Clock, limit: int = 4) -> PutSlots:
    """Make slots that estimate, without jitter."""
    return PutSlots(limit, None, clock.seconds, lambda least, most: (least + most) / 2)


def refused(slots: PutSlots) -> int:
    """The Retry-After of a PUT that is refused."""
    with pytest.raises(NoFreeSlot) as caught:
        slots.acquire()
    return caught.value.retry_after


class EstimateTests:
    """Retry-After, if it is computed."""

    def test_how_fast_slots_became_free(self) -> None:
        """The estimate follows how long slots are held, divided by their number."""
        clock = Clock()
        slots = estimating(clock)
        for _ in range(40):
            held = [slots.acquire() for _ in range(4)]
            clock.advance(40)
            for slot in held:
                slot.release()
        for _ in range(4):
            slots.acquire()
        assert refused(slots) == 10

    def test_refused_clients_do_not_come_back_together(self) -> None:
        """Each client that is refused is to wait for one slot more than the one before, until slots become free."""
        clock = Clock()
        slots = estimating(clock)
        held = [slots.acquire() for _ in range(4)]
        clock.advance(8)
        assert [refused(slots) for _ in range(4)] == [2, 4, 6, 8]
        for slot in held[:3]:
            slot.release()
        for _ in range(3):
            slots.acquire()
        # One of the four is still waiting. The held slots are younger now, but those before were held for 8 s.
        assert refused(slots) in (2, 4)

    def test_refusals_of_a_prefix(self) -> None:
        """Clients that the limit of a prefix refused do not lengthen the wait of others, nor do those of earlier."""
        clock = Clock()
        slots = estimating(clock)
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

    def test_slots_that_are_held_for_long(self) -> None:
        """If the slots have been held for longer than those before, the estimate follows their age."""
        clock = Clock()
        slots = estimating(clock)
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
