"""What all benchmarks share: building and starting the processes, stopping them, and reading their cost in /proc.

What is measured, and what is printed of it, is the benchmarks' own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MiB = 1 << 20
GiB = 1 << 30

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"

BUCKET = "bench"
ACCESS_KEY_ID = "benchmark"
SECRET_ACCESS_KEY = "benchmark-secret"

#: Seconds for a process to answer its first request; and for it to end when it is told to.
START_SECONDS = 20
STOP_SECONDS = 20

_TICKS = os.sysconf("SC_CLK_TCK")


class CannotMeasure(SystemExit):
    """Something is not as a benchmark needs it; str() says what. Not caught, it ends the script with status 1."""


@dataclass(frozen=True)
class Sample:
    """What one measurement saw: wall-clock and CPU seconds, and the most memory in bytes that was ever resident."""

    seconds: float
    cpu: float
    peak: int


@dataclass(frozen=True)
class Load:
    """What clients do at once: `connections` of them, each `count` objects of `size` bytes, one after the other.

    In `path`, %d stands for the number of the connection and %n for that of the object.
    """

    verb: str
    path: str
    size: int
    connections: int = 1
    count: int = 1


@dataclass(frozen=True)
class Daemon:
    """A storaged that is ready for requests."""

    pid: int
    port: int

    def measure(self, load: Load) -> Sample:
        """Put the load on it. Raises CannotMeasure when one request fails."""
        before = cpu_seconds(self.pid)
        seconds = run_client(self.port, load)
        return Sample(seconds, cpu_seconds(self.pid) - before, peak_rss(self.pid))


def stop_on_signals() -> None:
    """Let a signal that would end the script end it as an exception does: with everything stopped that it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


@contextmanager
def s3_sink(port: int) -> Iterator[str]:
    """Run the S3 sink; gives its URL."""
    url = f"http://127.0.0.1:{port}"
    with _process([str(build("s3sink")), str(port)], port, f"{url}/_stats"):
        yield url


@contextmanager
def storaged(port: int, folder: Path, options: Sequence[str]) -> Iterator[Daemon]:
    """Run a fresh storaged, with these options of its command line; its log is kept in `folder`."""
    twistd = Path(sysconfig.get_path("scripts")) / "twistd"
    command = [str(twistd), "--nodaemon", "--pidfile=", f"--logfile={folder / 'storaged.log'}", "storaged"]
    bind = f"--bind=127.0.0.1:{port}"
    with _process([*command, bind, *options], port, f"http://127.0.0.1:{port}/health") as process:
        yield Daemon(process.pid, port)


def s3_options(folder: Path, endpoint: str) -> list[str]:
    """Write the files that put a storaged in front of `endpoint`; gives the options that name them."""
    config, secrets = folder / "storaged.toml", folder / "secrets.toml"
    config.write_text(
        f'[s3]\nbucket = "{BUCKET}"\nendpoint = "{endpoint}"\nregion = "us-east-1"\nuse_path_style = true\n'
    )
    secrets.touch(mode=0o600)
    secrets.write_text(f'[s3]\naccess_key_id = "{ACCESS_KEY_ID}"\nsecret_access_key = "{SECRET_ACCESS_KEY}"\n')
    return [f"--config={config}", f"--secrets={secrets}"]


def local_options(folder: Path) -> list[str]:
    """The options of a storaged that keeps its objects in `folder`."""
    return [f"--data={folder}", f"--secrets={folder / 'none.toml'}"]


def run_client(port: int, load: Load) -> float:
    """Put a load on a port of this host; returns the seconds it took. Raises CannotMeasure when a request fails."""
    numbers = [str(load.size), str(load.connections), str(load.count)]
    command = [str(build("bclient")), load.verb, str(port), load.path, *numbers]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise CannotMeasure(f"{load} failed: {ended.stdout}{ended.stderr}")
    return float(json.loads(ended.stdout)["secs"])


def build(name: str) -> Path:
    """Compile `name`.c, unless that is done; gives the program."""
    source, program = HERE / f"{name}.c", BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-pthread", "-o", str(program), str(source)], check=True)
    return program


def environment() -> dict[str, str]:
    """What a measured process gets of ours: nothing that sends boto3, or a request, anywhere else."""
    kept = {name: value for name, value in os.environ.items() if not _leads_astray(name)}
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {**kept, **nowhere, "PYTHONPATH": str(HERE.parent)}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, with all its threads. See proc_pid_stat(5)."""
    # The name of the program comes first, in parentheses, and may have spaces.
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_rss(pid: int) -> int:
    """The most bytes of a process that were ever in memory at once. See proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _leads_astray(name: str) -> bool:
    return name.startswith("AWS_") or name.lower().endswith("_proxy")


@contextmanager
def _process(command: list[str], port: int, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until it is not needed any more, which begins when it answers at `url`."""
    if _listens(port):
        raise CannotMeasure(f"port {port} is taken: name another with --port")
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    try:
        _wait_for_answer(process, url)
        yield process
    finally:
        _stop(process)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for_answer(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CannotMeasure(f"{process.args!r} does not answer at {url}; it ended with {process.returncode}")
        time.sleep(0.02)


def _answers(url: str) -> bool:
    # Not urlopen, which would go through a proxy if the environment names one.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=START_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise CannotMeasure(f"{process.args!r} had to be killed") from None
