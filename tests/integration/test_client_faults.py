"""Clients that break the rules, and a machine that runs out of something: what it costs the daemon is looked at."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.integration.test_daemon import ask, wait_for
from twisted_storaged.conformance.raw_http import CHUNKED, Connection, NoResponse, chunk, head, length

MiB = 1 << 20
OLD = b"old" * 100_000

BAD_CHUNKS = {
    "no size": b"x\r\nhello\r\n",
    "a negative size": b"-5\r\nhello\r\n",
    "more bytes than its size": b"5\r\nhello, world\r\n",
    "no end of its line": b"5" * 5000,
    "a chunk without an end": chunk(b"x" * MiB)[:-2] + b"xx",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("faults")) as daemon:
        yield daemon


def connect(daemon: Daemon) -> Connection:
    return Connection(("127.0.0.1", daemon.port))


def files(daemon: Daemon) -> int:
    """How many contents there are on the disk, seen or not."""
    return len(list((daemon.data / "objects").glob("*/*")))


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def expect_no_200(connection: Connection) -> None:
    """An error, or none; and the connection ends."""
    with suppress(NoResponse):
        assert connection.final_response().status == 400
    assert connection.is_closed_by_server()


class BodyTests:
    """Bodies that are not what they were to be. That nobody sees them, the conformance kit has shown."""

    @contextmanager
    def costs_nothing(self, daemon: Daemon) -> Iterator[None]:
        """The old object stays; no file, no descriptor and no slot is kept."""
        assert ask(daemon, "PUT", "/storage/put/a", OLD)[0] == 200
        wait_for(lambda: files(daemon) == 1)
        before = descriptors(daemon)
        yield
        wait_for(lambda: files(daemon) == 1)
        wait_for(lambda: descriptors(daemon) <= before)
        assert ask(daemon, "GET", "/storage/get/a") == (200, OLD)
        assert "Traceback" not in daemon.log

    @pytest.mark.parametrize("bad", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
    def test_malformed_chunks(self, daemon: Daemon, bad: bytes) -> None:
        """After parts of the body are on the disk; more often than there are slots."""
        with self.costs_nothing(daemon):
            for _ in range(5):
                with connect(daemon) as client:
                    client.send(head("PUT", "/storage/put/a", CHUNKED) + chunk(b"x" * 5 * MiB))
                    wait_for(lambda: files(daemon) == 2)
                    with suppress(ConnectionError):
                        client.send(bad)
                    expect_no_200(client)
                wait_for(lambda: files(daemon) == 1)

    def test_a_body_shorter_than_declared(self, daemon: Daemon) -> None:
        """From a client that says that this was all, and waits for an answer."""
        with self.costs_nothing(daemon):
            for _ in range(5):
                with connect(daemon) as client:
                    client.send(head("PUT", "/storage/put/a", length(10 * MiB)) + b"x" * (10 * MiB - 1))
                    client.half_close()
                    expect_no_200(client)

    def test_a_body_longer_than_declared(self, daemon: Daemon) -> None:
        """What is too much is taken for a request, which it is not; it costs the connection, not the object."""
        with self.costs_nothing(daemon), connect(daemon) as client:
            client.send(head("PUT", "/storage/put/a", length(len(OLD))) + OLD + b"and more\r\n\r\n")
            assert client.final_response().status == 200
            expect_no_200(client)

    def test_no_http_at_all(self, daemon: Daemon) -> None:
        """Noise, a TLS handshake, and a head that has no end."""
        with self.costs_nothing(daemon):
            for noise in (b"\0\xff" * 1000 + b"\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", b"X: y\r\n" * 100_000):
                with connect(daemon) as client, suppress(ConnectionError):
                    client.send(noise)
                    expect_no_200(client)
            assert ask(daemon, "GET", "/health")[0] == 200


class DescriptorTests:
    """As many open files as a process may have."""

    def test_out_of_descriptors(self, tmp_path: Path) -> None:
        """Who comes too late is refused, who is there is served; and when others leave, all is as before."""
        with Daemon(tmp_path) as daemon, ExitStack() as stack:
            assert ask(daemon, "PUT", "/storage/put/a", OLD)[0] == 200
            before = descriptors(daemon)
            guest = stack.enter_context(connect(daemon))
            guest.send(head("GET", "/health"))
            assert guest.final_response().status == 200
            limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (before + 10, limits[1]))
            crowd = [stack.enter_context(connect(daemon)) for _ in range(30)]
            assert sum(self.is_refused(client) for client in crowd) >= 15
            # A connection that was there before needs none; a large object needs some, and cannot have them.
            guest.send(head("GET", "/health"))
            assert guest.final_response().status == 200
            guest.send(head("PUT", "/storage/put/b", length(MiB)) + b"x" * MiB)
            assert guest.final_response().status == 500
            assert ask_on(guest, "/storage/get/b") == 404
            for client in crowd:
                client.close()
            wait_for(lambda: descriptors(daemon) <= before + 1)
            assert ask(daemon, "PUT", "/storage/put/b", b"x" * MiB)[0] == 200
            assert ask(daemon, "GET", "/storage/get/a") == (200, OLD)
            assert daemon.process.poll() is None
            assert files(daemon) == 2

    def is_refused(self, client: Connection) -> bool:
        """Whether the daemon closes the connection at once."""
        client.set_timeout(1)
        try:
            client.send(head("GET", "/health"))
            return client.final_response().status != 200
        except (NoResponse, ConnectionError):
            return True


def ask_on(connection: Connection, path: str) -> int:
    """The status of a GET."""
    connection.send(head("GET", path))
    return connection.final_response().status
