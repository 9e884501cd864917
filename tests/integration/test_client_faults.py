"""Clients that break the protocol, and a daemon without free file descriptors: it keeps serving, and leaks nothing."""

from __future__ import annotations

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
    """The number of content files on the disk, whether a key refers to them or not."""
    return len(list((daemon.data / "objects").glob("*/*")))


def expect_no_200(connection: Connection) -> None:
    """Expect a 400 or no response, and then the end of the connection."""
    with suppress(NoResponse):
        assert connection.final_response().status == 400
    assert connection.is_closed_by_server()


class BodyTests:
    """Malformed and incomplete bodies leak no file and no descriptor. That they become no object is checked by the
    conformance kit.
    """

    @contextmanager
    def costs_nothing(self, daemon: Daemon) -> Iterator[None]:
        """Expect that the old object stays, and that no file and no descriptor is kept."""
        assert ask(daemon, "PUT", "/storage/put/a", OLD)[0] == 200
        wait_for(lambda: files(daemon) == 1)
        before = daemon.open_files()
        yield
        wait_for(lambda: files(daemon) == 1)
        wait_for(lambda: daemon.open_files() <= before)
        assert ask(daemon, "GET", "/storage/get/a") == (200, OLD)
        assert "Traceback" not in daemon.log

    @pytest.mark.parametrize("bad", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
    def test_malformed_chunks(self, daemon: Daemon, bad: bytes) -> None:
        """Malformed chunks after parts that are on the disk leak nothing, more often than there are slots."""
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
        """A client that half-closes its connection before the end of its body gets no 200, and leaks nothing."""
        with self.costs_nothing(daemon):
            for _ in range(5):
                with connect(daemon) as client:
                    client.send(head("PUT", "/storage/put/a", length(10 * MiB)) + b"x" * (10 * MiB - 1))
                    client.half_close()
                    expect_no_200(client)

    def test_a_body_longer_than_declared(self, daemon: Daemon) -> None:
        """Bytes after the declared length end the connection after the 200; the object is as declared."""
        with self.costs_nothing(daemon), connect(daemon) as client:
            client.send(head("PUT", "/storage/put/a", length(len(OLD))) + OLD + b"and more\r\n\r\n")
            assert client.final_response().status == 200
            expect_no_200(client)

    def test_no_http_at_all(self, daemon: Daemon) -> None:
        """Noise, a TLS handshake, and headers without end get no 200, and the daemon keeps serving."""
        with self.costs_nothing(daemon):
            for noise in (b"\0\xff" * 1000 + b"\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", b"X: y\r\n" * 100_000):
                with connect(daemon) as client, suppress(ConnectionError):
                    client.send(noise)
                    expect_no_200(client)
            assert ask(daemon, "GET", "/health")[0] == 200


class DescriptorTests:
    """A process that has reached its limit of open files."""

    def test_out_of_descriptors(self, tmp_path: Path) -> None:
        """Without free descriptors, new connections are refused and open ones are served; later all is as before."""
        with Daemon(tmp_path) as daemon, ExitStack() as stack:
            assert ask(daemon, "PUT", "/storage/put/a", OLD)[0] == 200
            before = daemon.open_files()
            guest = stack.enter_context(connect(daemon))
            guest.send(head("GET", "/health"))
            assert guest.final_response().status == 200
            limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (before + 10, limits[1]))
            crowd = [stack.enter_context(connect(daemon)) for _ in range(30)]
            assert sum(self.is_refused(client) for client in crowd) >= 15
            # An open connection needs no descriptor; the file of a large object needs one.
            guest.send(head("GET", "/health"))
            assert guest.final_response().status == 200
            guest.send(head("PUT", "/storage/put/b", length(MiB)) + b"x" * MiB)
            assert guest.final_response().status == 500
            assert ask_on(guest, "/storage/get/b") == 404
            for client in crowd:
                client.close()
            wait_for(lambda: daemon.open_files() <= before + 1)
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
