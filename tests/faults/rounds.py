"""Restarts and reloads storaged at a socket of systemd's, in turn, under load: `python -m tests.faults.rounds`.

No request may be refused, whichever connection it comes on: one that was kept, or a new one, which waits in the socket
while the daemon restarts. Everything that was acknowledged must be there, byte for byte. A server may close a kept
connection while it is idle, which a client notices before it sends; a request that was sent must be answered.
"""

from __future__ import annotations

import json
import random
import select
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial

from tests.activated import ActivatedDaemon
from tests.daemon import Daemon
from tests.faults.audit import audit, listed, print_figures
from tests.faults.clients import TIMEOUT, Client, Gone, KiB, MiB, Tally, ask, in_threads
from tests.faults.model import Model
from tests.faults.places import PLACES, Place, stop_on_signals
from twisted_storaged.conformance.raw_http import Connection, NoResponse, Response, head, length

KEYS = [f"key-{number:02}" for number in range(20)]
#: Objects that are never changed, and so are in each list.
STABLE = {f"stable/{number}": size for number, size in enumerate((4 * KiB, 100 * KiB, 3 * MiB))}
#: The longest pauses between two requests of the clients, in seconds: half of the clients keep their connections. Of
#: these, one rests for longer than a connection may be idle while the daemon drains.
PAUSES = (0.05, 0.1, 0.2, 0.4, 4.0)
#: Seconds from the end of a restart or a reload to the next one, least and most.
LIFE = (0.1, 1.0)


class PersistentClient(Client):
    """A client that keeps its connection, or, if not `keeps`, opens one for each request."""

    def __init__(self, daemon: Daemon, model: Model, tally: Tally, seed: int, keeps: bool, pause: float) -> None:
        super().__init__(daemon, model, tally, seed)
        self.pause = pause
        self._keeps = keeps
        self._connection: Connection | None = None
        #: The key that only this client writes, and its ETag, "" for none.
        self._own = f"own/{seed}"
        self._etag = ""

    def put_at_once(self, key: str, size: int) -> None:
        """Store a new version whose body is sent without waiting for a 100 Continue. Raises Gone."""
        self._put(key, size)

    def put_if(self, size: int, if_match: bool) -> None:
        """Store, if it does not exist, the object that only this client writes, or replace it by its ETag."""
        condition = f'If-Match: "{self._etag}"' if self._etag and if_match else "If-None-Match: *"
        expected = 412 if self._etag and not condition.startswith("If-Match") else 200
        answer = self._put(self._own, size, condition)
        if answer.status not in (expected, 503):
            self._tally.fault("error", f"PUT {self._own} with {condition}: {answer}, expected {expected}")
        elif answer.status == 200:
            self._etag = json.loads(answer.body)["etag"]

    def drop_own(self) -> None:
        """Delete the object that only this client writes. Raises Gone."""
        self.delete(self._own)
        self._etag = ""

    def list(self) -> None:
        """Get a list, in which the objects that nobody changes must be. Raises Gone."""
        answer = self._exchange(head("GET", "/storage/list"))
        if answer.status != 200:
            self._tally.fault("error", f"list: {answer}")
            return
        sizes = {item["key"]: item["size"] for item in json.loads(answer.body)["objects"]}
        self._tally.count("list")
        for key, size in STABLE.items():
            if sizes.get(key) != size:
                self._tally.fault("lost", f"{key} is listed with {sizes.get(key)} bytes instead of {size}")

    def _put(self, key: str, size: int, *headers: str) -> Response:
        version = self._model.new_version(size)
        request = head("PUT", f"/storage/put/{key}", length(size), *headers) + version.content()
        return self._write("PUT", key, self._model.begin(key, version), request)

    def _exchange(self, request: bytes, body: bytes | None = None, read_delay: float = 0.0) -> Response:
        kept = self._connection
        if kept is not None and _has_ended(kept):
            self._tally.count("closed while idle")
            self._close()
        what = request.partition(b" HTTP")[0].decode()
        is_new = self._connection is None
        try:
            if self._connection is None:
                self._connection = Connection(("127.0.0.1", self._daemon.port))
                self._connection.set_timeout(TIMEOUT)
            answer = ask(self._connection, request, body)
        except (OSError, NoResponse) as error:
            self._close()
            raise Gone(f"{what} on a {'new' if is_new else 'kept'} connection: {error!r}") from error
        if not self._keeps or answer.headers.get("connection") == "close":
            self._close()
        return answer

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _has_ended(connection: Connection) -> bool:
    """Whether the server has closed a connection that is idle."""
    return bool(select.select([connection._socket], [], [], 0)[0])


