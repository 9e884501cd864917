"""A few rounds of `python -m tests.faults.kills`, and tests of the model that they use."""

from __future__ import annotations

import pytest

from tests.conftest import Engines
from tests.faults.clients import Seen, Tally, check_state
from tests.faults.kills import Kills
from tests.faults.model import Model, Version
from tests.faults.places import Place, local, on

ROUNDS = 5


class KillTests:
    """Kills with SIGKILL at random moments, while clients write: no object is lost or torn."""

    def kills(self, place: Place) -> Kills:
        """Run some rounds on one bucket, and expect no faults."""
        kills = Kills(place, seed=1)
        for _ in range(ROUNDS):
            kills.round()
        assert kills.tally.faults == []
        assert kills.tally.done["PUT"] > 0
        return kills

    def test_on_the_embedded_bucket(self) -> None:
        """Kills on the embedded bucket lose nothing, and leave no file and no row behind."""
        with local() as place, place.daemon:
            assert self.kills(place).orphans(patience=10) == 0

    @pytest.mark.full
    def test_on_ceph(self, all_engines: Engines) -> None:
        """Kills on Ceph lose nothing; uploads of a killed daemon may be left for a while."""
        with on(all_engines.get("ceph")) as place, place.daemon:
            self.kills(place)


class ModelTests:
    """The model: which states a read may find."""

    def setup_method(self) -> None:
        self.model = Model()
        self.one, self.two, self.three = (self.model.new_version(size) for size in (100, 200_000, 200_000))

    def put(self, version: Version | None) -> None:
        """Begin a write and have it answered."""
        self.model.answered("a", self.model.begin("a", version))

    def test_what_was_answered_is_all_there_can_be(self) -> None:
        """After a write was answered, its state is the only possible one."""
        assert self.model.possible("a") == {None}
        self.put(self.one)
        self.put(self.two)
        assert self.model.possible("a") == {self.two}
        self.put(None)
        assert self.model.possible("a") == {None}

    def test_what_was_not_answered_may_be_there(self) -> None:
        """A write without an answer may have taken place or not, until a later one is answered."""
        self.put(self.one)
        self.model.given_up(self.model.begin("a", self.two))
        assert self.model.possible("a") == {self.one, self.two}
        self.put(self.three)
        assert self.model.possible("a") == {self.three}

    def test_what_was_refused_may_not(self) -> None:
        """A refused write has not taken place."""
        self.put(self.one)
        self.model.refused("a", self.model.begin("a", self.two))
        assert self.model.possible("a") == {self.one}

    def test_of_two_at_the_same_time_either_may_be_the_last(self) -> None:
        """Of two concurrent writes either may be the last, in whatever order they were answered."""
        first, second = self.model.begin("a", self.one), self.model.begin("a", self.two)
        self.model.answered("a", second)
        self.model.answered("a", first)
        assert self.model.possible("a") == {self.one, self.two}

    def test_a_read_may_find_what_was_there_when_it_began(self) -> None:
        """A read may find the state at its beginning and all later ones, but no older one."""
        self.put(self.one)
        self.put(self.two)
        with self.model.reading("a") as since:
            self.put(self.three)
            self.put(None)
            assert self.model.possible("a", since) == {self.two, self.three, None}
        assert self.model.possible("a") == {None}

    def test_what_was_found_is_all_there_can_be(self) -> None:
        """A state that an audit found is the only possible one from then on."""
        self.put(self.one)
        self.model.given_up(self.model.begin("a", self.two))
        self.model.found("a", self.two)
        assert self.model.possible("a") == {self.two}

    def test_faults_have_names(self) -> None:
        """A fault is `lost` if an older state or none is read, and `torn` if the bytes were never put."""
        tally = Tally()
        mixed = self.two.content()[:100_000] + self.three.content()[100_000:]
        for seen in (Seen("a", 404, b""), Seen("a", 200, self.two.content()), Seen("a", 200, mixed)):
            check_state(self.model, tally, seen, {self.three})
        assert [fault.partition(":")[0] for fault in tally.faults] == ["lost", "lost", "torn"]

    def test_what_may_be_there_is_none(self) -> None:
        """Reading a possible state is no fault."""
        tally = Tally()
        assert check_state(self.model, tally, Seen("a", 404, b""), {None, self.one}) is None
        seen = Seen("a", 200, self.one.content())
        assert check_state(self.model, tally, seen, {None, self.one, self.two}) == self.one
        assert tally.faults == []
