"""How the page words the status."""

from __future__ import annotations

import pytest
from msgspec.json import decode, encode

from tests.api.ops.pages import HOSTILE, NOW, refusal, status, transfer
from twisted_storaged.api.ops.page_view import (
    CHART_SIZE,
    COLUMNS,
    MOST_ROWS,
    View,
    duration,
    rate,
    shown,
    size,
    view,
)
from twisted_storaged.status import INTERVAL, INTERVALS, BucketStatus, Interval, ProcessStatus


def texts(found: View, table: str) -> list[list[str]]:
    """The texts of a table."""
    return [[cell.text for cell in row] for row in found.tables[table]]


def points(path: str) -> list[tuple[float, float]]:
    """The points of a path."""
    return [(float(x), float(y)) for x, y in (one.split(",") for one in path[1:].split("L"))]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1 KiB"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 << 10, "10 KiB"),
        (100 << 10, "100 KiB"),
        (1 << 20, "1 MiB"),
        (12.34 * (1 << 20), "12.3 MiB"),
        (700 << 20, "700 MiB"),
        (4 << 30, "4 GiB"),
        (3 << 40, "3 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    """Sizes have three digits."""
    assert size(count) == text
    assert rate(count) == f"{text}/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (3 * 86_400 + 7300, "3 d 2 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Times have two units."""
    assert duration(seconds) == text


def test_what_cannot_be_seen() -> None:
    """Control characters and changes of direction become escapes; all else stays."""
    assert shown("aü 日本") == "aü 日本"
    assert shown("a\n\x1b[31m\u202e\ud800") == "a\\n\\x1b[31m\\u202e\\ud800"
    assert shown(HOSTILE).isprintable()


def test_transfers() -> None:
    """Those that hold slots come first, then the oldest; of very many, the number of the others is shown."""
    many = [transfer(key=str(number), holds_slot=False, age=float(number)) for number in range(MOST_ROWS + 10)]
    found = view(status(transfers=[*many, transfer(key="slot", age=0.0)]), "")
    rows = texts(found, "transfers")
    assert [row[0] for row in rows[:3]] == ["slot", str(MOST_ROWS + 9), str(MOST_ROWS + 8)]
    assert rows[-1] == ["and 11 more"]
    assert len(rows) == MOST_ROWS + 1


@pytest.mark.parametrize(
    ("length", "done", "text", "bar"),
    [
        (None, 1024, "1 KiB", None),
        (4096, 1024, "1 KiB of 4 KiB", 0.25),
        (0, 0, "0 B of 0 B", None),
        (1, 2, "2 B of 1 B", 1.0),
    ],
)
def test_progress(length: int | None, done: int, text: str, bar: float | None) -> None:
    """A bar shows how much of a known size has passed."""
    (row,) = view(status(transfers=[transfer(size=length, done=done)]), "").tables["transfers"]
    assert (row[3].text, row[3].done) == (text, bar)


def test_a_slot_without_progress() -> None:
    """A transfer that holds a slot and does not go on is marked."""
    tones = [
        view(status(transfers=[transfer(rate=speed, holds_slot=holds)]), "").tables["transfers"][0][4].tone
        for speed, holds in [(0.0, True), (1.0, True), (0.0, False)]
    ]
    assert tones == ["warn", "", ""]


def test_refusals() -> None:
    """They say why in words, or by the name of an error that has none."""
    reasons = ["NoFreeSlot", "PayloadTooLarge", "BucketUnreachable", "ValueError", "storaged stops", "InvalidKey"]
    found = view(status(refusals=[refusal(reason=reason) for reason in reasons]), "")
    assert [row[3] for row in texts(found, "refusals")] == [
        "no free slot",
        "payload too large",
        "bucket unreachable",
        "ValueError",
        "storaged stops",
        "invalid key",
    ]
    (row,) = texts(view(status(refusals=[refusal(status=None, at=NOW + 5)]), ""), "refusals")
    assert (row[2], row[4]) == ("none", "0 s ago")
    (row,) = texts(view(status(refusals=[refusal(key="", operation="none", status=400)]), ""), "refusals")
    assert row[:3] == ["no object", "none", "400"]


def test_empty() -> None:
    """A table without rows says so, over all its columns."""
    found = view(status(transfers=[], refusals=[]), "")
    for table in ("transfers", "refusals"):
        ((cell,),) = found.tables[table]
        assert (cell.tone, cell.span) == ("quiet", len(COLUMNS[table]))


def test_state() -> None:
    """The state says first that the daemon stops, then which buckets do not answer."""
    silent = [BucketStatus(name, "s3", False, "bucket timed out", 9.0) for name in ("b", "c")]
    stops = [ProcessStatus(7, NOW, True, 0, 0, 0, [], [], [])]
    states = [view(one, "").cells["state"] for one in (status(), status(buckets=silent), status(workers=stops))]
    assert [(one.text, one.tone) for one in states] == [
        ("Serving", "good"),
        ("Does not answer: b, c", "bad"),
        ("Stops when requests under way have completed", "warn"),
    ]
    found = view(status(buckets=silent, workers=stops), "")
    assert texts(found, "buckets")[0] == ["b", "s3", "bucket timed out", "9 s ago"]
    assert texts(found, "workers")[0][1] == "stops"


def test_lines() -> None:
    """Both lines have a point for each interval of the last ten minutes; the one that goes on is left out."""
    last = int(NOW) // INTERVAL * INTERVAL
    intervals = [
        Interval(last - INTERVAL * (INTERVALS + 1), 1 << 40, 0),
        Interval(last - INTERVAL * INTERVALS, 5 << 20, 0),
        Interval(last - INTERVAL, 10 << 20, 5 << 20),
        Interval(last, 1 << 40, 1 << 40),
    ]
    found = view(status(intervals=intervals), "")
    received, sent = (points(found.lines[name]) for name in ("received-line", "sent-line"))
    width, height = CHART_SIZE
    assert len(received) == len(sent) == INTERVALS
    assert (received[0], received[1], received[-1]) == ((0, height / 2), (5, height), (width, 0))
    assert sent[-1] == (width, height / 2)
    assert found.lines["received-area"] == f"{found.lines['received-line']}V100H0Z"
    assert [found.cells[name].text for name in ("chart-top", "chart-middle")] == ["2 MiB/s", "1 MiB/s"]
    summary = "Received: 2 MiB/s now, 2 MiB/s at most. Sent: 1 MiB/s now, 1 MiB/s at most."
    assert found.cells["chart-summary"].text == summary


def test_an_idle_daemon() -> None:
    """Without any traffic, the lines lie at 0."""
    found = view(status(intervals=[]), "")
    assert {y for _, y in points(found.lines["sent-line"])} == {CHART_SIZE[1]}
    assert found.cells["chart-top"].text == "1 KiB/s"


def test_is_small() -> None:
    """An event with as many transfers as are shown is small, and is what page.js expects."""
    found = view(status(transfers=[transfer(key="k" * 100) for _ in range(5000)]), "token")
    event = encode(found)
    assert len(event) < 40_000
    assert decode(event)["cells"]["requests"] == {"text": "2"}
