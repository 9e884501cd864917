"""What is under way in a process, and the status that is made of it."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from msgspec.structs import asdict
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail

from tests.server.wire import Connection, Server, chunk, chunked_put, put, request
from tests.support import Consumer, MemoryBucket, result
from twisted_storaged.errors import BucketTimedOut, SupervisorSilent
from twisted_storaged.model import NO_OPTIONS, ObjectInfo, PutOptions
from twisted_storaged.reports import Report, Reports
from twisted_storaged.routing import Policy, Rule
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.status import INTERVAL, INTERVALS, MOST_REFUSALS, MOST_TRANSFERS, Interval, ProcessStatus
from twisted_storaged.status import Rule as ShownRule
from twisted_storaged.under_way import SAMPLE_INTERVAL, StatusCollector, UnderWay, _shown, merged


class Process:
    """A process with a bucket in memory."""

    def __init__(
        self, kind: str = "s3", bucket: MemoryBucket | None = None, put_slots: int = 4, started: float = 0.0
    ) -> None:
        self.server = Server(bucket, put_slots=put_slots)
        self.server.now = started
        self.under_way = UnderWay(
            self.server.site,
            self.server.slots,
            self.server.past,
            {"primary": kind},
            self.server.clock,
            lambda: self.server.now,
        )

    def advance(self, seconds: float) -> None:
        """Let time pass, by both clocks."""
        self.server.clock.advance(seconds)
        self.server.now += seconds

    @property
    def status(self) -> ProcessStatus:
        """The status at this moment, as of a process that has ended its requests."""
        self.server.site.flush_log()
        return self.under_way.status()

    def trickle(self, key: str = "k", sent: int = 10, size: int = 1000) -> Connection:
        """A client that has begun to put an object."""
        client = self.server.connect()
        client.send(put(key, length=size))
        client.send(bytes(sent))
        return client

    def waits_for(self) -> list[str]:
        """Whom the transfers wait for."""
        return [one.waits_for for one in self.status.transfers]


class StalledBucket(MemoryBucket):
    """A bucket whose calls end when the test says so."""

    def __init__(self, starts: bool = True) -> None:
        super().__init__()
        self.end: Deferred[Any] = Deferred()
        self.body: Any = None
        self._starts = starts

    def put(self, key: str, body: Any, max_length: int, options: PutOptions = NO_OPTIONS) -> Deferred[ObjectInfo]:
        self.body = body
        if self._starts:
            body.startProducing(Consumer())
        return self.end

    def get(self, *_: Any) -> Deferred[Any]:
        return self.end


class TransferTests:
    """Transfers of a process."""

    def test_a_put(self) -> None:
        """A PUT that trickles holds a slot, and waits for its client."""
        process = Process(started=7.0)
        process.trickle("a/%C3%BC", 250, 1000)
        process.advance(5)
        status = process.status
        (transfer,) = status.transfers
        assert asdict(transfer) == {
            "id": "test-1",
            "client": "192.168.1.1:54321",
            "operation": "put",
            "bucket": "primary",
            "key": "a/ü",
            "size": 1000,
            "done": 250,
            "rate": 50.0,
            "age": 5.0,
            "holds_slot": True,
            "waits_for": "client",
            "worker": os.getpid(),
        }
        assert (status.slots_taken, status.connections, status.requests_under_way) == (1, 1, 1)
        assert (status.pid, status.started, status.draining) == (os.getpid(), 7.0, False)

    def test_a_get(self) -> None:
        """A GET that its client does not read waits for that; what it has written counts."""
        process = Process("local")
        process.server.bucket.objects["k"] = bytes(8 << 20)
        client = process.server.connect()
        client.full_after_each_write()
        client.send(request("GET", "/storage/get/k"))
        client.flow()
        (transfer,) = process.status.transfers
        assert (transfer.operation, transfer.size, transfer.holds_slot) == ("get", 8 << 20, False)
        assert 0 < transfer.done < 8 << 20
        assert transfer.waits_for == "client"

    def test_rate(self) -> None:
        """The rate is that of the last five seconds or so, not of the whole age."""
        process = Process()
        client = process.trickle(sent=100)
        rates = []
        for sent in (0, 300, 200, 0, 0, 0, 0, 0, 0, 300, 0):
            client.send(bytes(sent))
            process.advance(1)
            process.under_way.sample()
            (transfer,) = process.status.transfers
            rates.append(transfer.rate)
        assert rates == [100, 200, 200, 150, 120, 100, 40, 0, 0, 60, 60]
        # Without time, there is none.
        process.under_way.sample()
        assert process.status.transfers[0].rate == 60

    def test_no_samples_are_kept(self) -> None:
        """Nothing is kept of requests that have ended."""
        process = Process()
        client = process.trickle()
        process.advance(1)
        process.under_way.sample()
        assert len(process.under_way._samples) == 1
        client.send(bytes(990))
        client.received()
        assert process.status.transfers == []
        del client
        assert len(process.under_way._samples) == 0

    def test_order_and_number(self) -> None:
        """The oldest come first; if there are too many, those that hold slots are shown all the same."""
        process = Process(bucket=StalledBucket())
        readers = []
        for _ in range(MOST_TRANSFERS + 5):
            readers.append(process.server.connect())
            readers[-1].send(request("GET", "/storage/get/k"))
            process.advance(0.01)
        process.trickle()
        transfers = process.status.transfers
        assert len(transfers) == MOST_TRANSFERS
        assert [one.operation for one in transfers] == ["get"] * (MOST_TRANSFERS - 1) + ["put"]
        assert [one.age for one in transfers] == sorted((one.age for one in transfers), reverse=True)
        assert transfers[0].id == "test-1"
        assert process.status.requests_under_way == MOST_TRANSFERS + 6

    def test_other_requests(self) -> None:
        """Requests that are not for an object are no transfers."""
        process = Process()
        client = process.server.connect()
        client.send(b"GET /storage/get/k HTTP/1.1\r\n")
        assert process.status.transfers == []
        assert process.status.requests_under_way == 1

    def test_secrets(self) -> None:
        """A key that is a presigned URL shows no signature."""
        process = Process()
        process.trickle("u?X-Amz-Signature=abc".replace("?", "%3F"))
        assert process.status.transfers[0].key == "u?X-Amz-Signature=[redacted]"

    def test_long_keys(self) -> None:
        """A key is searched for secrets once, and not each second, as that takes long for some."""
        process = Process()
        key = f"{'a=b%26' * 100}{uuid4()}"
        process.trickle(key)
        assert process.status.transfers[0].key == unquote(key)
        before = _shown.cache_info()
        assert process.status.transfers[0].key == unquote(key)
        after = _shown.cache_info()
        assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)

    def test_addresses(self) -> None:
        """The address of a client is that of its connection."""
        process = Process()
        client = process.server.connect()
        for address, shown in [(IPv6Address("TCP", "::1", 7), "[::1]:7"), (UNIXAddress(None), "unix")]:
            client.channel._peer = address
            client.send(put("k", length=10))
            assert process.status.transfers[-1].client == shown
            client.lose()
            client = process.server.connect()


class WaitsForTests:
    """Whom a transfer waits for."""

    def test_the_bucket(self) -> None:
        """A body that is complete, or paused by its consumer, waits for the bucket."""
        for kind, shown in [("s3", "S3"), ("local", "disk")]:
            bucket = StalledBucket()
            process = Process(kind, bucket)
            process.trickle()
            assert process.waits_for() == ["client"]
            bucket.body.pauseProducing()
            assert process.waits_for() == [shown]
            complete = Process(kind, StalledBucket())
            complete.trickle(sent=1000)
            assert complete.waits_for() == [shown]

    def test_storaged(self) -> None:
        """A body that the bucket has not begun to read waits for storaged."""
        process = Process(bucket=StalledBucket(starts=False))
        process.trickle()
        assert process.waits_for() == ["storaged"]

    def test_a_get(self) -> None:
        """A GET waits for the bucket until there is something to send; so does a DELETE."""
        process = Process(bucket=StalledBucket())
        client = process.server.connect()
        client.send(request("GET", "/storage/get/k"))
        (transfer,) = process.status.transfers
        assert (transfer.waits_for, transfer.size, transfer.done) == ("S3", None, 0)

    def test_a_client_that_is_gone(self) -> None:
        """An upload that is aborted as its client is gone holds its slot until that is done."""
        bucket = StalledBucket()
        process = Process(bucket=bucket)
        client = process.trickle()
        process.advance(1)
        process.under_way.sample()
        client.lose()
        (transfer,) = process.status.transfers
        assert (transfer.holds_slot, transfer.waits_for, transfer.rate, transfer.done) == (True, "S3", 0.0, 10)
        bucket.end.errback(BucketTimedOut("it hangs"))
        status = process.status
        assert (status.transfers, status.slots_taken) == ([], 0)


class PastTests:
    """What is kept of requests that have ended."""

    def test_a_refusal(self) -> None:
        """A PUT that is refused is told, with the name of the error."""
        process = Process(put_slots=1)
        process.trickle()
        process.advance(3)
        process.trickle("wanted")
        (refusal,) = process.status.refusals
        assert asdict(refusal) == {
            "at": 3.0,
            "id": "test-2",
            "client": "192.168.1.1:54321",
            "operation": "put",
            "bucket": "primary",
            "key": "wanted",
            "status": 503,
            "reason": "NoFreeSlot",
        }

    def test_cuts(self) -> None:
        """A response that was cut is told, also without an error; so is what is no request."""
        process = Process()
        process.trickle().channel.abort("storaged stops")
        process.server.connect().send(b"nonsense\r\n\r\n")
        for channel in list(process.server.site.channels):
            channel.connectionLost(None)
        found = [(one.status, one.reason) for one in process.status.refusals]
        assert sorted(found, key=str) == [(400, "no request"), (None, "storaged stops")]

    def test_ordinary_ends(self) -> None:
        """Objects that are not there, and clients that disconnect, are no refusals."""
        process = Process()
        process.server.ask(request("GET", "/storage/get/none"))
        process.server.ask(put("k", b"x", 'If-Match: "none"'))
        process.trickle().lose()
        process.server.ask(put("k", b"x"))
        assert process.status.refusals == []

    def test_the_latest_first(self) -> None:
        """The last refusals are kept, the latest first."""
        process = Process()
        for number in range(MOST_REFUSALS + 2):
            process.server.ask(put(f"k{number}", length=1 << 40))
        keys = [one.key for one in process.status.refusals]
        assert keys == [f"k{number}" for number in range(MOST_REFUSALS + 1, 1, -1)]


class IntervalTests:
    """Bytes by time."""

    def test_transfers_under_way(self) -> None:
        """The bytes of a transfer count when they pass, not when it ends; none counts twice."""
        process = Process()
        client = process.trickle(sent=100)
        process.under_way.sample()
        process.advance(INTERVAL)
        client.send(bytes(900))
        sent = len(client.response().body)
        process.advance(1)
        process.under_way.sample()
        assert process.status.intervals == [Interval(0, 100, 0), Interval(INTERVAL, 900, sent)]
        process.advance(INTERVAL)
        process.under_way.sample()
        assert process.status.intervals[-1] == Interval(2 * INTERVAL, 0, 0)

    def test_an_end_that_is_not_counted_yet(self) -> None:
        """A request that has ended a moment ago neither counts twice, nor hides what others transfer."""
        process = Process()
        first, second = process.trickle(sent=500), process.trickle(sent=0)
        process.under_way.sample()
        first.lose()
        second.send(bytes(200))
        # Its end is not counted yet.
        process.under_way.sample()
        process.server.site.flush_log()
        process.under_way.sample()
        assert [one.received for one in process.status.intervals] == [700]

    def test_what_does_not_count(self) -> None:
        """Bytes of what shows the status are none of the daemon's traffic, neither meanwhile nor at the end."""
        process = Process()
        process.server.connect().send(
            request("GET", "/health") + request("PUT", "/health", "Content-Length: 9") + b"1234"
        )
        process.under_way.sample()
        process.server.site.flush_log()
        process.under_way.sample()
        assert [(one.received, one.sent) for one in process.status.intervals] == [(0, 0)]

    def test_the_last_ten_minutes(self) -> None:
        """Older ones are dropped; the wall clock may be set."""
        process = Process()
        process.under_way.sample()
        for _ in range(INTERVALS):
            process.advance(INTERVAL)
            process.under_way.sample()
        assert [one.at for one in process.status.intervals] == [INTERVAL * n for n in range(1, INTERVALS + 1)]
        process.server.now = 3.0 * INTERVAL
        process.under_way.sample()
        assert [one.at for one in process.status.intervals] == [INTERVAL, 2 * INTERVAL, 3 * INTERVAL]

    def test_sampling(self) -> None:
        """Once it is started, it measures once a second until it is stopped."""
        process = Process()
        process.under_way.start()
        process.trickle(sent=100)
        process.advance(SAMPLE_INTERVAL)
        assert process.status.intervals[-1].received == 100
        process.under_way.stop()
        process.under_way.stop()
        process.trickle(sent=100)
        process.advance(SAMPLE_INTERVAL)
        assert process.status.intervals[-1].received == 100