class Rounds:
    """Rounds of restarts and reloads on one bucket; now and then, a worker is told to stop."""

    def __init__(self, place: Place, seed: int, swaps: bool) -> None:
        """With `swaps`, the bucket can replace objects by their ETags."""
        assert isinstance(place.daemon, ActivatedDaemon)
        self.tally = Tally()
        self.model = Model()
        self.longest = 0.0
        self._daemon = place.daemon
        self._place = place
        self._random = random.Random(seed)
        self._swaps = swaps

    def run(self, rounds: int, verbs: Sequence[str] = ("restart", "reload")) -> None:
        """Restart and reload in turn, until there is a fault, and audit."""
        first = self._client(keeps=False)
        for key, size in STABLE.items():
            first.put(key, size)
        stop = threading.Event()
        clients = [self._client(keeps, pause) for pause in PAUSES for keeps in (True, False)]
        threads = in_threads(clients, partial(self._work, stop))
        try:
            for number in range(rounds):
                self._replace(verbs[number % len(verbs)])
                if number % 4 == 3 and self._daemon.workers():
                    self._replace("replace_worker")
                if self.tally.faults:
                    break
                time.sleep(self._random.uniform(*LIFE))
        finally:
            stop.set()
        for thread in threads:
            thread.join()
        audit(self._place, self.model, self.tally)

    def _replace(self, verb: str) -> None:
        began = time.monotonic()
        getattr(self._daemon, verb)()
        self.tally.count(verb.replace("_", " "))
        self.longest = max(self.longest, time.monotonic() - began)

    def _client(self, keeps: bool, pause: float = 0.0) -> PersistentClient:
        return PersistentClient(self._daemon, self.model, self.tally, self._random.getrandbits(32), keeps, pause)

    def _work(self, stop: threading.Event, client: PersistentClient) -> None:
        while not stop.wait(client.random.uniform(0, client.pause)):
            try:
                self._one_thing(client)
            except Gone as error:
                self.tally.fault("refused", str(error))

    def _one_thing(self, client: PersistentClient) -> None:
        key, kind, size = client.random.choice(KEYS), client.random.random(), _size(client.random)
        if kind < 0.35:
            client.read(key)
        elif kind < 0.40:
            client.read(client.random.choice(list(STABLE)))
        elif kind < 0.45:
            client.list()
        elif kind < 0.55:
            client.delete(key)
        elif kind < 0.65:
            # Engines check a condition at the end of a multipart upload less often than that of a PutObject.
            client.put_if(min(size, 2 * MiB), if_match=self._swaps and client.random.random() < 0.7)
        elif kind < 0.67:
            client.drop_own()
        elif kind < 0.85:
            client.put_at_once(key, size)
        else:
            client.put(key, size, chunked=kind > 0.95)


def _size(source: random.Random) -> int:
    """A random size: mostly small, sometimes medium, rarely of several parts."""
    kind = source.random()
    if kind < 0.7:
        return source.choice([4 * KiB, 64 * KiB, 64 * KiB + 1, source.randrange(64 * KiB)])
    return source.randrange(64 * KiB, 2 * MiB) if kind < 0.95 else source.randrange(5 * MiB, 12 * MiB)


def main() -> int:
    """Run the rounds and print the figures; the exit status is 1 if there was a fault."""
    stop_on_signals()
    options = _options()
    start = time.monotonic()
    with PLACES[options.engine](make=ActivatedDaemon, storaged=f"workers = {options.workers}\n") as place, place.daemon:
        rounds = Rounds(place, options.seed, swaps=options.engine == "local")
        rounds.run(options.rounds)
        orphans = place.orphans_in_the_end(listed(place.daemon))
        failed = bool(rounds.tally.faults) or orphans > 0
        warnings = place.daemon.warnings[:20]
        if failed:
            print(place.daemon.events)
    title = f"restarts and reloads on {options.engine} with {options.workers} workers, seed {options.seed}"
    seconds = time.monotonic() - start
    print_figures(
        f"{title}: {seconds:.0f} s", rounds.tally, orphans, [f"the longest took {rounds.longest:.1f} s", *warnings]
    )
    return 1 if failed else 0


def _options() -> Namespace:
    parser = ArgumentParser(prog="python -m tests.faults.rounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--engine", choices=PLACES, default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="seed of keys, sizes and moments")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
