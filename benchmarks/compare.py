"""Compares the speed and cost of storaged with those of its peers, with the same objects, S3 and disk, in turns.

Nothing is asserted: a speed is that of one machine, and only ratios say something. `rows.py` defines the rows, and
`peers.py` the peers.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chart import draw
from measuring import Measuring
from place import S3, given_s3, s3_sink
from processes import BUILD, CannotMeasure, stop_on_signals
from report import markdown, result
from rows import ALIKE, FULL, SMOKE, Row, all_rows

#: The peers that can be measured with any S3: those that sign requests, and need no proxy in front of it.
ANY_S3 = ("storaged", "rclone", "boto3")


def main() -> None:
    """Measure the rows that the command line names, print the table, and write it to files."""
    stop_on_signals()
    options = _options()
    rows = _rows(options)
    results: list[dict[str, Any]] = []
    with _s3(options) as s3:
        measuring = Measuring(s3, options.port + 1, options.data)
        for row in rows:
            peers = [peer for peer in row.peers if not options.s3 or peer in ANY_S3]
            results.append(result(row, measuring.row(row, peers, options.runs)))
            _write(results, options)
    print("\n".join(markdown(results)))
    if measuring.failures:
        raise CannotMeasure(f"these measurements failed: {', '.join(measuring.failures)}")


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="small loads, once: shows only that everything works")
    parser.add_argument("--runs", type=int, help="number of runs, whose medians are printed [default: 5]")
    parser.add_argument("--only", metavar="ROW,…", help="only these rows; an unknown name prints all names")
    parser.add_argument("--s3", action="store_true", help="the S3 in $S3_ENDPOINT, its credentials in $S3_ACCESS_KEY…")
    parser.add_argument("--data", help="folder on the disk to measure, with 4 GiB free [default: $TMPDIR]")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder for compare.json, .md and .png [%(default)s]")
    parser.add_argument("--port", type=int, default=21000, help="the first of three free ports")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.smoke else 5)
    return options


def _rows(options: Namespace) -> list[Row]:
    rows = all_rows(SMOKE if options.smoke else FULL)
    if options.s3:
        rows = [row for row in rows if row.place == "s3" and row.name != "list"]
    names = [row.name for row in rows]
    some = [name for name in names if not (options.smoke and name in ALIKE)]
    wanted = options.only.split(",") if options.only else some
    if not set(wanted) <= set(names):
        raise CannotMeasure(f"--only: expected some of these rows: {','.join(names)}")
    return [row for row in rows if row.name in wanted]


@contextmanager
def _s3(options: Namespace) -> Iterator[S3]:
    if options.s3:
        yield given_s3()
    else:
        with s3_sink(options.port) as s3:
            yield s3


def _write(results: list[dict[str, Any]], options: Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "compare.json"
    file.write_text(json.dumps({"runs": options.runs, "rows": results}, indent=1))
    file.with_suffix(".md").write_text("\n".join(markdown(results)) + "\n")
    draw(results, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
