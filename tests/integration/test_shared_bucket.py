"""Several worker processes have one embedded bucket open: what they write is as durable and atomic as with one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

import pytest
import pytest_twisted
from twisted.logger import LogLevel

from tests.buckets.local.embedded import contents, logged, make
from tests.faults.preload import Preload, needs_compiler
from tests.integration.shared import LARGE, SMALL, Worker, versions, wait_for
from twisted_storaged.buckets.local.backup import back_up
from twisted_storaged.buckets.local.index_reads import open_index_reader
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.buckets.local.start import prepare
from twisted_storaged.errors import StartError

Start = Callable[..., Worker]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of the bucket."""
    return tmp_path / "data"


@pytest.fixture
def lock(data: Path) -> Iterator[list[int]]:
    """The descriptor of the folder's lock, as its supervisor has it; removed from the list when it is closed."""
    held = [prepare("local", data)]
    yield held
    for descriptor in held:
        os.close(descriptor)


@pytest.fixture
def start(data: Path, lock: list[int]) -> Iterator[Start]:
    """Starts a worker and waits until it serves, unless `wait` is false."""
    with ExitStack() as running:

        def start_one(wait: bool = True, **how: object) -> Worker:
            worker = running.enter_context(Worker(data, lock[0], **how))  # type: ignore[arg-type]
            if wait:
                wait_for(lambda: worker.told)
            return worker

        yield start_one


def scrub(path: Path) -> list[str]:
    """Scrub a folder; returns the lines of what it found."""
    found: list[str] = []
    Scrub(path, found.append).run()
    return found


def acknowledged(*workers: Worker) -> Counter[str]:
    """The last version of each object of which `churn` was told that it is stored."""
    last: Counter[str] = Counter()
    for worker in workers:
        for key, version in worker.told[1:]:
            last[key] = max(last[key], version)
    return last


def goes_on(worker: Worker) -> None:
    """Wait until a worker that churns has stored some more."""
    before = len(worker.told)
    wait_for(lambda: len(worker.told) > before + 8)


def check_after_the_end(data: Path, lock: list[int], last: Counter[str]) -> dict[str, str]:
    """Prepare the folder once all processes have ended: it has what was acknowledged, and nothing else; returns it.

    A write whose answer has not arrived, which is the next version, may be there as well.
    """
    os.close(lock.pop())
    with logged(LogLevel.info) as lines:
        lock.append(prepare("local", data))
    assert ["0 files moved to lost/" in line for line in lines if "leftovers" in line] == [True]
    found = versions(data)
    assert [key for key, version in last.items() if found.get(key) not in {str(version), str(version + 1)}] == []
    assert contents(data) == named(data)
    return found


def named(data: Path) -> set[str]:
    """The names of the files that keys refer to."""
    with closing(open_index_reader(data / "index.sqlite")) as index:
        return set(index.files())


