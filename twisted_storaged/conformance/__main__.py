"""The command: all checks, one after the other, as a table; the exit status is 1 when something was unlike."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import getdoc
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

from twisted_storaged.conformance import connections, halves, keys, lists, puts, reads, refusals, together
from twisted_storaged.conformance.expect import Unlike
from twisted_storaged.conformance.server import Limits, Server

MiB = 1 << 20
DEFAULT_PORT = 80

#: In the order of the table.
SUBJECTS = (keys, puts, reads, lists, refusals, halves, together, connections)


class Check(NamedTuple):
    """One check, and its name in the table."""

    name: str
    run: Callable[[Server], str]


def checks(subject: ModuleType) -> Iterator[Check]:
    """The checks of a subject: its functions that take a server, in the order they are written in."""
    for name, function in vars(subject).items():
        annotations = getattr(function, "__annotations__", {})
        if not name.startswith("_") and annotations == {"server": "Server", "return": "str"}:
            yield Check((getdoc(function) or name).removesuffix("."), function)


def main() -> int:
    """Check the server that the command line names."""
    options = _options()
    url = urlsplit(options.url)
    limits = Limits(options.cap, options.vectors_cap, options.slots, options.stall)
    server = Server((url.hostname or "", url.port or DEFAULT_PORT), limits)
    failed = _run_all(server)
    _say(f"{failed or 'none'} failed")
    return 1 if failed else 0


def _run_all(server: Server) -> int:
    """Run all checks, remove what they wrote, and say what was seen; returns how many failed."""
    everything = [check for subject in SUBJECTS for check in checks(subject)]
    last = Check("All that was written can be removed again", lambda server: f"{server.remove_all()} objects")
    width = max(len(check.name) for check in everything)
    try:
        return sum(not _passes(server, check, width) for check in [*everything, last])
    finally:
        # For who interrupts; else nothing is left.
        with suppress(Exception):
            server.remove_all()


def _passes(server: Server, check: Check, width: int) -> bool:
    try:
        seen, passes = check.run(server), True
    except Unlike as error:
        seen, passes = str(error), False
    except Exception as error:  # noqa: BLE001 (a server can be wrong in any way)
        seen, passes = f"{type(error).__name__}: {error}", False
    _say(f"{'ok' if passes else 'FAIL':<6}{check.name:<{width}}  {seen}")
    return passes


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _options() -> Namespace:
    parser = ArgumentParser(prog="python -m twisted_storaged.conformance", description=__doc__)
    parser.add_argument("url", help="where the server is: http://127.0.0.1:3211")
    parser.add_argument("--cap", type=int, default=256 * MiB, help="bytes of its largest body [256 MiB]")
    parser.add_argument("--vectors-cap", type=int, default=4096 * MiB, help="the same under _vectors/ [4 GiB]")
    parser.add_argument("--slots", type=int, default=4, help="how many PUTs it takes at once [4]")
    parser.add_argument("--stall", type=float, default=60, help="seconds that a body may stall [60]")
    options = parser.parse_args()
    if urlsplit(options.url).scheme != "http":
        parser.error(f"{options.url!r} is not http://HOST:PORT")
    return options


if __name__ == "__main__":
    sys.exit(main())