class Others:
    """The reports of a supervisor, and of another worker."""

    def __init__(self, status: ProcessStatus) -> None:
        self._reports = [Report(1, 2.0, []), Report(2, 2.0, [], status)]

    def collect(self) -> Deferred[list[Report]]:
        collected: Deferred[list[Report]] = Deferred()
        collected.callback(self._reports)
        return collected


class Silent:
    """A supervisor that does not answer."""

    def collect(self) -> Deferred[list[Report]]:
        return fail(SupervisorSilent())


class StatusTests:
    """The status of all processes."""

    def test_collect(self) -> None:
        """One status has the transfers, refusals and bytes of all processes, and what is the same for all."""
        first, second = Process(put_slots=1), Process(put_slots=1)
        for process, key in [(second, "old"), (first, "new")]:
            process.trickle(key)
            first.advance(1)
            second.advance(1)
            process.trickle("refused")
            process.under_way.sample()
        reports = Reports(Meters(), Others(second.status))
        first.server.site.flush_log()
        reports.status = first.under_way.status
        policy = Policy([Rule("a/", 5, slots=2)])
        status = result(StatusCollector(reports, first.server.slots, policy, list, lambda: 9.0).collect())
        assert [one.key for one in status.transfers] == ["old", "new"]
        assert [one.at for one in status.refusals] == [2.0, 1.0]
        assert [(one.at, one.received) for one in status.intervals] == [(0, 20)]
        assert (status.at, status.slots_taken, status.slots) == (9.0, 2, 1)
        assert (status.connections, status.requests_under_way, status.buckets) == (4, 2, [])
        assert set(status.versions) == {"storaged", "python", "twisted"}
        assert status.policies[1] == ShownRule("a/", 5, "primary", 2)
        assert [(one.slots_taken, one.transfers, one.refusals, one.intervals) for one in status.workers] == [
            (1, [], [], [])
        ] * 2

    def test_silent(self) -> None:
        """If the supervisor does not answer, the status is that of this process."""
        process = Process()
        process.trickle()
        reports = Reports(Meters(), Silent())
        reports.status = process.under_way.status
        status = result(StatusCollector(reports, process.server.slots, Policy(), list).collect())
        assert (len(status.transfers), len(status.workers)) == (1, 1)

    def test_draining(self) -> None:
        """A process that stops says so."""
        process = Process()
        process.trickle()
        process.server.site.drain()
        assert process.status.draining

    def test_intervals(self) -> None:
        """Intervals of several processes are added, in order, and as many as of one are kept."""
        one, other = Process().status, Process().status
        one.intervals = [Interval(INTERVAL * n, 1, 2) for n in range(1, INTERVALS + 1)]
        other.intervals = [Interval(INTERVAL * n, 10, 20) for n in range(INTERVALS)]
        intervals = merged([one, other], 0.0, 4, [], []).intervals
        assert len(intervals) == INTERVALS
        assert intervals[0] == Interval(INTERVAL, 11, 22)
        assert intervals[-1] == Interval(INTERVAL * INTERVALS, 1, 2)


def test_chunked() -> None:
    """The size of a chunked body is not known."""
    process = Process()
    client = process.server.connect()
    client.send(chunked_put("k"))
    client.send(chunk(b"abc"))
    (transfer,) = process.status.transfers
    assert (transfer.size, transfer.done) == (None, 3)
