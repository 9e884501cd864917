"""The status of a daemon as a process: a PUT that holds a slot is found, whichever worker is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.activated import wait_until
from tests.daemon import ROOT, TWISTD, Daemon
from twisted_storaged.status import Status, Transfer
from twisted_storaged.status_table import ask_status

SIZE = 1 << 20
COMMANDS = {
    "storaged status": [sys.executable, "-m", "twisted_storaged", "status"],
    "twistd storaged --status": [str(TWISTD), "storaged", "--status"],
}


@contextmanager
def trickling(daemon: Daemon, key: str) -> Iterator[None]:
    """A client that puts an object, some bytes at a time."""
    end = Event()

    def trickle() -> None:
        with daemon.connect() as client:
            head = f"PUT /objects/{key} HTTP/1.1\r\nHost: x\r\nX-Request-Id: slow-1\r\nContent-Length: {SIZE}\r\n\r\n"
            client.sendall(head.encode())
            while not end.wait(0.05):
                client.sendall(bytes(1000))

    thread = Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def ask(daemon: Daemon) -> Status:
    """Ask one of the workers."""
    return ask_status(f"tcp:{daemon.port}:interface=127.0.0.1")


def run(command: Sequence[str], folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    """Run a command that prints the status."""
    # No secrets can be read: they are not needed.
    environ = {"PYTHONPATH": str(ROOT), "HOME": str(folder), "PATH": os.environ["PATH"]}
    options = ["--bind", f"127.0.0.1:{port}", "--secrets", "/nonexistent"]
    return subprocess.run(
        [*command, *options], cwd=folder, env=environ, timeout=120, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_put_that_trickles(tmp_path: Path, workers: int) -> None:
    """A PUT that trickles holds a slot and waits for its client, and both commands print that; its key is escaped."""
    with Daemon(tmp_path, config=f"[storaged]\nworkers = {workers}\n") as daemon, trickling(daemon, "slow/%E2%80%AE"):

        def measured() -> list[Transfer]:
            return [one for one in ask(daemon).transfers if one.age > 2]

        # Several times, so that each worker is asked.
        wait_until(lambda: [len(measured()) for _ in range(4)] == [1] * 4)
        (transfer,) = measured()
        assert (transfer.id, transfer.operation, transfer.bucket) == ("slow-1", "put", "primary")
        assert (transfer.key, transfer.size) == ("slow/\u202e", SIZE)
        assert transfer.client.startswith("127.0.0.1:")
        assert (transfer.holds_slot, transfer.waits_for) == (True, "client")
        assert 0 < transfer.done < SIZE
        assert 0 < transfer.rate < SIZE
        status = ask(daemon)
        assert (status.slots_taken, status.slots, len(status.workers)) == (1, 4, workers)
        assert transfer.worker in [worker.pid for worker in status.workers if worker.slots_taken == 1]
        assert sum(one.received for one in status.intervals) > 0
        for command in COMMANDS.values():
            printed = run(command, tmp_path, daemon.port)
            assert (printed.returncode, printed.stderr) == (0, "")
            assert "1 of 4 put slots taken" in printed.stdout
            row = printed.stdout.partition("transfers that hold a put slot:\n")[2].splitlines()[1]
            assert row.split()[:4] == ["slow-1", transfer.client, "put", "primary"]
            assert row.split()[-3:] == ["client", str(transfer.worker), r"slow/\u202e"]
        wait_until(lambda: [bucket.ready for bucket in ask(daemon).buckets] == [True])


def test_a_get_that_is_not_read(tmp_path: Path) -> None:
    """A GET whose client does not read waits for it, with a part of its bytes sent."""
    size = 64 << 20
    with Daemon(tmp_path) as daemon, daemon.connect() as client:
        put = urllib.request.Request(f"{daemon.url}/objects/k", bytes(size), method="PUT")
        assert urllib.request.urlopen(put, timeout=60).status == 200
        client.sendall(b"GET /objects/k HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: [one.waits_for for one in ask(daemon).transfers] == ["client"])
        (transfer,) = ask(daemon).transfers
        assert (transfer.operation, transfer.holds_slot, transfer.size) == ("get", False, size)
        assert 0 < transfer.done < size


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_daemon(tmp_path: Path, command: list[str]) -> None:
    """Without a daemon, the command ends with status 1 and one line."""
    ended = run(command, tmp_path, 1)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "no storaged answers at tcp:1:interface=127.0.0.1: [Errno 111] Connection refused\n"
    assert list(tmp_path.iterdir()) == []
