"""Measures the rows of the table: prepares objects, and gives each peer its turns in a fresh folder and process."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from bare import make_client, put_object, upload
from loads import BUCKET, Sample
from peers import PEERS
from place import S3, Place
from processes import CannotMeasure
from rows import Row

#: The default number of put slots, and the number for rows with more connections.
SLOTS, MANY_SLOTS = 4, 64


class Measuring:
    """A run of the table, with the same S3 and disk for all rows."""

    #: Rows and peers with a measurement that failed; the other ones are valid.
    failures: list[str]

    def __init__(self, s3: S3, port: int, data: str | None) -> None:
        self.failures = []
        self._s3 = s3
        self._port = port
        self._data = data
        self._client = make_client(s3)
        self._client.create_bucket(Bucket=BUCKET)
        self._there: set[str] = set()

    def row(self, row: Row, peers: Iterable[str], runs: int) -> dict[str, list[Sample]]:
        """Measure a row; returns the samples of each peer that could be measured.

        The peers take turns, so that a slow minute of the machine affects all of them.
        """
        samples: dict[str, list[Sample]] = {peer: [] for peer in peers}
        if row.place != "embedded":
            self.prepare(row)
        for run in range(runs):
            for peer, taken in samples.items():
                print(f"{row.name}, run {run + 1} of {runs}: {peer}", file=sys.stderr)
                self._take_turn(row, peer, taken)
        return {peer: taken for peer, taken in samples.items() if taken}

    def prepare(self, row: Row) -> None:
        """Put the objects that the row reads: the S3 has only what was put, and rclone looks for it in a list."""
        for load in row.loads:
            if load.verb == "get":
                put = put_object if load.seconds else upload
                for key in load.all_keys():
                    if key not in self._there:
                        put(self._client, load, key)
                        self._there.add(key)

    def _take_turn(self, row: Row, peer: str, taken: list[Sample]) -> None:
        try:
            taken.append(self._turn(row, peer))
        except CannotMeasure as error:
            # A failed measurement does not end the run: the results of the others are kept.
            print(error, file=sys.stderr)
            self.failures.append(f"{row.name}: {peer}")

    def _turn(self, row: Row, peer: str) -> Sample:
        # More slots than connections, so that no PUT is refused.
        slots = MANY_SLOTS if any(load.connections > SLOTS for load in row.loads) else SLOTS
        with TemporaryDirectory(prefix="storaged-bench-", dir=self._data) as folder:
            return PEERS[row.place][peer](Place(Path(folder), self._port, self._s3, slots), row.loads)
