"""Clients that disconnect at every stage of every verb: the log has no error, and no resource of theirs is kept."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import sleep

import pytest

from tests.daemon import Daemon
from tests.engines.scripted import Answer, Call, scripted
from tests.integration.test_daemon import ask, wait_for

MiB = 1 << 20
SMALL, LARGE = b"s" * 1000, b"l" * (6 * MiB)
KEYS = 1500
RESET = struct.pack("ii", 1, 0)

GET_SMALL = "GET /storage/get/small"
GET_LARGE = "GET /storage/get/large"
#: Request lines of requests without a body.
WITHOUT_BODY = [
    GET_SMALL,
    GET_LARGE,
    "HEAD /storage/get/large",
    "GET /storage/get/missing",
    "DELETE /storage/delete/missing",
    "GET /storage/list",
    "GET /storage/list?delimiter=/",
    "GET /health",
]
#: Bytes of a response that are read before the client disconnects.
READ = [0, 1, 1000, 300_000]
#: Seconds that a client waits for these bytes, as the response may be shorter.
ENOUGH = 0.1
#: Bodies, and how many of their bytes are sent.
BODIES = [(SMALL, 0), (SMALL, 1), (SMALL, 1000), (LARGE, 0), (LARGE, 1000), (LARGE, 5 * MiB + 1), (LARGE, len(LARGE))]
#: Log lines of errors.
ERROR = re.compile(r"#(error|critical)\]|Traceback|Unhandled")
LISTED = (
    "<Contents><Key>k/%05d</Key><Size>1</Size><ETag>e</ETag>"
    "<LastModified>2023-11-14T22:13:20Z</LastModified></Contents>"
)


def slowly(call: Call) -> Answer | None:
    """A script for S3 that delays each response, so that clients disconnect before it; lists get an answer."""
    sleep(0.01)
    if "list-type=2" in call.target:
        entries = "".join(LISTED % number for number in range(KEYS))
        return Answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())
    return Answer(do_it_first=True, seconds_per_mib=0.05) if call.name == "GetObject" else None


@contextmanager
def embedded(folder: Path) -> Iterator[Daemon]:
    """A daemon on the embedded bucket."""
    with Daemon(folder) as daemon:
        yield daemon


@contextmanager
def on_s3(folder: Path) -> Iterator[Daemon]:
    """A daemon in front of a slow S3."""
    with scripted() as (endpoint, engine):
        endpoint.script = slowly
        state = f'[storaged]\nstate = "{folder / "state"}"\n'
        with Daemon(folder, config=f"{engine.toml('bucket')}\n{state}") as daemon:
            yield daemon


@pytest.fixture(scope="module", params=[embedded, on_s3], ids=["embedded", "s3"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with request.param(tmp_path_factory.mktemp("resets")) as daemon:
        assert ask(daemon, "PUT", "/storage/put/small", SMALL)[0] == 200
        assert ask(daemon, "PUT", "/storage/put/large", LARGE)[0] == 200
        yield daemon


def leave(daemon: Daemon, sent: bytes, read: int = 0, reset: bool = True) -> None:
    """Connect, send, read some bytes of the response, and disconnect with a reset or a FIN."""
    with daemon.connect() as client:
        client.settimeout(ENOUGH)
        with suppress(OSError):
            client.sendall(sent)
            while read > 0 and (data := client.recv(min(read, 1 << 16))):
                read -= len(data)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def head(line: str, length: int | None = None) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: x"] + ([] if length is None else [f"Content-Length: {length}"])
    return "\r\n".join([*lines, "", ""]).encode()


def is_stored(daemon: Daemon, key: str) -> bool:
    """Store an object; returns whether it was stored, rather than refused for want of a free slot."""
    return ask(daemon, "PUT", f"/storage/put/{key}", SMALL)[0] == 200


@contextmanager
def unnoticed(daemon: Daemon) -> Iterator[None]:
    """Expect no error in the log, no descriptor left open, and that four PUTs and a GET are served as before."""
    before, seen = daemon.open_files(), len(daemon.log)
    yield
    # The pool keeps some connections to S3 open.
    wait_for(lambda: daemon.open_files() <= before + 12)
    for number in range(4):
        wait_for(partial(is_stored, daemon, f"k/{number}"))
    assert ask(daemon, "GET", "/storage/get/large") == (200, LARGE)
    daemon.settle()
    assert [line for line in daemon.log[seen:].splitlines() if ERROR.search(line)] == []


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])
class ResetTests:
    """Clients that disconnect."""

    def test_before_a_request(self, daemon: Daemon, reset: bool) -> None:
        """A client may disconnect before it sends a request, and in the middle of the headers."""
        with unnoticed(daemon):
            for sent in (b"", b"G", b"GET /storage/get/small HTTP/1.1\r\nHost", head(GET_SMALL)[:-2]):
                leave(daemon, sent, reset=reset)

    @pytest.mark.parametrize("line", WITHOUT_BODY)
    def test_before_and_in_an_answer(self, daemon: Daemon, line: str, reset: bool) -> None:
        """A client may disconnect before a response, in its headers, and in its body; repeated, as there are races."""
        with unnoticed(daemon):
            for read in READ if line == GET_LARGE else READ[:2]:
                for _ in range(5):
                    leave(daemon, head(line), read, reset)

    @pytest.mark.parametrize(("body", "sent"), BODIES)
    def test_in_and_after_a_body(self, daemon: Daemon, body: bytes, sent: int, reset: bool) -> None:
        """A client may disconnect in the middle of its body, and after it, before the response."""
        with unnoticed(daemon):
            for _ in range(5):
                leave(daemon, head("PUT /storage/put/new", len(body)) + body[:sent], reset=reset)

    def test_in_a_chunked_body(self, daemon: Daemon, reset: bool) -> None:
        """A client may disconnect in the middle of a chunked body."""
        chunked = b"PUT /storage/put/new HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with unnoticed(daemon):
            for sent in (b"", b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n", b"5\r\nhello\r\n0\r\n\r\n"):
                leave(daemon, chunked + sent, reset=reset)

    def test_with_requests_in_a_row(self, daemon: Daemon, reset: bool) -> None:
        """Pipelined requests of a client that disconnects are dropped with the one that is being answered."""
        with unnoticed(daemon):
            for read in READ:
                leave(daemon, b"".join(map(head, WITHOUT_BODY)) * 10, read, reset)

    def test_after_a_refusal(self, daemon: Daemon, reset: bool) -> None:
        """A client may disconnect after a refusal, while its body is discarded."""
        with unnoticed(daemon):
            for read in READ[:3]:
                leave(daemon, head("PUT /storage/put/", 5 * MiB) + LARGE[:MiB], read, reset)