def is_locked(path: Path) -> bool:
    """Whether a process has locked a file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def notes(data: Path) -> int:
    """How many processes have, or had, a folder of notes."""
    return sum("." in name for name in os.listdir(data / "pending"))


class WriteTests:
    """Several processes write."""

    def test_one_writer_wins(self, start: Start, data: Path) -> None:
        """Of twelve writers in three processes that create one object, one succeeds, and its content is there."""
        workers = [start(wait=False) for _ in range(3)]
        wait_for(lambda: all(worker.told for worker in workers))
        asked = [
            worker.begin("race", [f"{number}-{writer}" for writer in range(4)], 100)
            for number, worker in enumerate(workers)
        ]
        won = [one for worker, number in zip(workers, asked, strict=True) for one in worker.answer(number)]
        assert sorted(round_ for round_, _ in won) == list(range(100))
        assert versions(data) == {f"race/{round_}": writer for round_, writer in won}
        # Otherwise the processes have not met.
        assert len({writer[0] for _, writer in won}) > 1

    def test_compare_and_swap_loses_nothing(self, start: Start) -> None:
        """Processes that increment a number by conditional PUTs, in the index and in files, lose no update."""
        workers = [start(), start()]
        workers[0].ask("put", "a", "0", SMALL)
        asked = [worker.begin("count", "a", 50) for worker in workers for _ in range(2)]
        for worker, number in zip([workers[0], workers[0], workers[1], workers[1]], asked, strict=True):
            assert worker.answer(number) is None
        assert workers[0].ask("get", "a") == "200"

    def test_a_reader_never_meets_a_removed_file(self, start: Start) -> None:
        """What a process reads is whole while another one replaces it all the time."""
        writer, reader = start(), start()
        writer.ask("put", "churn/0", "0", LARGE)
        writer.begin("churn", "churn", 1, [LARGE])
        assert reader.ask("read_all", "churn/0", 2) == ["whole"]


class StopTests:
    """What stopped workers leave."""

    @pytest_twisted.ensureDeferred
    async def test_is_accepted_by_all(self, start: Start, data: Path, lock: list[int], tmp_path: Path) -> None:
        """After workers were stopped, a scrub, a backup, and a daemon with one process find everything in order."""
        workers = [start(), start()]
        for number, worker in enumerate(workers):
            worker.ask("put", f"small {number}", "1", SMALL)
            worker.ask("put", f"large {number}", "1", LARGE)
        expected = {f"{size} {number}": "1" for size in ("small", "large") for number in (0, 1)}
        with pytest.raises(StartError, match="in use by another storaged"):
            prepare("local", data)
        back_up(data, tmp_path / "beside")
        for worker in workers:
            worker.stop()
        assert not any("." in name for name in os.listdir(data / "pending"))
        os.close(lock.pop())
        assert scrub(data) == []
        back_up(data, tmp_path / "stopped")
        for path in (data, tmp_path / "beside", tmp_path / "stopped"):
            bucket = make(path)
            bucket.start()
            await bucket.stop()
            assert not (path / "index.sqlite-wal").exists()
            assert versions(path) == expected
            assert len(contents(path)) == 2
            assert not any((path / "lost").iterdir())

    def test_prepared_again(self, start: Start, data: Path, lock: list[int]) -> None:
        """When all workers were killed, the folder is prepared again, and has everything that was acknowledged."""
        worker = start()
        worker.ask("put", "a", "1", LARGE)
        worker.kill()
        os.close(lock.pop())
        lock.append(prepare("local", data))
        assert start().ask("get", "a") == "1"


class KillTests:
    """Processes are killed with SIGKILL while others go on."""

    def test_at_random_moments(self, start: Start, data: Path, lock: list[int]) -> None:
        """A process that is killed, in a PUT, in a commit or while it opens the bucket, takes nothing with it."""
        random = Random(1)
        survivor = start()
        survivor.begin("churn", "survivor", 4, [SMALL, LARGE])
        victims = []
        for number in range(8):
            victim = start(wait=number % 2 == 0)
            victim.begin("churn", f"victim {number}", 4, [SMALL, LARGE])
            time.sleep(random.uniform(0, 0.5))
            victim.kill()
            victims.append(victim)
            goes_on(survivor)
        # It sweeps what the victims have left, beside the survivor.
        replacement = start()
        wait_for(lambda: notes(data) == 2)
        goes_on(survivor)
        survivor.kill()
        last = start()
        wait_for(lambda: notes(data) == 2 and contents(data) == named(data))
        for worker in (replacement, last):
            worker.kill()
        check_after_the_end(data, lock, acknowledged(survivor, *victims))

    def test_of_one_that_hangs_in_a_commit(self, start: Start, data: Path) -> None:
        """While a process hangs in a commit, others read; they write again as soon as it is killed."""
        hangs, other = start(), start()
        other.ask("put", "a", "old", SMALL)
        hangs.begin("churn", "hangs", 4, [SMALL])
        goes_on(hangs)
        hangs.pause()
        while not is_locked(data / "commit.lock"):
            hangs.process.send_signal(signal.SIGCONT)
            goes_on(hangs)
            hangs.pause()
        number = other.begin("put", "a", "new", SMALL)
        assert other.ask("get", "a") == "old"
        hangs.kill()
        assert len(other.answer(number)) == 32
        assert other.ask("get", "a") == "new"

    def test_of_all_at_once(self, start: Start, data: Path, lock: list[int]) -> None:
        """When all processes are killed, everything that was acknowledged is there."""
        workers = [start(), start()]
        for number, worker in enumerate(workers):
            worker.begin("churn", f"{number}", 4, [SMALL, LARGE])
        for worker in workers:
            goes_on(worker)
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.kill()
        check_after_the_end(data, lock, acknowledged(*workers))


@pytest.mark.full
@needs_compiler
class CommitTests:
    """The fsync of the write-ahead log fails in one process, or kills it."""

    @pytest.fixture
    def fault(self, tmp_path: Path) -> Preload:
        return Preload("fsync", tmp_path)

    @pytest.mark.parametrize("lasting", [b"", b"always"])
    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_what_failed_stays_so(
        self, start: Start, data: Path, lock: list[int], fault: Preload, lasting: bytes, size: int
    ) -> None:
        """A write that failed never becomes visible, and what another process stores meanwhile stays."""
        broken, other = start(launcher=fault.launcher), start()
        broken.ask("put", "a", "old", size)
        other.begin("churn", "other", 4, [SMALL, LARGE])
        for _ in range(5):
            fault.file.write_bytes(lasting)
            assert broken.ask("put", "a", "new", size) in {"BucketError", "WritesSuspended"}
            goes_on(other)
            assert broken.ask("get", "a") == other.ask("get", "a") == "old"
        fault.file.unlink(missing_ok=True)
        assert len(broken.ask("put", "b", "1", size)) == 32
        other.kill()
        fault.file.write_bytes(lasting)
        assert broken.ask("put", "a", "new", size) in {"BucketError", "WritesSuspended"}
        broken.kill()
        fault.file.unlink(missing_ok=True)
        found = check_after_the_end(data, lock, acknowledged(other))
        assert found["a"] == "old"
        assert found["b"] == "1"

    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_a_killed_commit_does_not_come_back(
        self, start: Start, data: Path, lock: list[int], fault: Preload, size: int
    ) -> None:
        """Once the files of a killed process are removed, no recovery of the log brings back a row that names them."""
        broken, other = start(launcher=fault.launcher), start()
        broken.ask("put", "a", "old", size)
        fault.file.write_bytes(b"kill")
        broken.begin("put", "a", "new", size)
        wait_for(lambda: broken.process.poll() is not None)
        replacement = start()
        wait_for(lambda: notes(data) == 2 and contents(data) == named(data))
        other.kill()
        replacement.kill()
        assert check_after_the_end(data, lock, Counter())["a"] == "old"

    def test_killed_commits_are_no_damage(self, start: Start, data: Path, lock: list[int], fault: Preload) -> None:
        """After several kills in commits and a loss of power, a start accepts the log."""
        other = start()
        # Each is shorter than the one before, of which the end would stay in the log.
        for size in (60_000, 30_000, 10_000):
            broken = start(launcher=fault.launcher)
            fault.file.write_bytes(b"kill")
            broken.begin("put", "a", "new", size)
            wait_for(lambda broken=broken: broken.process.poll() is not None)
            other.ask("put", "b", str(size), 10)
        other.kill()
        state = data / "index.state"
        state.write_text(json.dumps({**json.loads(state.read_text()), "boot": "another"}))
        assert check_after_the_end(data, lock, Counter()) == {"b": "10000"}
