"""Draws a flame graph of storaged in front of the S3 sink, under a load of the table: `flamegraph.py ROW OUT.svg`.

py-spy reads the memory of the process, which needs root.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from loads import Load, Server
from measuring import MANY_SLOTS, Measuring
from place import Place, s3_sink
from processes import stop_on_signals
from rows import FULL, all_rows
from servers import SCRIPTS, storaged


def main() -> None:
    """Draw the graph of the row that the command line names."""
    stop_on_signals()
    rows = {row.name: row for row in all_rows(FULL) if row.place == "s3"}
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=rows)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--port", type=int, default=21000, help="the first of three free ports")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="storaged-bench-") as folder, s3_sink(options.port) as s3:
        Measuring(s3, options.port + 1, None).prepare(rows[options.row])
        place = Place(Path(folder), options.port + 1, s3, MANY_SLOTS)
        with storaged(place) as server, _recorded(server.pid, options.out):
            _repeat(server, rows[options.row].loads, options.seconds)


def _repeat(server: Server, loads: list[Load], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for load in loads:
            server.do(load)


@contextmanager
def _recorded(pid: int, out: Path) -> Iterator[None]:
    """Sample the stacks of the process, with those of C functions."""
    options = ["--native", "--rate=200", "--format=flamegraph", f"--output={out}", "--duration=unlimited"]
    spy = subprocess.Popen([str(SCRIPTS / "py-spy"), "record", f"--pid={pid}", *options], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)  # then it draws the graph
        spy.wait()
        _name(out)


def _name(out: Path) -> None:
    """Replace the title of the picture, in which py-spy puts its command line with paths of this machine."""
    drawn = out.read_text("utf-8")
    out.write_text(re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\1{out.stem}", drawn), "utf-8")


if __name__ == "__main__":
    main()
