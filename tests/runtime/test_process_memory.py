"""Giving memory back to the system."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from twisted_storaged.runtime.process import EVERY, WORTH_IT, HeapTrimmer, resident, trim


class HeapTrimmerTests:
    """When the heap is trimmed."""

    @pytest.fixture(autouse=True)
    def _made(self) -> None:
        self.clock = Clock()
        self.resident = 100 << 20
        self.held = 100 << 20
        self.trims = 0
        self.trimmer = HeapTrimmer(self.clock, self.trim, self.read)
        self.trimmer.start()

    def read(self) -> int:
        if self.resident < 0:
            raise OSError
        return self.resident

    def trim(self) -> None:
        self.trims += 1
        self.resident = self.held

    def test_not_while_there_is_little_to_gain(self) -> None:
        """A process that stays as it is does nothing but look."""
        self.resident += WORTH_IT
        self.clock.pump([EVERY] * 10)
        assert self.trims == 0

    def test_until_a_load_has_gone(self) -> None:
        """Also where what is freed was in use at the first trim; afterwards there is nothing to do."""
        self.resident = self.held = 300 << 20
        self.clock.pump([EVERY] * 3)
        assert self.trims == 3
        self.held = 101 << 20
        self.clock.pump([EVERY] * 5)
        assert (self.trims, self.resident) == (4, 101 << 20)

    def test_while_it_cannot_be_known(self) -> None:
        """If the memory cannot be read, such as when no more files can be open, it is read the next time."""
        self.resident = -1
        self.clock.advance(EVERY)
        self.resident = 300 << 20
        self.clock.advance(EVERY)
        assert self.trims == 1

    def test_never_after_a_stop(self) -> None:
        """Stopping twice does no harm."""
        self.trimmer.stop()
        self.trimmer.stop()
        assert self.clock.getDelayedCalls() == []


class TrimTests:
    """The call itself."""

    def test_gives_back_what_is_free_in_the_middle(self) -> None:
        """Memory that was allocated in small pieces, some of which are still in use."""
        pieces = [bytes(100_000) for _ in range(1000)]
        kept = pieces[::50]
        full = resident()
        del pieces
        trim()
        assert full - resident() > 60 << 20
        assert kept
