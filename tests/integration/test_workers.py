"""A daemon with workers, as processes: it is restarted, reloaded, drained, and its workers are killed, and hang."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Barrier, Event

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.activated import ActivatedDaemon, is_alive, wait_until
from tests.conftest import Engines
from tests.daemon import ROOT
from tests.faults.audit import listed
from tests.faults.places import Place, local, on
from tests.faults.rounds import Rounds
from tests.faults.worker_kills import WorkerKills
from tests.integration.test_model import Client
from twisted_storaged.conformance.raw_http import Connection, NoResponse, head, length

MiB = 1 << 20
#: Blocks the reactor of a process that gets SIGUSR1, and nothing else of it.
BLOCK = "import signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))\n"
WRITERS, RACES = 12, 100
#: The sections of the page on metrics that are about one kind of bucket.
SECTIONS = {"moto": "Buckets in S3", "local": "Embedded buckets"}


def place_of(kind: str, workers: int, all_engines: Engines) -> Iterator[Place]:
    """A daemon with so many workers on a kind of bucket, running."""
    storaged = f"workers = {workers}\n"
    make = local(ActivatedDaemon, storaged) if kind == "local" else on(all_engines.get(kind), ActivatedDaemon, storaged)
    with make as place, place.daemon:
        yield place


@pytest.fixture(params=["local", pytest.param("moto", marks=pytest.mark.full)])
def place(request: pytest.FixtureRequest, all_engines: Engines) -> Iterator[Place]:
    """A daemon with two workers, on each kind of bucket."""
    yield from place_of(request.param, 2, all_engines)


def daemon_of(place: Place) -> ActivatedDaemon:
    assert isinstance(place.daemon, ActivatedDaemon)
    return place.daemon


def connect(daemon: ActivatedDaemon) -> Connection:
    connection = Connection(("127.0.0.1", daemon.port))
    connection.set_timeout(60)
    return connection


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.full), 2])
def workers(request: pytest.FixtureRequest) -> int:
    """How many workers a daemon has."""
    number: int = request.param
    return number


class ReplacementTests:
    """Restarts and reloads under load, as in `python -m tests.faults.rounds`."""

    def rounds(self, place: Place, rounds: int, swaps: bool) -> None:
        load = Rounds(place, seed=1, swaps=swaps)
        load.run(rounds)
        assert load.tally.faults == [], daemon_of(place).events
        assert load.tally.done["PUT"] > 0
        assert place.orphans_in_the_end(listed(place.daemon)) == 0

    def test_no_request_is_refused(self, place: Place) -> None:
        """With two workers, no request is refused and no object torn by a restart or a reload."""
        self.rounds(place, 2, swaps=place.agrees_with_itself)

    @pytest.mark.full
    @pytest.mark.parametrize("kind", ["local", "moto"])
    def test_with_one_worker(self, kind: str, all_engines: Engines) -> None:
        """With one worker, too, no request is refused and no object torn by a restart or a reload."""
        for place in place_of(kind, 1, all_engines):
            self.rounds(place, 6, swaps=place.agrees_with_itself)

    @pytest.mark.full
    def test_reloads_with_a_port_of_its_own(self, workers: int) -> None:
        """A daemon that has bound its port itself, without systemd, refuses no request while it is reloaded."""
        make = partial(ActivatedDaemon, own_port=True)
        with local(make, f"workers = {workers}\n") as place, place.daemon:
            load = Rounds(place, seed=1, swaps=True)
            load.run(4, verbs=["reload"])
            assert load.tally.faults == [], daemon_of(place).events
            assert load.tally.done["reload"] == 4

    @pytest.mark.full
    def test_a_worker_that_is_told_to_stop(self, all_engines: Engines) -> None:
        """A worker that gets SIGTERM serves what is on its way to it, and another takes its place."""
        for place in place_of("local", 2, all_engines):
            daemon, stop = daemon_of(place), Event()

            def ask(daemon: ActivatedDaemon = daemon, stop: Event = stop) -> None:
                while not stop.is_set():
                    with connect(daemon) as connection:
                        connection.send(head("GET", "/health", "Connection: close"))
                        assert connection.response().status == 200

            with ThreadPoolExecutor() as pool:
                asking = [pool.submit(ask) for _ in range(5)]
                try:
                    for _ in range(20):
                        daemon.replace_worker()
                        time.sleep(0.5)
                finally:
                    stop.set()
                for one in asking:
                    one.result()


class KillTests:
    """Workers are killed under load, as in `python -m tests.faults.worker_kills`."""

    def test_nothing_is_lost(self, place: Place) -> None:
        """Kills of workers, and then of the supervisor, lose and tear nothing, and leave no slot taken and no file."""
        kills = WorkerKills(place, seed=1)
        kills.run(3, after=0.5)
        assert kills.tally.faults == [], daemon_of(place).events
        assert kills.tally.done["workers killed"] > 0
        assert kills.orphans() == 0


class DrainTests:
    """SIGTERM while a PUT is under way."""

    @pytest.mark.full
    def test_a_large_put_completes(self, workers: int, tmp_path: Path) -> None:
        """A PUT of 1 GiB that is under way at SIGTERM is answered 200, and the object is whole."""
        policy = '[[policy]]\nprefix = "large/"\nmax_put = "1 GiB"\n'
        piece, count = os.urandom(MiB), 1024
        digest = hashlib.sha256(piece * count).hexdigest()
        with ActivatedDaemon(tmp_path, config=f"[storaged]\nworkers = {workers}\n{policy}") as daemon:
            with connect(daemon) as client, ThreadPoolExecutor() as pool:
                client.send(head("PUT", "/storage/put/large/a", length(count * MiB)))
                for _ in range(count // 2):
                    client.send(piece)
                stopped = pool.submit(daemon.stop)
                daemon.wait_until_told("STOPPING=1")
                for _ in range(count // 2):
                    client.send(piece)
                assert client.response("PUT").status == 200
                assert stopped.result() == 0
            daemon.start()
            with connect(daemon) as client:
                client.send(head("GET", "/storage/get/large/a"))
                assert hashlib.sha256(client.response().body).hexdigest() == digest

    @pytest.mark.full
    def test_a_put_in_parts_completes(self, workers: int, all_engines: Engines) -> None:
        """A multipart upload to S3 that is under way at SIGTERM is completed, and then the daemon ends."""
        content = os.urandom(12 * MiB)
        for place in place_of("moto", workers, all_engines):
            daemon = daemon_of(place)
            with self.put_begun(place, content) as client, ThreadPoolExecutor() as pool:
                stopped = pool.submit(daemon.stop)
                daemon.wait_until_told("STOPPING=1")
                client.send(content[6 * MiB :])
                assert client.response("PUT").status == 200
                assert stopped.result() == 0
            daemon.start()
            with connect(daemon) as client:
                client.send(head("GET", "/storage/get/a"))
                assert client.response().body == content

    def test_a_second_signal(self, workers: int, all_engines: Engines) -> None:
        """A second SIGTERM drops a PUT without a response, aborts its upload on S3, and ends the daemon with 0."""
        for place in place_of("moto", workers, all_engines):
            with self.put_begun(place, os.urandom(12 * MiB)) as client:
                began = time.monotonic()
                assert daemon_of(place).stop(skip_drain=True) == 0
                assert time.monotonic() - began < 20
                with pytest.raises(NoResponse):
                    client.response("PUT")
            assert place.orphans({}) == 0

    def put_begun(self, place: Place, content: bytes) -> Connection:
        """A connection on which half of a PUT has been sent, for which there is a multipart upload."""
        client = connect(daemon_of(place))
        client.send(head("PUT", "/storage/put/a", length(len(content))) + content[: 6 * MiB])
        wait_until(lambda: place.orphans({}))
        return client


@pytest.mark.full
class HangTests:
    """A worker hangs: its process is stopped, or its reactor is blocked."""

    @pytest.fixture(params=["stopped", "blocked"])
    def hang(self, request: pytest.FixtureRequest) -> Callable[[int], None]:
        """A function that makes a process hang."""
        number = signal.SIGSTOP if request.param == "stopped" else signal.SIGUSR1
        return lambda worker: os.kill(worker, number)

    @pytest.fixture
    def start(self, tmp_path: Path) -> Iterator[Callable[..., ActivatedDaemon]]:
        """A function that starts a daemon with two workers."""
        (tmp_path / "sitecustomize.py").write_text(BLOCK)
        with ExitStack() as started:

            def start(watchdog_seconds: float | None = None) -> ActivatedDaemon:
                daemon = ActivatedDaemon(
                    tmp_path,
                    config="[storaged]\nworkers = 2\n",
                    launcher=["env", f"PYTHONPATH={tmp_path}:{ROOT}"],
                    watchdog_seconds=watchdog_seconds,
                )
                return started.enter_context(daemon)

            yield start

    def kept(self, daemon: ActivatedDaemon) -> list[Connection]:
        """Connections that have been served."""
        connections = [connect(daemon) for _ in range(6)]
        for connection in connections:
            assert self.seconds(connection) < 5
        return connections

    def seconds(self, connection: Connection) -> float:
        """Put and get an object; returns how long it took."""
        began = time.monotonic()
        connection.send(head("PUT", "/storage/put/a", length(5)) + b"hello")
        assert connection.response("PUT").status == 200
        connection.send(head("GET", "/storage/get/a"))
        assert connection.response().body == b"hello"
        return time.monotonic() - began

    def unharmed(self, connections: list[Connection]) -> list[Connection]:
        """The connections of the worker that does not hang."""
        found = []
        for connection in connections:
            connection.set_timeout(0.5)
            try:
                connection.send(head("GET", "/storage/get/a"))
                assert connection.response().body == b"hello"
            except NoResponse:
                continue
            connection.set_timeout(60)
            found.append(connection)
        return found

    def test_it_is_replaced(self, start: Callable[..., ActivatedDaemon], hang: Callable[[int], None]) -> None:
        """It is killed within a third of the watchdog's interval, and clients of the other worker notice nothing."""
        daemon = start(watchdog_seconds=9)
        before = daemon.workers()
        connections = self.kept(daemon)
        hang(before[0])
        began = time.monotonic()
        others = self.unharmed(connections)
        assert len(others) == 3
        took = []
        while is_alive(before[0]):
            assert time.monotonic() - began < 9
            took += [self.seconds(connection) for connection in others]
            time.sleep(0.01)
        ended = time.monotonic()
        assert not [told for at, told in daemon.told if began + 3 < at < ended and "WATCHDOG=1" in told]
        daemon.wait_for_workers(2, without=(before[0],))
        took += [self.seconds(connection) for connection in others]
        took.sort()
        assert took[len(took) * 99 // 100] < 0.5
        assert before[1] in daemon.workers()
        assert f"worker {before[0]} is killed: it has not answered for 3 s" in daemon.log

    def test_it_gets_no_connections(self, start: Callable[..., ActivatedDaemon], hang: Callable[[int], None]) -> None:
        """After three seconds it gets no more connections; without a watchdog it is killed after twenty."""
        daemon = start()
        before = daemon.workers()
        self.kept(daemon)
        hang(before[0])
        began = time.monotonic()
        time.sleep(5)
        while is_alive(before[0]):
            with connect(daemon) as connection:
                assert self.seconds(connection) < 2
            time.sleep(0.05)
        assert 17 < time.monotonic() - began < 26
        daemon.wait_for_workers(2, without=(before[0],))
        for connection in self.kept(daemon):
            connection.close()


@pytest.mark.full
class RaceTests:
    """Conditional writes of one key through connections to different workers."""

    @pytest.mark.parametrize("kind", ["local", "ceph"])
    def test_one_wins(self, kind: str, all_engines: Engines) -> None:
        """Of twelve concurrent PUTs with If-None-Match: *, exactly one succeeds, in each round."""
        for place in place_of(kind, 2, all_engines):
            self.race(daemon_of(place))

    def race(self, daemon: ActivatedDaemon) -> None:
        clients = [Client(daemon.port) for _ in range(WRITERS)]
        with ThreadPoolExecutor(WRITERS) as pool:
            for number in range(RACES):
                together = Barrier(WRITERS)

                def create(writer: int, path: str = f"/objects/race/{number}", together: Barrier = together) -> int:
                    together.wait()
                    while (status := clients[writer].ask("PUT", path, b"%d" % writer, If_None_Match="*")[0]) == 503:
                        pass
                    return status

                statuses = list(pool.map(create, range(WRITERS)))
                assert sorted(statuses) == [200] + [412] * (WRITERS - 1)
                _, _, body = clients[0].ask("GET", f"/objects/race/{number}")
                assert statuses[int(body)] == 200


class MetricsTests:
    """One scrape shows all workers."""

    def text(self, daemon: ActivatedDaemon) -> str:
        """What /metrics has; nothing if the worker that was asked has just been killed."""
        with connect(daemon) as connection, suppress(NoResponse):
            connection.send(head("GET", "/metrics", "Connection: close"))
            return connection.response().body.decode()
        return ""

    def scrape(self, daemon: ActivatedDaemon) -> dict[str, float]:
        """The values of /metrics, by name and labels as they are written."""
        text = self.text(daemon)
        samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}

    def test_all_workers(self, place: Place) -> None:
        """Requests that any worker has served are counted, and still are when one of them has been killed."""
        daemon, puts = daemon_of(place), 'storaged_requests_total{operation="put",outcome="complete",status="2xx"}'
        for number in range(20):
            with connect(daemon) as connection:
                connection.send(head("PUT", f"/objects/{number}", length(1), "Connection: close") + b"x")
                assert connection.response().status == 200
        # Several times, so that each worker is asked, which sees the files of the others.
        wait_until(lambda: [self.scrape(daemon).get(puts) for _ in range(4)] == [20] * 4)
        os.kill(daemon.workers()[0], signal.SIGKILL)
        wait_until(lambda: self.scrape(daemon).get('storaged_workers_ended_total{how="killed"}') == 1)
        wait_until(lambda: self.scrape(daemon).get("storaged_workers") == 2)
        assert self.scrape(daemon)[puts] == 20

    def test_counters_never_go_back(self, place: Place) -> None:
        """What a scrape has shown, later ones have, too, though all workers are killed right after it."""
        daemon = daemon_of(place)
        put = 'storaged_requests_total{operation="put",outcome="complete",status="2xx"} 1.0'
        with connect(daemon) as client:

            def is_shown() -> bool:
                client.send(head("GET", "/metrics"))
                return put in client.response().body.decode()

            client.send(head("PUT", "/objects/k", length(1)) + b"x")
            assert client.response().status == 200
            wait_until(is_shown)
            for pid in daemon.workers():
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.scrape(daemon).get('storaged_workers_ended_total{how="killed"}') == 2)
        assert put in self.text(daemon)

    def test_under_way(self, place: Place) -> None:
        """A PUT that waits for its client is seen, and the slot that it holds, whichever worker is asked."""
        daemon = daemon_of(place)
        watched = ("storaged_put_slots_taken", "storaged_requests_under_way", "storaged_connections")
        with connect(daemon) as client:
            client.send(head("PUT", "/objects/k", length(2)) + b"x")
            # The scrape itself is a request, too.
            wait_until(lambda: [[self.scrape(daemon)[one] for one in watched] for _ in range(4)] == [[1, 2, 2]] * 4)
            client.send(b"x")
            assert client.response().status == 200
        wait_until(lambda: [[self.scrape(daemon)[one] for one in watched] for _ in range(4)] == [[0, 1, 1]] * 4)

    def test_draining(self, place: Place) -> None:
        """A worker that waits for a PUT before it is replaced is counted; its processor time is kept."""
        daemon = daemon_of(place)
        with connect(daemon) as client:
            client.send(head("PUT", "/objects/k", length(2)) + b"x")
            wait_until(lambda: self.scrape(daemon).get("storaged_put_slots_taken") == 1)
            assert self.scrape(daemon)["storaged_draining"] == 0
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda: self.scrape(daemon).get("storaged_draining") == 1, 30)
            before = self.scrape(daemon)['storaged_cpu_seconds_total{mode="user"}']
            client.send(b"x")
            assert client.response().status == 200
        wait_until(lambda: self.scrape(daemon).get("storaged_draining") == 0)
        assert self.scrape(daemon)['storaged_cpu_seconds_total{mode="user"}'] >= before

    def test_documented(self, place: Place, request: pytest.FixtureRequest) -> None:
        """The page on metrics has each of them, with its type and labels."""
        daemon = daemon_of(place)
        with connect(daemon) as connection:
            connection.send(head("GET", "/storage/get/nothing", "Connection: close"))
            assert connection.response().status == 404
        error = 'storaged_request_errors_total{operation="get",reason="ObjectNotFound"}'
        wait_until(lambda: [self.scrape(daemon).get(error) for _ in range(4)] == [1] * 4, 30)
        text = self.text(daemon)
        served = {
            (family.name + ("_total" if family.type == "counter" else ""), family.type): {
                label for sample in family.samples for label in sample.labels if label != "le"
            }
            for family in text_string_to_metric_families(text)
        }
        documented = self.documented(request.node.callspec.params["place"])
        assert documented.keys() == served.keys()
        # One that has labels and has not moved shows none of them.
        moved = {metric: labels for metric, labels in served.items() if labels}
        assert moved == {metric: documented[metric] for metric in moved}

    def documented(self, kind: str) -> dict[tuple[str, str], set[str]]:
        """The labels of the metrics that the page has for this kind of bucket, by names and types."""
        page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
        others = [heading for kind_, heading in SECTIONS.items() if kind_ != kind]
        sections = [text for text in page.split("\n## ") if text.partition("\n")[0] not in others]
        rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\|", "\n".join(sections), re.MULTILINE)
        return {(name, type_): set(re.findall(r"\w+", labels)) for name, type_, labels in rows}
