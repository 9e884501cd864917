"""What `--status` prints: what is under way in the daemon that runs with the same configuration."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from typing import TypeAlias

from msgspec import MsgspecError
from msgspec.json import decode

from twisted_storaged.config import endpoint_arguments
from twisted_storaged.errors import StartError
from twisted_storaged.runtime.log_format import printable
from twisted_storaged.status import Status, Transfer

#: Seconds without a byte after which a daemon is taken not to answer.
ANSWER_SECONDS = 5.0

#: Addresses that mean all of the host, by the kind of the endpoint, and one of them to connect to.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (nothing is bound)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Row: TypeAlias = tuple[object, ...]


def ask_status(endpoint: str, timeout: float = ANSWER_SECONDS) -> Status:
    """Ask the daemon that listens on an endpoint for its status. Blocking.

    Raises:
        StartError: none answers there, or not with a status that this version understands.
    """
    connection = HTTPConnection("localhost")
    try:
        connection.sock = _connect(endpoint, timeout)
        with closing(connection):
            connection.request("GET", "/status.json")
            response = connection.getresponse()
            body = response.read()
        if response.status != 200:
            raise HTTPException(f"its answer is {response.status}")
        return decode(body, type=Status)
    except (OSError, HTTPException) as error:
        cause = str(error) or type(error).__name__
    except MsgspecError as error:
        cause = f"its status is not one of this version: {error}"
    raise StartError(printable(f"no storaged answers at {endpoint}: {cause}"))


def _connect(endpoint: str, timeout: float) -> socket.socket:
    """Connect to what listens on an endpoint of this host. Raises OSError or StartError."""
    kind, arguments = endpoint_arguments(endpoint)
    if kind == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(arguments.get("address", ""))
        except BaseException:
            connection.close()
            raise
        return connection
    if kind not in ("tcp", "tcp6", "ssl") or not arguments.get("port", "").isdecimal():
        raise StartError(f"cannot ask for the status at {endpoint}: expected a port, or a unix socket")
    host = arguments.get("interface") or ("::" if kind == "tcp6" else "")
    connection = socket.create_connection((_LOOPBACK.get(host, host), int(arguments["port"])), timeout)
    if kind != "ssl":
        return connection
    # The address is one of this host, whose name no certificate has; and nothing is sent but a question.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(connection)
    except BaseException:
        connection.close()
        raise


def status_lines(status: Status) -> Iterator[str]:
    """Yield the lines of a status as tables."""
    yield f"storaged {printable(status.versions.get('storaged', ''))}, {_time(status.at)}"
    yield (
        f"{status.slots_taken} of {status.slots} put slots taken, {status.connections} connections, "
        f"{status.requests_under_way} requests under way"
    )
    yield from _table(
        "transfers that hold a put slot", _TRANSFER, [_transfer(one) for one in status.transfers if one.holds_slot]
    )
    yield from _table("other transfers", _TRANSFER, [_transfer(one) for one in status.transfers if not one.holds_slot])
    buckets = [
        (one.name, one.kind, "yes" if one.ready else "no", _seconds(one.checked), one.reason) for one in status.buckets
    ]
    yield from _table("buckets", ("name", "kind", "ready", "checked", "reason"), buckets)
    workers = [
        (
            one.pid,
            _time(one.started),
            one.connections,
            one.requests_under_way,
            one.slots_taken,
            "draining" if one.draining else "serving",
        )
        for one in status.workers
    ]
    yield from _table("workers", ("pid", "since", "connections", "requests", "slots", "state"), workers)
    refusals = [
        (_time(one.at), one.status or "-", one.reason, one.id, one.client, one.operation, one.bucket or "-", one.key)
        for one in status.refusals
    ]
    header = ("at", "status", "reason", "id", "client", "operation", "bucket", "key")
    yield from _table("last refusals", header, refusals)


_TRANSFER = ("id", "client", "operation", "bucket", "size", "so far", "per second", "age", "waits for", "worker", "key")


def _transfer(one: Transfer) -> Row:
    size = "-" if one.size is None else _bytes(one.size)
    amounts = size, _bytes(one.done), _bytes(one.rate), _seconds(one.age)
    return one.id, one.client, one.operation, one.bucket, *amounts, one.waits_for, one.worker, one.key


def _table(title: str, header: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table, whose last column may be of any width; none without rows."""
    if not rows:
        return
    texts = [header, *([printable(str(value)) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    yield from ("", f"{title}:")
    for row in texts:
        cells = [text.ljust(width) for text, width in zip(row[:-1], widths[:-1], strict=True)]
        yield "  ".join(["", *cells, row[-1]]).rstrip()


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 60
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
