"""Kills storaged with SIGKILL while clients write, restarts it, and audits: `python -m tests.faults.kills`.

After each kill, everything that was acknowledged must be there, byte for byte; what was under way may be, complete;
nothing else is visible, and no file, row, part or upload is left over.
"""

from __future__ import annotations

import random
import sys
import time
from argparse import ArgumentParser, Namespace

from tests.faults.audit import audit, listed, print_figures
from tests.faults.clients import Client, Gone, KiB, MiB, Tally, in_threads
from tests.faults.model import Model
from tests.faults.places import PLACES, Place, stop_on_signals

#: The number of clients: more than there are put slots.
CLIENTS = 6
KEYS = [f"key-{number:02}" for number in range(20)]
#: Seconds from the start of the writes to a kill, least and most.
LIFE = (0.02, 0.6)
#: Share of the kills that are followed by another one during the start, and the seconds until that, least and most.
AGAIN = 0.2
START = (0.3, 1.0)
#: Seconds within which a start must remove the leftovers of a kill.
ORPHAN_SECONDS = 10.0


class Kills:
    """Rounds of kills on one bucket."""

    def __init__(self, place: Place, seed: int) -> None:
        self.tally = Tally()
        self.model = Model()
        self._place = place
        self._random = random.Random(seed)

    def round(self) -> None:
        """Let clients write, kill the daemon, restart it, and audit."""
        daemon = self._place.daemon
        clients = [Client(daemon, self.model, self.tally, self._random.getrandbits(32)) for _ in range(CLIENTS)]
        threads = in_threads(clients, _work)
        time.sleep(self._random.uniform(*LIFE))
        daemon.kill()
        for thread in threads:
            thread.join()
        self.tally.count("kills")
        if self._random.random() < AGAIN:
            self._kill_while_it_starts()
        daemon.start()
        audit(self._place, self.model, self.tally)

    def _kill_while_it_starts(self) -> None:
        """Kill the daemon while it starts, which may interrupt its sweep of leftovers."""
        process = self._place.daemon.spawn()
        time.sleep(self._random.uniform(*START))
        process.kill()
        process.wait()
        self.tally.count("kills at a start")

    def orphans(self, patience: float) -> int:
        """The number of leftovers, after up to `patience` seconds."""
        return self._place.orphans_in_the_end(listed(self._place.daemon), patience)


def _work(client: Client) -> None:
    """Write until the daemon is gone."""
    try:
        while True:
            key = client.random.choice(KEYS)
            if client.random.random() < 0.15:
                client.delete(key)
            else:
                client.put(key, size(client.random), chunked=client.random.random() < 0.2)
    except Gone:
        pass


def size(source: random.Random) -> int:
    """A random size: small, medium, or of several parts; often just at a limit."""
    kind = source.random()
    if kind < 0.5:
        return source.choice([0, 1, 64 * KiB, 64 * KiB + 1, source.randrange(64 * KiB)])
    if kind < 0.85:
        return source.randrange(64 * KiB, 2 * MiB)
    return source.choice([5 * MiB, 5 * MiB + 1, source.randrange(5 * MiB, 17 * MiB)])


def main() -> int:
    """Run the rounds and print the figures; the exit status is 1 if there was a fault."""
    stop_on_signals()
    options = _options()
    start = time.monotonic()
    with PLACES[options.engine]() as place, place.daemon:
        kills = Kills(place, options.seed)
        failed, orphans = False, 0
        while not failed and kills.tally.done["kills"] < options.rounds:
            kills.round()
            orphans = kills.orphans(0 if options.orphans_may_be_left else ORPHAN_SECONDS)
            failed = bool(kills.tally.faults) or (orphans > 0 and not options.orphans_may_be_left)
    title = f"kill -9 on {options.engine}, seed {options.seed}: {time.monotonic() - start:.0f} s"
    print_figures(title, kills.tally, orphans)
    return 1 if failed else 0


def _options() -> Namespace:
    parser = ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--engine", choices=PLACES, default="local")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="seed of keys, sizes and moments")
    parser.add_argument("--orphans-may-be-left", action="store_true", help="count orphans, but do not fail")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
