"""Blocking connections to S3 for threads."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from twisted_storaged.buckets.s3.blocking import Address, BlockingPool
from twisted_storaged.protocol.http1 import ConnectionFailed, TimedOut

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@contextmanager
def server(*scripts: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Run a server that serves each connection by the next script, and closes it."""
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
    """Make a script that reads a request and sends a response, for each of these."""

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
    """The pool of blocking connections."""

    def test_a_connection_is_used_again(self) -> None:
        """Three requests in a row use one connection."""
        with server(answers(OK, OK, OK)) as address:
            pool = BlockingPool(address, 5, 5)
            assert [ask(pool) for _ in range(3)] == [b"hi"] * 3
            pool.close()

    def test_one_that_was_closed_while_idle_is_not(self) -> None:
        """A connection that the peer closed while it was idle is replaced before the request is sent."""
        with server(answers(OK), answers(OK)) as address:
            pool = BlockingPool(address, 5, 5)
            assert ask(pool) == b"hi"
            time.sleep(0.1)  # the server closes; there is no event to wait for on this side
            assert ask(pool) == b"hi"
            pool.close()

    def test_one_that_another_thread_takes_first_is_not(self) -> None:
        """A thread that loses the last idle connection to another thread makes a new one."""

        class Emptied(deque[socket.socket]):
            def __bool__(self) -> bool:
                """Seem to have an element, as before another thread took it."""
                return True

        with server(answers(OK)) as address:
            pool = BlockingPool(address, 5, 5)
            pool._idle = Emptied()
            assert ask(pool) == b"hi"
            pool.close()

    def test_one_that_is_to_be_closed_is_not(self) -> None:
        """A connection whose response says `Connection: close` is not reused."""
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        with server(answers(closing), answers(OK)) as address:
            pool = BlockingPool(address, 5, 5)
            assert [ask(pool), ask(pool)] == [b"hi", b"hi"]
            pool.close()

    @pytest.mark.parametrize("said", [b"", OK[:-1], b"220 smtp\r\n\r\n"])
    def test_an_answer_that_is_none(self, said: bytes) -> None:
        """A response that is not HTTP is a failure."""
        with server(answers(said)) as address, pytest.raises(ConnectionFailed):
            ask(BlockingPool(address, 5, 5))

    def test_silence(self) -> None:
        """A peer that sends nothing is given up after the read timeout."""

        def silent(connection: socket.socket) -> None:
            while connection.recv(100):
                pass

        with server(silent) as address, pytest.raises(ConnectionFailed, match="TimeoutError"):
            ask(BlockingPool(address, 5, 0.1))

    @pytest.mark.parametrize("size", [4, 64 << 20], ids=["answers nothing", "takes nothing"])
    def test_is_over_in_time(self, size: int) -> None:
        """A request ends at its own time limit, before the read timeout, whether or not the peer takes its body."""
        began = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            pool = BlockingPool(Address("127.0.0.1", listener.getsockname()[1]), 5, 60)
            with pytest.raises(ConnectionFailed):
                pool.ask(b"head", bytearray(size), began + 0.3)
        assert 0.3 <= time.monotonic() - began < 5

    def test_drops_do_not_add_to_the_time(self) -> None:
        """A peer that sends single bytes does not extend the time limit of a request."""

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

    def test_a_slow_body_is_held_to_progress(self) -> None:
        """A peer that takes a body slowly, but steadily, may need more than one read timeout for it."""

        def slow(connection: socket.socket) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            left = len(b"head") + size
            while left:
                time.sleep(0.02)
                left -= len(connection.recv(min(1 << 17, left)))
            connection.sendall(OK)

        size = 12 << 20
        with server(slow) as address:
            began = time.monotonic()
            assert BlockingPool(address, 5, 1).ask(b"head", bytearray(size)).body == b"hi"
            assert time.monotonic() - began > 1

    @pytest.mark.parametrize("status", [b"412 Precondition Failed", b"503 Slow Down", b"403 Forbidden"])
    def test_an_answer_to_the_head_alone(self, status: bytes) -> None:
        """The error of a peer that refuses a large body and closes is the response, and no lost connection."""

        def refuses(connection: socket.socket) -> None:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")

        with server(refuses) as address:
            answer = BlockingPool(address, 5, 5).ask(b"head", bytearray(64 << 20))
        assert (answer.status, answer.body) == (int(status[:3]), b"no")

    def test_an_answer_to_the_head_of_a_peer_that_reads_no_further(self) -> None:
        """The error of a peer that stops reading a body is read at once, though the connection stays open."""

        def refuses(connection: socket.socket) -> None:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
            heard.wait(10)

        heard = threading.Event()
        with server(refuses) as address:
            began = time.monotonic()
            assert BlockingPool(address, 5, 60).ask(b"head", bytearray(64 << 20)).status == 412
            assert time.monotonic() - began < 10
            heard.set()

    def test_a_success_before_the_body_is_none(self) -> None:
        """A success that comes before the body was sent is a failure, as the peer cannot have stored it."""

        def believes(connection: socket.socket) -> None:
            connection.recv(100)
            connection.sendall(OK)

        with server(believes) as address, pytest.raises(ConnectionFailed):
            BlockingPool(address, 5, 5).ask(b"head", bytearray(64 << 20))

    def test_descriptors_from_1024_on(self) -> None:
        """Connections work with descriptors from 1,024 on, which select(2) does not support."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        try:
            with server(answers(OK, OK)) as address:
                pool = BlockingPool(address, 5, 5)
                assert [ask(pool), ask(pool)] == [b"hi", b"hi"]
                assert pool._idle[0].fileno() >= 1024
                pool.close()
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_a_connection_that_is_given_back_after_the_end(self) -> None:
        """A connection that is given back after the pool was closed is closed."""

        def closes_the_pool(connection: socket.socket) -> None:
            connection.recv(100)
            pool.close()
            connection.sendall(OK)
            assert connection.recv(100) == b""

        with server(closes_the_pool) as address:
            pool = BlockingPool(address, 5, 5)
            assert pool.ask(b"head", b"").body == b"hi"
            assert not pool._idle

    def test_when_there_is_no_time_left(self) -> None:
        """A request whose time is over is not sent."""
        with pytest.raises(TimedOut):
            BlockingPool(Address("127.0.0.1", 9), 5, 5).ask(b"head", bytearray(), time.monotonic())

    def test_nobody_there(self) -> None:
        """A refused connection is reported as such."""
        with pytest.raises(ConnectionFailed, match="no connection to S3"):
            ask(BlockingPool(Address("127.0.0.1", 9), 5, 5))
