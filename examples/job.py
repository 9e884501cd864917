"""What the examples have in common: their command line, and how they end, also when they are interrupted."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from typing import Any

from daemon import DaemonFailed
from steps import Difference
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

Run = Callable[[Any, argparse.Namespace], Coroutine[Deferred[Any], Any, None]]


def run_job(run: Run, description: str | None) -> None:
    """Do `run(reactor, options)` and exit; with status 1, and a line that says why, when it failed."""
    react(_main, (run, _parse_options(description)))


def daemon_options(options: argparse.Namespace) -> list[str]:
    """The options that are the daemon's."""
    return [f"--{name}={vars(options)[name]}" for name in ("config", "secrets") if vars(options)[name]]


def _parse_options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="the daemon's configuration, with [s3]; without one, a bucket in a new folder")
    parser.add_argument("--secrets", help="the daemon's secrets file")
    parser.add_argument("--port", type=int, default=0, help="the daemon's port [default: any free one]")
    return parser.parse_args()


async def _main(reactor: Any, run: Run, options: argparse.Namespace) -> None:
    """Run; when interrupted, clean up first."""
    await deferLater(reactor, 0, lambda: None)  # from here on, signals stop the reactor, not the process
    work = Deferred.fromCoroutine(run(reactor, options))

    def interrupt() -> Deferred[None]:
        work.cancel()
        return work

    reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    try:
        await work
    except (DaemonFailed, Difference) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    print("all is as it was")
