"""Restarts and reloads storaged under systemd, again and again, under load: no request fails, and no object is torn.

`python -m tests.systemd.rounds` needs what `boot.sh` needs.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.places import stop_on_signals
from tests.systemd import booted
from tests.systemd.load import Load
from tests.systemd.units import Units


def main() -> int:
    """Make the rounds and print figures; the exit status is 1 if a request failed."""
    stop_on_signals()
    parser = ArgumentParser(prog="python -m tests.systemd.rounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="how many restarts, and how many reloads")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    failed = False
    with TemporaryDirectory() as folder, booted(Path(folder)) as system:
        units = Units(system)
        units.start_socket(options.workers)
        for verb in ("restart", "reload"):
            began = time.monotonic()
            done = 0
            with Load(units.connect) as load:
                while done < options.rounds and not load.failures:
                    units.replace(verb, load)
                    done += 1
            print(
                f"{done} rounds of {verb} with {options.workers} workers in {time.monotonic() - began:.0f} s: "
                f"{load.answered} requests answered, {load.retried} of them sent again on a new connection; "
                f"failures: {dict(load.failures)}",
                flush=True,
            )
            failed = failed or bool(load.failures)
        if failed:
            print(system.journal())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
