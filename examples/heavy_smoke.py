"""Stores a vector index of 700 MiB as one object in a storaged that is killed, and compares what it reads back.

It writes the index, searches it, stores it, kills the daemon with SIGKILL as soon as the PUT was answered, restarts it,
reads the object back, and searches again. The exit status is 1 on any difference. It prints times, speeds, and the peak
of the daemon's memory.
"""

from __future__ import annotations

from pathlib import Path

import flat_index
import numpy as np
import treq
from daemon import Daemon
from job import run_job
from steps import check, found, step
from streams import FileWriter, sha256

from twisted_storaged.client import StorageClient

MiB = 1 << 20


class Input:
    """The index as a file, and its search results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with step(f"index of {flat_index.COUNT:,} vectors of {flat_index.DIMENSIONS} dimensions written as one file"):
            flat_index.write(path)
        self.size = path.stat().st_size
        self.sha256 = sha256(path)
        self.queries = flat_index.make_queries()
        with step(f"{flat_index.NEIGHBOURS} nearest of {len(self.queries)} vectors found"):
            self.answers = flat_index.nearest(path, self.queries)


async def store_and_read_back(daemon: Daemon, given: Input, back: Path) -> None:
    """Run the example; it removes what it stored."""
    client = StorageClient(daemon.url, treq)
    await check_list(client, [])
    try:
        await store(daemon, client, given)
        with step("killed with SIGKILL, started again"):
            await daemon.kill()
            await daemon.start()
        await check_list(client, [(flat_index.KEY, given.size)])
        await read_back(daemon, client, given, back)
        compare(given, back)
    finally:
        await daemon.start()  # the restart may have been interrupted
        await client.delete(flat_index.KEY)
    await check_list(client, [])


async def store(daemon: Daemon, client: StorageClient, given: Input) -> None:
    """PUT the index."""
    with step("stored as one object", given.size), given.path.open("rb") as file:
        stored = await client.put(flat_index.KEY, file)
    check(stored.size == given.size, f"{given.size} bytes were sent, stored was {stored}")
    found(f"storaged had {daemon.peak_rss() / MiB:.0f} MiB of memory at most")


async def read_back(daemon: Daemon, client: StorageClient, given: Input, back: Path) -> None:
    """GET the index into another file, and compare the bytes."""
    with step("read back", given.size), FileWriter(back) as file:
        await client.get_to(flat_index.KEY, file)
    found(f"storaged had {daemon.peak_rss() / MiB:.0f} MiB of memory at most")
    check(sha256(back) == given.sha256, "it has other bytes")
    found("SHA-256 is the same")


async def check_list(client: StorageClient, expected: list[tuple[str, int]]) -> None:
    """Check that exactly these keys with these sizes are listed."""
    listed = [(item.key, item.size) for item in await client.list(flat_index.PREFIX)]
    check(listed == expected, f"{flat_index.PREFIX} lists {listed}: expected {expected}")


def compare(given: Input, back: Path) -> None:
    """Repeat the searches with the file that was read back, and compare the results."""
    answers = flat_index.nearest(back, given.queries)
    share = flat_index.recall(answers, given.answers)
    check(share == 1, f"recall is {share}")
    check(np.array_equal(answers[1], given.answers[1]), "the distances are others")
    found(f"{flat_index.NEIGHBOURS} nearest of {len(given.queries)} vectors are the same: recall {share:.1f}")


if __name__ == "__main__":
    run_job(Input, store_and_read_back, __doc__)
