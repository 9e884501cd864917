"""Measures the embedded bucket, and the simplest ways to do the same on the same disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

from loads import Load, Sample, some_bytes
from nginx import nginx_with_file
from place import Place
from processes import HERE, environment
from servers import storaged_embedded


def embedded(place: Place, load: Load) -> Sample:
    """Measure storaged on the embedded bucket, filled with the objects that the load reads."""
    if load.verb == "list":
        fill(place.folder / "data", load)
    with storaged_embedded(place) as server:
        if load.verb == "get":
            server.do(_putting(load))
        return server.measure(load)


def fill(folder: Path, load: Load) -> None:
    """Create a bucket with all keys of a list."""
    command = [sys.executable, str(HERE / "fill.py"), str(folder), load.key, str(load.size)]
    subprocess.run(command, env=environment(), check=True)


def served_by_nginx(place: Place, load: Load) -> Sample:
    """Measure GETs from nginx of the file in which storaged keeps the object."""
    with storaged_embedded(place) as server:
        server.do(_putting(load))
    files = (place.folder / "data").rglob("*")
    largest = max(files, key=lambda file: file.stat().st_size)
    with nginx_with_file(place, largest) as server:
        return server.measure(load)


def direct(place: Place, load: Load) -> Sample:
    """Measure a PUT as a copy with dd that bypasses the page cache."""
    return _timed(load, lambda: _dd(place.folder / "copy", load.size))


def copied(place: Place, load: Load) -> Sample:
    """Measure a PUT as a copy with cp and an fsync."""
    return _timed(load, lambda: _cp(place.folder / "copy", load.size))


def synced(place: Place, load: Load) -> Sample:
    """Measure small PUTs as files that are written one after the other, each with an fsync of itself and its folder."""
    body = os.pread(some_bytes(load.size), load.size, 0)
    folder = os.open(place.folder, os.O_RDONLY)
    times: list[float] = []
    start = time.monotonic()
    while time.monotonic() < start + load.seconds:
        begun = time.monotonic()
        _write(place.folder / str(len(times)), body, folder)
        times.append(time.monotonic() - begun)
    seconds = time.monotonic() - start
    os.close(folder)
    return Sample(seconds, len(times), len(times) * load.size, quantiles(times, n=100)[98] * 1e3)


def _putting(load: Load) -> Load:
    return Load("put", load.key, load.size)


def _timed(load: Load, write: Callable[[], None]) -> Sample:
    some_bytes(load.size)  # cached: not part of the measurement
    start = time.monotonic()
    write()
    seconds = time.monotonic() - start
    return Sample(seconds, 1, load.size, seconds * 1e3)


def _dd(to: Path, size: int) -> None:
    body = some_bytes(size)
    how = ["bs=4M", "iflag=fullblock", "oflag=direct", "conv=fsync", "status=none"]
    subprocess.run(["dd", f"if=/proc/self/fd/{body}", f"of={to}", *how], pass_fds=[body], check=True)


def _cp(to: Path, size: int) -> None:
    body = some_bytes(size)
    subprocess.run(["cp", f"/proc/self/fd/{body}", str(to)], pass_fds=[body], check=True)
    with to.open("rb") as copy:
        os.fsync(copy.fileno())


def _write(file: Path, body: bytes, folder: int) -> None:
    with file.open("xb") as new:
        new.write(body)
        new.flush()
        os.fsync(new.fileno())
    os.fsync(folder)
