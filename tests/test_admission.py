"""Put slots."""

from __future__ import annotations

import pytest

from tests.support import result
from twisted_storaged.admission import DEFAULT_PUT_SLOTS, PutSlots
from twisted_storaged.errors import NoFreeSlot


class PutSlotsTests:
    """The limit on concurrent PUTs."""

    def test_four_by_default(self) -> None:
        """The fifth concurrent PUT is refused at once."""
        slots = PutSlots()
        for _ in range(DEFAULT_PUT_SLOTS):
            slots.acquire()
        with pytest.raises(NoFreeSlot):
            slots.acquire()
        assert DEFAULT_PUT_SLOTS == 4

    def test_a_slot_given_back_is_free(self) -> None:
        """A released slot can be acquired again."""
        slots = PutSlots(1)
        slots.acquire()
        slots.release()
        slots.acquire()
        assert slots.free == 0

    def test_giving_back_too_much_is_a_defect(self) -> None:
        """Releasing more slots than were acquired is an error, as it would raise the limit."""
        with pytest.raises(AssertionError):
            PutSlots(1).release()

    def test_idle_when_all_are_back(self) -> None:
        """`when_idle` fires when all slots are free, which a daemon that stops waits for."""
        slots = PutSlots(2)
        result(slots.when_idle())
        slots.acquire()
        slots.acquire()
        idle = slots.when_idle()
        slots.release()
        assert not idle.called
        slots.release()
        result(idle)
