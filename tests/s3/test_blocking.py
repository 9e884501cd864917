"""Connections for threads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from twisted_storaged.s3.blocking import Address, BlockingPool
from twisted_storaged.s3.wire import ConnectionFailed, TimedOut

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@contextmanager
def server(*scripts: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that runs one script for each connection, in order, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for script in scripts:
                connection, _ = listener.accept()
                with connection:
                    script(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join(10)
        assert not thread.is_alive()


def answers(*answer: bytes, request: bytes = b"headbody") -> Callable[[socket.socket], None]:
    """A script that reads requests and answers each."""

    def script(connection: socket.socket) -> None:
        for one in answer:
            received = b""
            while len(received) < len(request):
                received += connection.recv(100)
            assert received == request
            connection.sendall(one)

    return script


def ask(pool: BlockingPool) -> bytes:
    return pool.ask(b"head", bytearray(b"body")).body


class BlockingPoolTests:
    """Sending a request and reading its answer."""

    def test_a_connection_is_used_again(self) -> None:
        """For three requests, one."""
        with server(answers(OK, OK, OK)) as address:
            pool = BlockingPool(address, 5, 5)
            assert [ask(pool) for _ in range(3)] == [b"hi"] * 3
            pool.close()

    def test_one_that_was_closed_while_idle_is_not(self) -> None:
        """That is seen before the request goes out."""
        with server(answers(OK), answers(OK)) as address:
            pool = BlockingPool(address, 5, 5)
            assert ask(pool) == b"hi"
            time.sleep(0.1)  # the server closes; there is no event to wait for on this side
            assert ask(pool) == b"hi"
            pool.close()

    def test_one_that_is_to_be_closed_is_not(self) -> None:
        """As the answer says."""
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        with server(answers(closing), answers(OK)) as address:
            pool = BlockingPool(address, 5, 5)
            assert [ask(pool), ask(pool)] == [b"hi", b"hi"]
            pool.close()

    @pytest.mark.parametrize("said", [b"", OK[:-1], b"220 smtp\r\n\r\n"])
    def test_an_answer_that_is_none(self, said: bytes) -> None:
        """Is a failure."""
        with server(answers(said)) as address, pytest.raises(ConnectionFailed):
            ask(BlockingPool(address, 5, 5))

    def test_silence(self) -> None:
        """Is given up after the read timeout."""

        def silent(connection: socket.socket) -> None:
            while connection.recv(100):
                pass

        with server(silent) as address, pytest.raises(ConnectionFailed, match="TimeoutError"):
            ask(BlockingPool(address, 5, 0.1))

    @pytest.mark.parametrize("size", [4, 64 << 20], ids=["answers nothing", "takes nothing"])
    def test_is_over_in_time(self, size: int) -> None:
        """At a time of its own, before the read timeout: with a body that leaves at once, and one that never does."""
        began = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            pool = BlockingPool(Address("127.0.0.1", listener.getsockname()[1]), 5, 60)
            with pytest.raises(ConnectionFailed):
                pool.ask(b"head", bytearray(size), began + 0.3)
        assert 0.3 <= time.monotonic() - began < 5

    def test_drops_do_not_add_to_the_time(self) -> None:
        """Though each comes before the read timeout."""

        def drips(connection: socket.socket) -> None:
            with suppress(OSError):
                for byte in OK * 100:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.02)

        with server(drips) as address:
            began = time.monotonic()
            with pytest.raises(ConnectionFailed):
                BlockingPool(address, 5, 60).ask(b"head", bytearray(), began + 0.3)
            assert time.monotonic() - began < 5

    def test_when_there_is_no_time_left(self) -> None:
        """S3 is not even asked."""
        with pytest.raises(TimedOut):
            BlockingPool(Address("127.0.0.1", 9), 5, 5).ask(b"head", bytearray(), time.monotonic())

    def test_nobody_there(self) -> None:
        """Is said so."""
        with pytest.raises(ConnectionFailed, match="no connection to S3"):
            ask(BlockingPool(Address("127.0.0.1", 9), 5, 5))
