"""The reaper: what it removes, what it leaves alone, and when it runs; with a clock and a fake S3."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from tests.support import result, run_now
from twisted_storaged.buckets.s3.client import OpenUpload, S3Request
from twisted_storaged.buckets.s3.context import S3Context
from twisted_storaged.buckets.s3.journal import PROBE, Journal, JournalEntry
from twisted_storaged.buckets.s3.probe import new_probe_key
from twisted_storaged.buckets.s3.reaper import SKEW, Reaper
from twisted_storaged.buckets.s3.responses import RequestFailed, Retries
from twisted_storaged.protocol.http1 import ConnectionFailed, Response

DEADLINE = 10.0
ABANDONED_AFTER = 500.0
#: When uploads were begun that cannot come any more, and that nobody can be sending.
LONG_AGO = time.time() - 1000


@dataclass
class Engine:
    """The uploads of a bucket, some with parts; calls fail as the test says."""

    open: list[OpenUpload] = field(default_factory=list)
    with_parts: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    failing: Exception | None = None
    hangs: Deferred[None] | None = None
    retries: Retries = field(default_factory=lambda: Retries(Clock(), DEADLINE))
    versions: list[str] = field(default_factory=list)

    async def abort(self, key: str, upload_id: str) -> None:
        self.asked.append(upload_id)
        if self.hangs is not None:
            await self.hangs
        if self.failing is not None:
            raise self.failing
        found = [one for one in self.open if (one.key, one.upload_id) == (key, upload_id)]
        if not found:
            raise RequestFailed("AbortMultipartUpload", Response(404, {}), again=False)
        self.open.remove(found[0])

    async def of(self, key: str) -> list[OpenUpload]:
        if self.failing is not None:
            raise self.failing
        return [one for one in self.open if one.key == key]

    async def has_parts(self, key: str, upload_id: str) -> bool:
        return upload_id in self.with_parts

    async def delete_object(self, key: str) -> None:
        self.asked.append(key)
        if self.failing is not None:
            raise self.failing
        self.versions = [f"a marker on {len(self.versions)}", *self.versions] if self.versions else []

    async def ask(self, call: S3Request) -> Response:
        answer = Response(200, {})
        if call.operation == "DeleteObject":
            self.versions.remove(call.query["versionId"])
        else:
            found = "".join(_version(call.query["prefix"], one) for one in self.versions[:3])
            answer.body = f"<ListVersionsResult>{_version('another', '1')}{found}</ListVersionsResult>".encode()
        return answer

    def ids(self) -> list[str]:
        """The ids of the uploads that exist."""
        return [one.upload_id for one in self.open]


def _version(key: str, version: str) -> str:
    name = "DeleteMarker" if "marker" in version else "Version"
    return f"<{name}><Key>{key}</Key><VersionId>{version}</VersionId></{name}>"


class ClockOfAReactor(Clock):
    """The clock of a reactor that runs already."""

    def callWhenRunning(self, call: Any, *args: Any) -> None:
        call(*args)


class Made:
    """A reaper, and the journal of another process, which `crash` ends."""

    def __init__(self, state: Path) -> None:
        self.engine = Engine()
        self.journal = Journal(state)
        self.journal.open()
        self.own = Journal(state)
        self.own.open()
        uploads: Any = self.engine
        self.reaper = Reaper(S3Context(uploads, uploads, run_now, self.own, "where"), ABANDONED_AFTER)
        self.clock = ClockOfAReactor()

    def crash(self) -> None:
        """Release the lock of the journal, as the kernel does for a killed process."""
        assert self.journal._lock is not None
        os.close(self.journal._lock)

    def begun(self, upload_id: str | None, key: str = "k", began: float = LONG_AGO) -> JournalEntry:
        """Add an upload to the journal of the process that crashes; with an id, S3 has it, too."""
        begun = self.journal.begin("where", key)
        begun.path.write_text(begun.path.read_text().replace(str(begun.began), str(began)))
        if upload_id is not None:
            begun.created(upload_id)
            self.engine.open.append(OpenUpload(key, upload_id, began))
        return begun

    def reap(self) -> None:
        result(self.reaper.reap())


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: Any) -> None:
        if event["log_namespace"] == "twisted_storaged.buckets.s3.reaper":
            lines.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
    yield lines
    globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]


class KnownIdTests:
    """An upload whose id is in the journal."""

    def test_is_aborted_and_forgotten(self, made: Made, logged: list[str]) -> None:
        """An orphaned upload is aborted, with or without parts, and no other."""
        begun = made.begun("ours")
        made.engine.with_parts.add("ours")
        made.engine.open.append(OpenUpload("k", "somebody's", LONG_AGO))
        made.crash()
        made.reap()
        assert (made.engine.ids(), begun.path.exists()) == (["somebody's"], False)
        assert logged == ["aborted an orphaned upload of 'k'"]

    def test_one_that_has_ended_meanwhile_is_forgotten(self, made: Made, logged: list[str]) -> None:
        """The entry of an orphaned upload that S3 does not know is deleted."""
        begun = made.begun("ours")
        made.engine.open.clear()
        made.crash()
        made.reap()
        assert (begun.path.exists(), logged) == (False, [])

    @pytest.mark.parametrize(
        "failing",
        [ConnectionFailed("S3 is down"), RequestFailed("AbortMultipartUpload", Response(403, {}), again=False)],
    )
    def test_one_that_cannot_be_aborted_stays(self, made: Made, logged: list[str], failing: Exception) -> None:
        """An orphaned upload that cannot be aborted is logged and stays for the next time; the others are processed."""
        begun = [made.begun("one"), made.begun("two")]
        made.crash()
        made.engine.failing = failing
        made.reap()
        assert sorted(made.engine.asked) == ["one", "two"]
        assert all(one.path.exists() for one in begun)
        assert sorted(logged) == [f"upload of 'k' was not aborted: {failing}"] * 2
        made.engine.failing = None
        made.reap()
        assert not any(one.path.exists() for one in begun)
        assert made.engine.ids() == []

    def test_one_of_a_process_that_lives_is_not(self, made: Made) -> None:
        """An upload of a living process is not aborted."""
        made.begun("ours")
        made.reap()
        assert made.engine.asked == []

    def test_one_that_was_given_up_is(self, made: Made) -> None:
        """An upload that this process has deferred to the reaper is aborted."""
        begun = made.own.begin("where", "k")
        begun.created("ours")
        made.engine.open.append(OpenUpload("k", "ours", LONG_AGO))
        made.own.defer_to_reaper(begun)
        made.reap()
        assert (made.engine.ids(), begun.path.exists()) == ([], False)


class UnknownIdTests:
    """Uploads that S3 may have created for a process that ended before it knew the id."""

    def test_is_found(self, made: Made) -> None:
        """An upload without a known id is found by its key and time, with margins for clocks and a slow S3."""
        begun = made.begun(None)
        for at in (-SKEW + 1, 0.0, DEADLINE + SKEW - 1):
            made.engine.open.append(OpenUpload("k", f"stray {at}", LONG_AGO + at))
        made.crash()
        made.reap()
        assert (made.engine.ids(), begun.path.exists()) == ([], False)

    @pytest.mark.parametrize(
        "other",
        [
            OpenUpload("k/another", "other key", LONG_AGO),
            OpenUpload("k", "with parts", LONG_AGO),
            OpenUpload("k", "earlier", LONG_AGO - SKEW - 1),
            OpenUpload("k", "later", LONG_AGO + DEADLINE + SKEW + 1),
            OpenUpload("k", "known", LONG_AGO),
        ],
        ids=lambda other: other.upload_id,
    )
    def test_others_are_left_alone(self, made: Made, other: OpenUpload) -> None:
        """An upload is not aborted if it has another key or time, has parts, or belongs to a living process."""
        begun = made.begun(None)
        made.engine.open.append(other)
        made.engine.with_parts.add("with parts")
        made.own.begin("where", "k").created("known")
        made.crash()
        made.reap()
        assert (made.engine.asked, begun.path.exists()) == ([], False)

    def test_one_that_is_noted_at_this_moment_is_left_alone(self, made: Made) -> None:
        """An upload whose id is noted after S3 listed it is not aborted."""
        living = made.own.begin("where", "k")
        made.begun(None)
        made.engine.open.append(OpenUpload("k", "new", LONG_AGO))
        listing = made.engine.of

        async def of(key: str) -> list[OpenUpload]:
            found = await listing(key)
            living.created("new")
            return found

        made.engine.of = of  # type: ignore[method-assign]
        made.crash()
        made.reap()
        assert made.engine.asked == []

    def test_is_looked_for_as_long_as_it_can_come(self, made: Made) -> None:
        """The entry stays as long as a slow S3 may still create the upload."""
        now = time.time()
        begun = made.begun(None, began=now)
        made.crash()
        made.reap()
        assert begun.path.exists()
        made.engine.open.append(OpenUpload("k", "late", now))
        made.reap()
        assert (made.engine.ids(), begun.path.exists()) == (["late"], True)

    @pytest.mark.parametrize(("ago", "left"), [(ABANDONED_AFTER - 5, ["one"]), (ABANDONED_AFTER + 5, [])])
    def test_is_left_until_nobody_can_be_sending_it(self, made: Made, ago: float, left: list[str]) -> None:
        """An upload is not aborted while a daemon on another host may be about to send its first part."""
        begun = made.begun(None, began=time.time() - ago)
        made.engine.open.append(OpenUpload("k", "one", time.time() - ago))
        made.crash()
        made.reap()
        assert (made.engine.ids(), begun.path.exists()) == (left, True)

    @pytest.mark.parametrize("whose", ["own", "another's"])
    def test_is_left_while_somebody_may_be_sending_it(self, made: Made, tmp_path: Path, whose: str) -> None:
        """An upload is not aborted while a living process has an entry of that key without an id."""
        another = Journal(tmp_path)
        another.open()
        living = (made.own if whose == "own" else another).begin("where", "k")
        begun = made.begun(None)
        made.engine.open.append(OpenUpload("k", "live", LONG_AGO))
        made.crash()
        for _ in range(2):
            made.reap()
            assert (made.engine.ids(), begun.path.exists()) == (["live"], True)
        living.created("live")
        made.reap()
        assert (made.engine.ids(), begun.path.exists()) == (["live"], False)

    def test_stays_where_s3_does_not_say(self, made: Made) -> None:
        """The entry stays for the next time if S3 cannot be asked."""
        begun = made.begun(None)
        made.crash()
        made.engine.failing = ConnectionFailed("S3 is down")
        made.reap()
        assert begun.path.exists()


class ProbeTests:
    """The objects of probes."""

    def test_is_removed_with_its_versions(self, made: Made, logged: list[str]) -> None:
        """An orphaned probe object is removed with all pages of its versions, and its entry is deleted."""
        key = new_probe_key("p/")
        begun = made.journal.begin("where", key, PROBE)
        made.engine.versions = [str(number) for number in range(20)]
        made.crash()
        made.reap()
        assert (made.engine.asked, made.engine.versions, begun.path.exists()) == ([key], [], False)
        assert logged == [f"removed the orphaned probe object {key!r}"]

    def test_stays_where_it_cannot_be_removed(self, made: Made) -> None:
        """The entry of a probe object that cannot be removed stays for the next time."""
        begun = made.journal.begin("where", new_probe_key(""), PROBE)
        made.crash()
        made.engine.failing = ConnectionFailed("S3 is down")
        made.reap()
        assert begun.path.exists()

    @pytest.mark.parametrize("key", ["k", "p/.storaged-probe-", f".storaged-probe-{'0' * 32}/k", ".storaged-probe-x"])
    def test_nothing_else_is_removed(self, made: Made, key: str) -> None:
        """A key that is not a probe's is never deleted, whatever the journal says."""
        made.journal.begin("where", key, PROBE)
        made.crash()
        made.reap()
        assert made.engine.asked == []


