"""Builds, starts and stops the processes of a benchmark, and reads their cost in /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"

#: Seconds within which a process must listen, and end after a SIGTERM.
START_SECONDS = 60
STOP_SECONDS = 20

_TICKS = os.sysconf("SC_CLK_TCK")


class CannotMeasure(SystemExit):
    """A measurement is impossible; str() says why. If it is not caught, the script ends with status 1."""


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, so that what the script started is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


@contextmanager
def running(command: Sequence[str], port: int, more: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a process, from when it listens on `port` to the end of the block; yields its id.

    Its environment is `environment()`, and `more`.
    """
    if _listens(port):
        raise CannotMeasure(f"port {port} is taken: name another with --port")
    process = subprocess.Popen(command, env={**environment(), **(more or {})}, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(process, port)
        yield process.pid
    finally:
        _stop(process)


def build(name: str) -> str:
    """Compile `name`.c, unless the program is up to date; returns its path."""
    source, program = HERE / f"{name}.c", BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-pthread", "-o", str(program), str(source)], check=True)
    return str(program)


def environment() -> dict[str, str]:
    """The environment of a measured process: without settings for boto3 and rclone, and without proxies."""
    kept = {name: value for name, value in os.environ.items() if not _redirects_requests(name)}
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {**kept, **nowhere, "PYTHONPATH": str(HERE.parent)}


def children(pid: int) -> list[int]:
    """The processes that a process has started, in that order. See proc_tid_children(5)."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for each in lists for child in each.read_text("ascii").split())


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, and of its children. See proc_pid_stat(5)."""
    return sum(_ticks(each) for each in (pid, *children(pid))) / _TICKS


def peak_rss(pid: int) -> int:
    """The peak of a process's resident memory, in bytes. See proc_pid_status(5)."""
    return _status(pid, "VmHWM")


def rss(pid: int) -> int:
    """The resident memory of a process, in bytes. See proc_pid_status(5)."""
    return _status(pid, "VmRSS")


def memory(pid: int) -> int:
    """The memory of one process, in bytes; of pages that several processes share, each has its part.

    Only root may read that of storaged: for others it is the resident memory, which has all of the shared pages. See
    proc_pid_smaps(5).
    """
    try:
        return _kilobytes(f"/proc/{pid}/smaps_rollup", "Pss")
    except PermissionError:
        return rss(pid)


def _ticks(pid: int) -> int:
    # The name of the program comes first, in parentheses, and may have spaces.
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _status(pid: int, name: str) -> int:
    return _kilobytes(f"/proc/{pid}/status", name)


def _kilobytes(path: str, name: str) -> int:
    lines = Path(path).read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _redirects_requests(name: str) -> bool:
    return name.startswith(("AWS_", "RCLONE_")) or name.lower().endswith("_proxy")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CannotMeasure(f"{process.args!r} does not listen on {port}; it ended with {process.returncode}")
        time.sleep(0.01)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        print(f"{process.args!r} ended by itself, with {process.returncode}", file=sys.stderr)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise CannotMeasure(f"{process.args!r} had to be killed") from None
