"""Stores a year of flights and a vector index in a storaged that is killed on the way, and compares what it reads back.

It stores the files, kills the daemon with SIGKILL in the middle of a PUT, restarts it, reads everything back, and
compares the list, the bytes, an aggregate over the flights, and search results of the index. The exit status is 1 if
anything differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import flights
import numpy as np
import treq
import vectors
from daemon import Daemon
from job import run_job
from steps import Difference, check, found, step
from streams import FileWriter, HalfBody, sha256
from twisted.web.client import RequestTransmissionFailed, ResponseFailed

from twisted_storaged.client import StorageClient

#: Seconds after which a PUT is cut off.
CUT_AFTER = 0.3


class Input:
    """The flights and the index, in memory and as files; the path of a file in `folder` is its key.

    Attributes:
        sizes: the sizes of the files in bytes, by key, in key order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with step("flights written as Parquet, one file per month"):
            self.table = flights.load()
            self.months = flights.write(self.table, folder)
        with step(f"index built of {vectors.COUNT:,} vectors of {vectors.DIMENSIONS} dimensions, written as one file"):
            self.vectors = vectors.embed(self.table)
            index = vectors.build(self.vectors)
            vectors.write(index, folder)
        self.queries = self.vectors[:: vectors.COUNT // vectors.QUERIES]
        self.answers = vectors.nearest(index, self.queries)
        self.sizes = {key: (folder / key).stat().st_size for key in sorted([*self.months, vectors.KEY])}


async def store_and_read_back(daemon: Daemon, given: Input, folder: Path) -> None:
    """Run the example; it removes what it stored."""
    client = StorageClient(daemon.url, treq)
    # Before anything is written or removed: what is there already is somebody else's.
    await check_list(client, {})
    try:
        await store(client, given)
        await check_list(client, given.sizes)
        await cut_off(daemon, client, given.sizes[vectors.KEY])
        await check_list(client, given.sizes)
        await read_back(client, given, folder)
        compare_flights(given, folder)
        compare_vectors(given, folder)
    finally:
        await daemon.start()  # what was interrupted may be the restart
        await remove(client, given.sizes)
    await check_list(client, {})


async def store(client: StorageClient, given: Input) -> None:
    """PUT all files."""
    with step(f"stored {len(given.sizes)} objects", sum(given.sizes.values())):
        for key, size in given.sizes.items():
            with (given.folder / key).open("rb") as file:
                stored = await client.put(key, file)
            check((stored.key, stored.size) == (key, size), f"{key} has {size} bytes, stored was {stored}")


async def cut_off(daemon: Daemon, client: StorageClient, size: int) -> None:
    """Kill the daemon when the half of another body came in for the key of the index, and start it again."""
    put = client.put(vectors.KEY, HalfBody(size))
    await daemon.sleep(CUT_AFTER)
    with step(f"killed with SIGKILL in the middle of a PUT over {vectors.KEY}, started again"):
        await daemon.kill()
        with suppress(RequestTransmissionFailed, ResponseFailed):
            raise Difference(f"half a body is stored, it says: {await put}")
        await daemon.start()


async def read_back(client: StorageClient, given: Input, folder: Path) -> None:
    """GET all objects into files of `folder`, and compare their bytes."""
    with step(f"read back {len(given.sizes)} objects", sum(given.sizes.values())):
        for key in given.sizes:
            with FileWriter(folder / key) as file:
                await client.get_to(key, file)
    for key in given.sizes:
        check(sha256(folder / key) == sha256(given.folder / key), f"{key} has other bytes")
    found("SHA-256 of each is the same")


async def check_list(client: StorageClient, sizes: Mapping[str, int]) -> None:
    """What is listed must be exactly these keys with these sizes, in the order of the keys."""
    for prefix in (flights.PREFIX, vectors.PREFIX):
        expected = [(key, sizes[key]) for key in sorted(sizes) if key.startswith(prefix)]
        listed = [(item.key, item.size) for item in await client.list(prefix)]
        check(listed == expected, f"{prefix} lists {listed}: expected {expected}")
    if sizes:
        found(f"listed are these {len(sizes)}, no other, with their sizes")


async def remove(client: StorageClient, keys: Iterable[str]) -> None:
    """DELETE all objects."""
    with step("removed all"):
        for key in keys:
            await client.delete(key)


def compare_flights(given: Input, folder: Path) -> None:
    """Compare the flights that were read back, and their mean delays, with the original ones."""
    table = flights.read(folder / key for key in given.months)
    before, after = flights.mean_delays(given.table), flights.mean_delays(table)
    check(after == before, f"mean delays are {after}: expected {before}")
    check(table.equals(given.table), "the flights are others")
    best, worst = min(after, key=after.__getitem__), max(after, key=after.__getitem__)
    found(f"{len(table):,} flights are the same, so is the mean arrival delay of {len(after)} carriers:")
    found(f"    from {after[best]:.1f} minutes ({best}) to {after[worst]:.1f} ({worst})")


def compare_vectors(given: Input, folder: Path) -> None:
    """Compare the search results of the index that was read back with those of the original one."""
    neighbours, distances = vectors.nearest(vectors.read(folder), given.queries)
    check(np.array_equal(neighbours, given.answers[0]), "the index gives other neighbours")
    check(np.array_equal(distances, given.answers[1]), "the index gives other distances")
    share = vectors.recall(neighbours, given.vectors, given.queries)
    check(share > 0.9, f"the index finds {share:.0%} of the neighbours")
    found(
        f"{vectors.NEIGHBOURS} nearest of {len(given.queries)} vectors are the same, {share:.1%} of them the true ones"
    )


if __name__ == "__main__":
    run_job(Input, store_and_read_back, __doc__)
