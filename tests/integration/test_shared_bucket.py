"""Several worker processes have one embedded bucket open: what they write is as durable and atomic as with one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_twisted

from tests.buckets.local.embedded import contents, make
from tests.integration.shared import LARGE, SMALL, Worker, versions, wait_for
from twisted_storaged.buckets.local.backup import back_up
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
