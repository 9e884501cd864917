"""The command: runs all checks one after the other and prints a table; the exit status is 1 if a check failed."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import getdoc
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

from twisted_storaged.conformance import bodies, connections, keys, objects, refusals
from twisted_storaged.conformance.server import Limits, Server, Violation

MiB = 1 << 20
DEFAULT_PORT = 80

#: The modules of checks, in the order of the table.
TOPICS = (keys, objects, refusals, bodies, connections)


class Check(NamedTuple):
    """One check, and its name in the table."""

    name: str
    run: Callable[[Server], str]


def main() -> int:
    """Check the server that the command line names; returns the exit status."""
    options = _parse_command_line()
    url = urlsplit(options.url)
    limits = Limits(options.cap, options.vectors_cap, options.slots, options.stall)
    server = Server((url.hostname or "", url.port or DEFAULT_PORT), limits)
    checks = [check for topic in TOPICS for check in _checks_of(topic)]
    checks.append(Check("All that was written can be removed again", lambda server: f"{server.remove_all()} objects"))
    width = max(len(check.name) for check in checks)
    try:
        failed = sum(not _passes(server, check, width) for check in checks)
    finally:
        # The last check has removed everything, unless the run was interrupted.
        with suppress(Exception):
            server.remove_all()
    _print(f"{failed or 'none'} failed")
    return 1 if failed else 0


def _checks_of(topic: ModuleType) -> Iterator[Check]:
    """The checks of a module: its public functions from a server to a string, in the order of the source."""
    # What a module imports, and what it defines otherwise, has no such signature.
    for name, function in vars(topic).items():
        annotations = getattr(function, "__annotations__", {})
        if not name.startswith("_") and annotations == {"server": "Server", "return": "str"}:
            yield Check((getdoc(function) or name).removesuffix("."), function)


def _passes(server: Server, check: Check, width: int) -> bool:
    """Run a check and print its row of the table; returns whether it passed."""
    try:
        seen, passes = check.run(server), True
    except Violation as error:
        seen, passes = str(error), False
    except Exception as error:  # noqa: BLE001 (a server can be wrong in any way)
        seen, passes = f"{type(error).__name__}: {error}", False
    _print(f"{'ok' if passes else 'FAIL':<6}{check.name:<{width}}  {seen}")
    return passes


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    # A run takes minutes: whoever reads through a pipe sees each row when its check ends.
    sys.stdout.flush()


def _parse_command_line() -> Namespace:
    parser = ArgumentParser(prog="python -m twisted_storaged.conformance", description=__doc__)
    parser.add_argument("url", help="URL of the server, for example http://127.0.0.1:3211")
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
