"""A vector index of flights: vectors of 768 dimensions in an HNSW graph, saved as one file."""

from __future__ import annotations

from pathlib import Path

import hnswlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: The key of the index, and its path below a folder.
PREFIX = "_vectors/flights/"
KEY = PREFIX + "2013.hnsw"

COUNT = 20_000
DIMENSIONS = 768
#: The number of queries, and of neighbours that are searched for each.
QUERIES = 200
NEIGHBOURS = 10

#: The seed of everything random: the sample, the projection, the levels of the graph.
_SEED = 2013
#: Parameters of HNSW: links per vector, and the size of the candidate list while building and while searching.
_LINKS = 16
_BUILD_BREADTH = 100
_SEARCH_BREADTH = 64

Vectors = NDArray[np.float32]


def embed(flights: pd.DataFrame) -> Vectors:
    """A sample of the flights as unit vectors: times, delays, distances, carrier and airports, randomly projected.

    Random projections preserve distances (Johnson and Lindenstrauss), so that similar flights are neighbours.
    """
    sample = flights.sample(COUNT, random_state=_SEED)
    numbers = sample.select_dtypes("number").drop(columns="year").fillna(0)
    names = pd.get_dummies(sample[["carrier", "origin", "dest"]])
    features = np.hstack([(numbers - numbers.mean()) / numbers.std(), names]).astype(np.float32)
    projection = np.random.default_rng(_SEED).standard_normal((features.shape[1], DIMENSIONS), dtype=np.float32)
    vectors: Vectors = features @ projection
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def build(vectors: Vectors) -> hnswlib.Index:
    """Build the index of these vectors."""
    index = hnswlib.Index(space="l2", dim=DIMENSIONS)
    index.init_index(len(vectors), M=_LINKS, ef_construction=_BUILD_BREADTH, random_seed=_SEED)
    index.add_items(vectors)
    return index


def write(index: hnswlib.Index, folder: Path) -> None:
    """Write the index below `folder`, as one file: as one object, it is stored atomically."""
    (folder / PREFIX).mkdir(parents=True)
    index.save_index(str(folder / KEY))


def read(folder: Path) -> hnswlib.Index:
    """Read the index below `folder`."""
    index = hnswlib.Index(space="l2", dim=DIMENSIONS)
    index.load_index(str(folder / KEY))
    return index


def nearest(index: hnswlib.Index, queries: Vectors) -> tuple[NDArray[np.uint64], Vectors]:
    """Search for the neighbours of each query; returns their numbers and distances."""
    index.set_ef(_SEARCH_BREADTH)
    neighbours, distances = index.knn_query(queries, k=NEIGHBOURS)
    return neighbours, distances


def recall(neighbours: NDArray[np.uint64], vectors: Vectors, queries: Vectors) -> float:
    """The share of the true neighbours that were found; an exact search over all vectors gives the true ones."""
    # The vectors have length 1: the larger their product, the nearer they are.
    truth = np.argpartition(-(queries @ vectors.T), NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    found = [len(set(some) & set(true)) for some, true in zip(neighbours.tolist(), truth.tolist(), strict=True)]
    return sum(found) / truth.size
