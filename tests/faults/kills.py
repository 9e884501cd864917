"""Kill storaged with -9 while clients write, start it again, and look at what is there: `python -m tests.faults.kills`.

After each kill, all that was answered must be there, byte for byte; what was under way may be, whole; nothing else is
visible, and no file, row, part or upload is left over.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
from argparse import ArgumentParser
from contextlib import closing

from tests.faults.clients import Client, Gone, KiB, MiB, Tally, check_state, in_threads
from tests.faults.model import Model
from tests.faults.places import PLACES, Place, Sizes

#: More than there are put slots.
CLIENTS = 6
KEYS = [f"key-{number:02}" for number in range(20)]
#: Seconds until a kill.
LIFE = (0.02, 0.6)


class Kills:
    """Rounds of it, one after the other, on one bucket."""

    def __init__(self, place: Place, seed: int) -> None:
        self.tally = Tally()
        self.model = Model()
        self._place = place
        self._random = random.Random(seed)

    def round(self) -> None:
        """Let clients write, kill, start, and audit."""
        daemon = self._place.daemon
        clients = [Client(daemon, self.model, self.tally, self._random.getrandbits(32)) for _ in range(CLIENTS)]
        threads = in_threads(clients, _work)
        time.sleep(self._random.uniform(*LIFE))
        daemon.kill()
        for thread in threads:
            thread.join()
        daemon.start()
        self.tally.count("kills")
        self.audit()

    def audit(self) -> None:
        """Hold all that is there against the model, and let it go on from there."""
        sizes = listed(self._place)
        for key in sorted({*self.model.keys(), *sizes}):
            status, body = get(self._place, key)
            if (status == 200) != (key in sizes) or (status == 200 and len(body) != sizes[key]):
                self.tally.fault("torn", f"{key} is listed with {sizes.get(key)}, and read with {status}, {len(body)}")
            self.model.found(key, check_state(self.tally, key, status, body, self.model.possible(key)))

    def orphans(self, patience: float) -> int:
        """What is left over."""
        return self._place.orphans_in_the_end(listed(self._place), patience)


def listed(place: Place) -> Sizes:
    """The sizes of all objects, by key."""
    _, body = _ask(place, "/storage/list")
    return {item["key"]: item["size"] for item in json.loads(body)["objects"]}


def get(place: Place, key: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    return _ask(place, f"/storage/get/{key}")


def _ask(place: Place, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", place.daemon.port, timeout=120)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def _work(client: Client) -> None:
    """Write until the daemon is gone."""
    try:
        while True:
            key = client.random.choice(KEYS)
            if client.random.random() < 0.15:
                client.delete(key)
            else:
                client.put(key, _size(client.random), chunked=client.random.random() < 0.2)
    except Gone:
        pass


def _size(source: random.Random) -> int:
    """Small, medium, or of several parts; often just at a border."""
    kind = source.random()
    if kind < 0.5:
        return source.choice([0, 1, 64 * KiB, 64 * KiB + 1, source.randrange(64 * KiB)])
    if kind < 0.85:
        return source.randrange(64 * KiB, 2 * MiB)
    return source.choice([5 * MiB, 5 * MiB + 1, source.randrange(5 * MiB, 17 * MiB)])


def main() -> int:
    """Run, print the figures, and say with the exit status whether all was kept."""
    parser = ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--engine", choices=PLACES, default="local")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--orphans-may-be-left", action="store_true", help="count them, and do not fail for them")
    options = parser.parse_args()
    start = time.monotonic()
    with PLACES[options.engine]() as place, place.daemon:
        kills = Kills(place, options.seed)
        for _ in range(options.rounds):
            kills.round()
            orphans = kills.orphans(0 if options.orphans_may_be_left else 10)
            if kills.tally.faults or (orphans and not options.orphans_may_be_left):
                break
    print_figures(f"kill -9 on {options.engine}, seed {options.seed}", kills.tally, orphans, time.monotonic() - start)
    return 1 if kills.tally.faults or (orphans and not options.orphans_may_be_left) else 0


def print_figures(title: str, tally: Tally, orphans: int, seconds: float) -> None:
    """What was done and found."""
    print(f"{title}: {seconds:.0f} s")
    counts = {"kills": 0, "lost": 0, "torn": 0, "error": 0, **tally.done, "orphans left": orphans}
    for kind, number in sorted(counts.items()):
        print(f"  {kind:<20}{number:>10,}")
    print("".join(f"  {fault}\n" for fault in tally.faults[:20]), end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
