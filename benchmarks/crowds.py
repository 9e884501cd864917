"""Clients that are many, slow, or disconnect: loads against which the daemon's memory is bounded.

Each crowd works for some seconds and then disconnects. One thread or a few drive its sockets, as the daemon's memory is
measured and not its speed.
"""

from __future__ import annotations

import random
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from loads import MiB
from processes import CannotMeasure

KiB = 1 << 10
#: Seconds without a byte after which a client fails.
TIMEOUT = 30
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Crowd:
    """A load of many clients.

    Attributes:
        name: what the clients do.
        kind: what the daemon is in front of: "local", "s3", or "slow s3".
        size: bytes of the object at PATH.
        work: puts the load on the daemon at a port, for about so many seconds, and disconnects all clients.
        seconds: the duration of a full run.
    """

    name: str
    kind: str
    size: int
    work: Callable[[int, float], None]
    seconds: float


#: The key of the object that all clients read.
KEY = "crowd"
PATH = f"/storage/get/{KEY}"


def idle(port: int, seconds: float) -> None:
    """300 connections that have read a large object and stay open."""
    with ExitStack() as stack:
        for _ in range(300):
            client = stack.enter_context(_connected(port))
            client.sendall(_get())
            _read_answer(client)
        time.sleep(seconds)


def pipelining(port: int, seconds: float) -> None:
    """Five clients, one after the other, that send 10,000 GETs at once and read nothing."""
    requests = memoryview(_get() * 10_000)
    for _ in range(5):
        with _connected(port) as client:
            end, sent = time.monotonic() + seconds / 5, 0
            client.settimeout(0.1)
            while time.monotonic() < end:
                with suppress(TimeoutError):
                    sent += client.send(requests[sent:]) if sent < len(requests) else 0
                time.sleep(0.01)


def slow_readers(port: int, seconds: float) -> None:
    """1,500 clients that read an object in small pieces."""
    _allow_files(4096)
    with ExitStack() as stack:
        clients = [stack.enter_context(_connected(port, 8 * KiB)) for _ in range(1500)]
        for client in clients:
            client.sendall(_get())
            client.setblocking(False)
        waiting, end = set(clients), time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            for client in clients:
                with suppress(BlockingIOError):
                    client.recv(4 * KiB)
                    waiting.discard(client)
            if not waiting:
                end = min(end, time.monotonic() + seconds)
            time.sleep(0.1)
    if waiting:
        raise CannotMeasure(f"{len(waiting)} clients received nothing")


def leaving(port: int, seconds: float) -> None:
    """16 clients that disconnect in the middle of GETs and PUTs, half of them with a reset."""
    end = time.monotonic() + seconds
    _at_once(16, lambda number: _leave_at_random(port, random.Random(number), end))


def staggered(port: int, seconds: float) -> None:
    """16 GETs of a large object, each started a little later than the one before, which must all be complete."""

    def get(number: int) -> None:
        time.sleep(number * seconds / 16)
        with _connected(port) as client:
            client.sendall(_get())
            _read_answer(client)

    _at_once(16, get)


CROWDS = [
    Crowd("300 idle, after 8 MiB each", "local", 8 * MiB, idle, 3),
    Crowd("10,000 requests, unread", "local", 64 * KiB, pipelining, 10),
    Crowd("1,500 slow readers", "local", 8 * MiB, slow_readers, 12),
    Crowd("1,500 slow readers", "s3", 8 * MiB, slow_readers, 12),
    Crowd("leaving at random", "local", 24 * MiB, leaving, 25),
    Crowd("leaving at random", "s3", 24 * MiB, leaving, 25),
    Crowd("16 GETs, staggered", "slow s3", 128 * MiB, staggered, 5),
]


def _leave_at_random(port: int, chance: random.Random, end: float) -> None:
    data = bytes(MiB)
    while time.monotonic() < end:
        with _connected(port) as client, suppress(OSError):
            if chance.random() < 0.5:
                client.sendall(_get())
                left = chance.randrange(24 * MiB)
                while left > 0 and (got := client.recv(min(left, MiB))):
                    left -= len(got)
            else:
                size = chance.choice([MiB, 4 * MiB, 24 * MiB])
                client.sendall(f"PUT /storage/put/{chance.random()} HTTP/1.1\r\nHost: x\r\n".encode())
                client.sendall(f"Content-Length: {size}\r\n\r\n".encode())
                for _ in range(chance.randrange(size // MiB)):
                    client.sendall(data)
            if chance.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        time.sleep(chance.random() * 0.02)


def _at_once(count: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(work, range(count)))


@contextmanager
def _connected(port: int, buffer: int = 0) -> Iterator[socket.socket]:
    """A connection; with a `buffer`, the kernel's receive buffer is that small, as if the network were slow."""
    with socket.socket() as client:
        client.settimeout(TIMEOUT)
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)  # before connect; see tcp(7)
        client.connect(("127.0.0.1", port))
        yield client


def _get() -> bytes:
    return f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def _read_answer(client: socket.socket) -> None:
    """Read a response completely. Raises CannotMeasure if it is not complete."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(client, 64 * KiB)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise CannotMeasure(head.decode("latin-1"))
    left = int(head.lower().partition(b"content-length:")[2].split()[0]) - len(body)
    while left:
        left -= len(_received(client, min(left, MiB)))


def _received(client: socket.socket, most: int) -> bytes:
    data = client.recv(most)
    if not data:
        raise CannotMeasure("a response broke off")
    return data


def _allow_files(count: int) -> None:
    """Raise the limit of open files of this process and of those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count, hard)), hard))