class TimesTests:
    """When the reaper runs."""

    def test_at_the_start_and_every_so_often(self, made: Made) -> None:
        """The reaper runs at the start and at intervals, and not after it was stopped."""
        made.begun("ours")
        made.crash()
        made.engine.failing = ConnectionFailed("S3 is down")
        made.reaper.start(made.clock, 100)
        assert len(made.engine.asked) == 1
        made.clock.advance(99)
        assert len(made.engine.asked) == 1
        made.clock.advance(1)
        assert len(made.engine.asked) == 2
        result(Deferred.fromCoroutine(made.reaper.stop()))
        made.clock.advance(1000)
        assert len(made.engine.asked) == 2
        assert made.clock.getDelayedCalls() == []

    def test_a_stop_waits_for_what_is_under_way(self, made: Made) -> None:
        """Stopping waits for the request in progress, and begins no other."""
        made.begun("one")
        made.begun("two")
        made.crash()
        hangs = made.engine.hangs = Deferred()
        made.reaper.start(made.clock, 100)
        stopped = Deferred.fromCoroutine(made.reaper.stop())
        assert not stopped.called
        hangs.callback(None)
        result(stopped)
        assert len(made.engine.asked) == 1

    def test_a_defect_does_not_end_it(self, made: Made, logged: list[str]) -> None:
        """An unexpected error is logged, and the reaper runs again."""
        begun = made.begun("ours")
        made.crash()
        made.engine.failing = ZeroDivisionError("oops")
        made.reaper.start(made.clock, 100)
        assert logged == ["unexpected error while removing orphaned uploads"]
        made.engine.failing = None
        made.clock.advance(100)
        assert not begun.path.exists()
