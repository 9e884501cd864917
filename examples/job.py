"""Shared by the examples: their command line, the daemon that they use, and clean-up, also after an interrupt."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from daemon import Daemon, DaemonFailed, free_port
from steps import Difference
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from twisted_storaged.client import StorageFailed

_Input = TypeVar("_Input")
#: A coroutine function that works with a running daemon, an input, and a path for what it reads back.
Job = Callable[[Daemon, _Input, Path], Coroutine[Deferred[Any], Any, None]]


def run_job(make_input: Callable[[Path], _Input], job: Job[_Input], description: str | None) -> None:
    """Make an input at a path, run the job, and exit; if it fails, with status 1 and a line that says why."""
    options = _parse_options(description)
    react(_main, (lambda reactor: _with_daemon(reactor, options, make_input, job),))


async def _with_daemon(
    reactor: Any, options: argparse.Namespace, make_input: Callable[[Path], _Input], job: Job[_Input]
) -> None:
    """Run the job with a daemon, which is stopped afterwards."""
    with TemporaryDirectory(prefix="storaged-example-") as folder:
        given = make_input(Path(folder, "in"))
        given_options = [f"--{name}={vars(options)[name]}" for name in ("config", "secrets") if vars(options)[name]]
        bucket = given_options or [f"--data={folder}/bucket"]
        daemon = Daemon(reactor, options.port or free_port(), bucket, Path(folder, "log"))
        try:
            await daemon.start()
            await job(daemon, given, Path(folder, "out"))
        except StorageFailed as error:
            raise daemon.failed(f"answered {error}") from error
        finally:
            await daemon.stop()


def _parse_options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="the daemon's configuration, with [s3] [default: an embedded bucket]")
    parser.add_argument("--secrets", help="the daemon's secrets file")
    parser.add_argument("--port", type=int, default=0, help="the daemon's port [default: any free one]")
    return parser.parse_args()


async def _main(reactor: Any, run: Callable[[Any], Coroutine[Deferred[Any], Any, None]]) -> None:
    """Run the example; an interrupt cancels it, and it cleans up first."""
    await deferLater(reactor, 0, lambda: None)  # from here on, signals stop the reactor, not the process
    work = Deferred.fromCoroutine(run(reactor))

    def interrupt() -> Deferred[None]:
        work.cancel()
        return work

    reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    try:
        await work
    except (DaemonFailed, Difference) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    print("all is as it was")
