"""What is seen, held against what is expected."""

from __future__ import annotations

from twisted_storaged.conformance.wire import Answer

#: Seconds after which a client that was refused may try again, as the contract has it.
RETRY_AFTER = "5"
#: Characters of a value that are shown.
_SHOWN = 90


class Unlike(Exception):
    """The server is unlike the contract; str() says in what."""


def expect(what: str, seen: object, expected: object) -> None:
    """Raise Unlike unless `seen` is `expected`."""
    if seen != expected:
        raise Unlike(f"{what}: {_shown(seen)}, not {_shown(expected)}")


def expect_line(what: str, answer: Answer, status: int, line: str) -> None:
    """Raise Unlike unless it is an error of this status and this one line of text/plain."""
    expect(what, (answer.status, answer.body), (status, line.encode() + b"\n"))
    content_type = answer.headers.get("content-type", "none").partition(";")[0]
    expect(f"{what}: Content-Type", content_type, "text/plain")


def expect_retry(what: str, answer: Answer, status: int, line: str) -> None:
    """The same, for an error that says when to try again. RFC 9110, 10.2.3."""
    expect_line(what, answer, status, line)
    expect(f"{what}: Retry-After", answer.headers.get("retry-after"), RETRY_AFTER)


def expect_whole(what: str, seen: bytes, expected: bytes) -> None:
    """Raise Unlike unless these bytes are those; they may be too many to show."""
    if seen == expected:
        return
    if len(seen) != len(expected):
        raise Unlike(f"{what}: {len(seen)} bytes, not {len(expected)}")
    first = next(at for at, (one, other) in enumerate(zip(seen, expected, strict=True)) if one != other)
    raise Unlike(f"{what}: {len(seen)} bytes, other ones from byte {first} on")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
