"""Kills workers with SIGKILL under load, at last their supervisor, and audits: `python -m tests.faults.worker_kills`.

Everything that was acknowledged must be there, byte for byte; put slots of killed workers are free; and what killed
workers have left is removed by others. Workers whose supervisor was killed end by themselves, and do not disturb the
next start.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

from tests.activated import ActivatedDaemon, is_alive, signal_worker, wait_until
from tests.faults.audit import audit, listed, print_figures
from tests.faults.clients import TIMEOUT, Client, Gone, Tally, in_threads
from tests.faults.kills import CLIENTS, KEYS, size
from tests.faults.model import Model
from tests.faults.places import PLACES, Place, stop_on_signals
from twisted_storaged.conformance.raw_http import EXPECT, Connection, head, length

WORKERS = 2
#: The put slots of a daemon by default.
SLOTS = 4
#: Seconds between two kills, least and most: a worker takes about one to start.
LIFE = (0.05, 2.0)
#: Seconds that a client waits after a request that got no response, before it writes its keys again: S3 may carry out a
#: write of a killed worker a moment later.
PAUSE = 1.0
#: Seconds that workers may take to end when their supervisor has been killed: `drain` by default, and some more.
END_SECONDS = 45.0
#: Seconds of load on the workers of the next supervisor.
LAST_SECONDS = 3.0


class WorkerKills:
    """A load on one bucket, while workers are killed."""

    def __init__(self, place: Place, seed: int) -> None:
        assert isinstance(place.daemon, ActivatedDaemon)
        self.tally = Tally()
        self.model = Model()
        #: Seconds until all workers had ended whose supervisor was killed.
        self.ended_after = 0.0
        self._daemon = place.daemon
        self._place = place
        self._random = random.Random(seed)

    def run(self, seconds: float, after: float = LAST_SECONDS) -> None:
        """Kill workers for so many seconds, then the supervisor, start it again, and audit after some more."""
        stop = threading.Event()
        clients = [Client(self._daemon, self.model, self.tally, self._random.getrandbits(32)) for _ in range(CLIENTS)]
        keys = {client: KEYS[number::CLIENTS] for number, client in enumerate(clients)}
        threads = in_threads(clients, lambda client: self._work(stop, client, keys[client]))
        try:
            self._kill_workers(seconds)
            self._kill_supervisor()
            time.sleep(after)
        finally:
            stop.set()
        for thread in threads:
            thread.join()
        audit(self._place, self.model, self.tally)
        self._check_slots()

    def orphans(self) -> int:
        """The number of leftovers, once they have had the time to be removed."""
        return self._place.orphans_in_the_end(listed(self._daemon))

    def _kill_workers(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._random.uniform(*LIFE))
            workers = self._daemon.workers()
            if workers and signal_worker(self._random.choice(workers), signal.SIGKILL):
                self.tally.count("workers killed")
            if self._daemon.process.poll() is not None:
                raise RuntimeError(f"storaged has ended:\n{self._daemon.events}")
        self._daemon.wait_for_workers(WORKERS)

    def _kill_supervisor(self) -> None:
        workers = self._daemon.workers()
        began = time.monotonic()
        self._daemon.process.kill()
        self._daemon.process.wait()
        wait_until(lambda: not any(map(is_alive, workers)), END_SECONDS)
        self.ended_after = time.monotonic() - began
        self._daemon.start()

    def _check_slots(self) -> None:
        """Check that all slots can be taken at once, and no more."""
        with ExitStack() as held:
            statuses = []
            for number in range(SLOTS + 1):
                connection = held.enter_context(Connection(("127.0.0.1", self._daemon.port)))
                connection.set_timeout(TIMEOUT)
                connection.send(head("PUT", f"/storage/put/held-{number}", length(10), EXPECT))
                statuses.append(connection.response().status)
        if statuses != [100] * SLOTS + [503]:
            self.tally.fault("error", f"PUTs that are held were answered {statuses}")

    def _work(self, stop: threading.Event, client: Client, keys: list[str]) -> None:
        """Write and read until `stop` is set; keys of others are written, too, where that is safe."""
        while not stop.is_set():
            key = client.random.choice(KEYS if self._place.agrees_with_itself else keys)
            try:
                self._one_thing(client, key)
            except Gone:
                self.tally.count("no response")
                if not self._place.agrees_with_itself:
                    time.sleep(PAUSE)

    def _one_thing(self, client: Client, key: str) -> None:
        kind = client.random.random()
        if kind < 0.3:
            client.read(client.random.choice(KEYS))
        elif kind < 0.4:
            client.delete(key)
        else:
            client.put(key, size(client.random), chunked=kind > 0.85)


def main() -> int:
    """Kill workers and print the figures; the exit status is 1 if there was a fault."""
    stop_on_signals()
    options = _options()
    with PLACES[options.engine](make=ActivatedDaemon, storaged=f"workers = {WORKERS}\n") as place, place.daemon:
        kills = WorkerKills(place, options.seed)
        kills.run(options.seconds)
        orphans = kills.orphans()
        failed = bool(kills.tally.faults) or orphans > 0
        if failed:
            print(place.daemon.events)
    title = f"kill -9 of workers on {options.engine} for {options.seconds:g} s, seed {options.seed}"
    print_figures(title, kills.tally, orphans, [f"{kills.ended_after:.1f} s until workers without a supervisor ended"])
    return 1 if failed else 0


def _options() -> Namespace:
    parser = ArgumentParser(prog="python -m tests.faults.worker_kills", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--engine", choices=PLACES, default="local")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="seed of keys, sizes and moments")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
