"""What `--status` prints, and how it asks."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from msgspec.json import encode

from tests.test_check import certificate
from twisted_storaged.errors import StartError
from twisted_storaged.status import BucketStatus, ProcessStatus, Refusal, Status, Transfer
from twisted_storaged.status_table import ask_status, status_lines

EMPTY = Status(0.0, {"storaged": "1.2"}, 0, 4, 1, 1, [], [], [], [], [], [])
FULL = Status(
    at=1_700_000_000.0,
    versions={"storaged": "1.2", "python": "3.11", "twisted": "26"},
    slots_taken=1,
    slots=4,
    connections=7,
    requests_under_way=3,
    transfers=[
        Transfer("id-1", "127.0.0.1:5", "put", "primary", "a b\x1b[2J", None, 1536, 512.5, 61.0, True, "client", 11),
        Transfer("id-2", "unix", "get", "other", "k", 3 << 30, 999, 0.0, 7200.0, False, "S3", 12),
    ],
    refusals=[Refusal(1_700_000_001.0, "id-3", "[::1]:6", "put", "", "", None, "NoFreeSlot")],
    intervals=[],
    buckets=[
        BucketStatus("primary", "local", True, "", 0.25),
        BucketStatus("other", "s3", False, "bucket timed out", 2.0),
    ],
    policies=[],
    workers=[
        ProcessStatus(11, 1_600_000_000.0, False, 4, 2, 1, [], [], []),
        ProcessStatus(12, 1_600_000_000.0, True, 3, 1, 0, [], [], []),
    ],
)
EXPECTED = r"""
storaged 1.2, 2023-11-14 22:13:20 UTC
1 of 4 put slots taken, 7 connections, 3 requests under way

transfers that hold a put slot:
  id    client       operation  bucket   size  so far   per second  age    waits for  worker  key
  id-1  127.0.0.1:5  put        primary  -     1.5 KiB  512 B       1 min  client     11      a b\u001b[2J

other transfers:
  id    client  operation  bucket  size     so far  per second  age  waits for  worker  key
  id-2  unix    get        other   3.0 GiB  999 B   0 B         2 h  S3         12      k

buckets:
  name     kind   ready  checked  reason
  primary  local  yes    0.2 s
  other    s3     no     2.0 s    bucket timed out

workers:
  pid  since                    connections  requests  slots  state
  11   2020-09-13 12:26:40 UTC  4            2         1      serving
  12   2020-09-13 12:26:40 UTC  3            1         0      draining

last refusals:
  at                       status  reason      id    client   operation  bucket  key
  2023-11-14 22:13:21 UTC  -       NoFreeSlot  id-3  [::1]:6  put        -
"""


class LinesTests:
    """The text."""

    def test_tables(self) -> None:
        """Everything stands in a table, the holders of slots first; control characters are escaped."""
        assert "\n".join(["", *status_lines(FULL), ""]) == EXPECTED

    def test_nothing(self) -> None:
        """There is no table without rows."""
        assert list(status_lines(EMPTY)) == [
            "storaged 1.2, 1970-01-01 00:00:00 UTC",
            "0 of 4 put slots taken, 1 connections, 1 requests under way",
        ]


def response(body: bytes, status: int = 200) -> bytes:
    """A response with this body."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@contextmanager
def answering(
    answer: bytes, family: int = socket.AF_INET, address: object = ("127.0.0.1", 0), pem: Path | None = None
) -> Iterator[socket.socket]:
    """A server that answers one connection so; its socket."""
    with socket.socket(family) as listening:
        listening.bind(address)  # type: ignore[arg-type]
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            if pem is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(pem)
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                assert connection.recv(9999).startswith(b"GET /status.json HTTP/1.1\r\n")
                connection.sendall(answer)

        thread = Thread(target=serve)
        thread.start()
        yield listening
        thread.join()


class AskTests:
    """The question."""

    @pytest.mark.parametrize(
        "endpoint",
        ["tcp:{}:interface=127.0.0.1", "tcp:{}", "tcp:{}:interface=0.0.0.0", "tcp:interface=localhost:port={}"],
    )
    def test_tcp(self, endpoint: str) -> None:
        """A daemon is asked at its address; one that listens on all, at the loopback address."""
        with answering(response(encode(FULL))) as listening:
            assert ask_status(endpoint.format(listening.getsockname()[1])) == FULL

    @pytest.mark.parametrize("endpoint", [r"tcp6:{}:interface=\:\:1", "tcp6:{}", r"tcp6:{}:interface=\:\:"])
    def test_tcp6(self, endpoint: str) -> None:
        """So is one with IPv6."""
        with answering(response(encode(FULL)), socket.AF_INET6, ("::1", 0)) as listening:
            assert ask_status(endpoint.format(listening.getsockname()[1])) == FULL

    def test_unix(self, tmp_path: Path) -> None:
        """A unix socket is connected to."""
        with answering(response(encode(FULL)), socket.AF_UNIX, str(tmp_path / "s")):
            assert ask_status(f"unix:{tmp_path}/s") == FULL

    def test_tls(self, tmp_path: Path) -> None:
        """TLS is spoken, without a check of the name in the certificate."""
        pem = tmp_path / "server.pem"
        pem.write_bytes(certificate(100))
        with answering(response(encode(FULL)), pem=pem) as listening:
            endpoint = f"ssl:{listening.getsockname()[1]}:privateKey={pem}:interface=127.0.0.1"
            assert ask_status(endpoint) == FULL

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (b"", "Remote end closed connection"),
            (b"nonsense\r\n", "nonsense"),
            (response(b"not found", 404), "its answer is 404"),
            (response(b"{}"), "its status is not one of this version: "),
            (b"HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\nx", "IncompleteRead"),
        ],
    )
    def test_other_servers(self, answer: bytes, error: str) -> None:
        """What does not answer as storaged does is named in one line."""
        with answering(answer) as listening, pytest.raises(StartError) as raised:
            ask_status(f"tcp:{listening.getsockname()[1]}:interface=127.0.0.1")
        assert str(raised.value).startswith("no storaged answers at tcp:")
        assert error in str(raised.value)
        assert str(raised.value).isprintable()

    def test_nobody(self, tmp_path: Path) -> None:
        """Where nothing listens, or nothing is answered in time, there is no daemon."""
        for endpoint in (f"unix:{tmp_path}/none", "tcp:1:interface=127.0.0.1", "ssl:1:interface=127.0.0.1"):
            with pytest.raises(StartError, match=r"^no storaged answers at "):
                ask_status(endpoint)
        with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(StartError, match="timed out"):
            ask_status(f"tcp:{listening.getsockname()[1]}", 0.05)
        with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(StartError, match="timed out"):
            ask_status(f"ssl:{listening.getsockname()[1]}", 0.05)

    @pytest.mark.parametrize("endpoint", ["systemd:domain=INET:index=0", "tcp:http", "tcp:"])
    def test_other_endpoints(self, endpoint: str) -> None:
        """An endpoint whose address is not known cannot be asked."""
        with pytest.raises(StartError, match=r"^cannot ask for the status at "):
            ask_status(endpoint)
