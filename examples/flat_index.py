"""A vector index as one large file: a header and 200,000 records of an id, a vector of 768 dimensions, and a passage.

It is written and searched in pieces, so that it need not fit in memory. A search compares all vectors, and is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: The key of the index, and its path below a folder. Bodies under `_vectors/` may have up to 4 GiB.
PREFIX = "_vectors/heavy/"
KEY = PREFIX + "passages.index"

COUNT = 200_000
DIMENSIONS = 768
#: The number of queries, and of neighbours that are searched for each.
QUERIES = 100
NEIGHBOURS = 10

#: Bytes of the passage of each vector.
_PASSAGE = 592
_RECORD = np.dtype([("id", "<u8"), ("vector", "<f4", (DIMENSIONS,)), ("passage", f"S{_PASSAGE}")])
_HEADER = np.dtype([("magic", "S16"), ("count", "<u8"), ("dimensions", "<u8")])
_MAGIC = b"flat index 1"
_PIECE = 10_000
_SEED = 768

Vectors = NDArray[np.float32]
Neighbours = tuple[NDArray[np.uint64], Vectors]


def write(path: Path) -> None:
    """Write the index: the same bytes each time."""
    random = np.random.default_rng(_SEED)
    with path.open("xb") as file:
        np.array([(_MAGIC, COUNT, DIMENSIONS)], _HEADER).tofile(file)
        for first in range(0, COUNT, _PIECE):
            records = np.zeros(_PIECE, _RECORD)
            records["id"] = np.arange(first, first + _PIECE)
            records["vector"] = random.standard_normal((_PIECE, DIMENSIONS), dtype=np.float32)
            records["passage"] = [b"What passage %d says. " % number * 20 for number in records["id"]]
            records.tofile(file)


def make_queries() -> Vectors:
    """The vectors to search for: the same ones each time, and none of the index."""
    return np.random.default_rng(_SEED + 1).standard_normal((QUERIES, DIMENSIONS), dtype=np.float32)


def nearest(path: Path, queries: Vectors) -> Neighbours:
    """The ids of the neighbours of each query, nearest first, and their squared distances. Raises ValueError."""
    ids, distances = np.empty((len(queries), 0), np.uint64), np.empty((len(queries), 0), np.float32)
    for records in _pieces(path):
        vectors = records["vector"]
        near = (vectors**2).sum(axis=1) - 2 * queries @ vectors.T + (queries**2).sum(axis=1, keepdims=True)
        ids = np.hstack([ids, np.broadcast_to(records["id"], near.shape)])
        distances = np.hstack([distances, near])
        best = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
        ids, distances = np.take_along_axis(ids, best, 1), np.take_along_axis(distances, best, 1)
    return ids, distances


def recall(found: Neighbours, truth: Neighbours) -> float:
    """The share of the true neighbours that were found."""
    pairs = zip(found[0].tolist(), truth[0].tolist(), strict=True)
    return sum(len(set(some) & set(true)) for some, true in pairs) / truth[0].size


def _pieces(path: Path) -> Iterator[NDArray[np.void]]:
    (header,) = np.fromfile(path, _HEADER, 1)
    if header.tolist() != (_MAGIC, COUNT, DIMENSIONS):
        raise ValueError(f"{path} is not such an index: {header}")
    records = np.memmap(path, _RECORD, "r", offset=_HEADER.itemsize)
    if len(records) != COUNT:
        raise ValueError(f"{path} has {len(records)} records, not {COUNT}")
    for first in range(0, COUNT, _PIECE):
        yield np.array(records[first : first + _PIECE])
