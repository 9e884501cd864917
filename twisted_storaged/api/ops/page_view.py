"""The status document as the page shows it: texts for its cells, numbers for its bars, and paths for its lines.

Both ways to the screen take it from here: the template, which the server fills at each GET, and page.js, which gets it
as an event each second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from msgspec import Struct

from twisted_storaged.api.responses import ERROR_RESPONSES
from twisted_storaged.errors import in_words
from twisted_storaged.status import INTERVAL, INTERVALS, BucketStatus, ProcessStatus, Refusal, Rule, Status, Transfer

#: Transfers that are shown; the number of the others is.
MOST_ROWS = 50

#: The columns of each table, by its id.
COLUMNS: Mapping[str, Sequence[str]] = {
    "transfers": ("Object", "Bucket", "Request", "Progress", "Rate", "Age", "Waits for", "Client"),
    "refusals": ("Object", "Request", "Answer", "Why", "When", "Client"),
    "buckets": ("Bucket", "Kind", "Health", "Checked"),
    "workers": ("Process", "State", "Up for", "Connections", "Requests", "Slots"),
    "policies": ("Keys that begin with", "Largest body", "Bucket", "Slots"),
}

#: What a table says that has no rows.
_EMPTY = {
    "transfers": "No object is being sent or received.",
    "refusals": "Nothing was refused lately.",
}

#: Errors in words, by their names.
_WORDS = {kind.__name__: in_words(kind) for kind in ERROR_RESPONSES if kind is not None}

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))

_SECONDS = INTERVAL * INTERVALS
#: The width and height of the chart: its lines have one unit for each second.
CHART_SIZE = _SECONDS, 100


class Cell(Struct, frozen=True, omit_defaults=True):
    """A text of the page.

    Attributes:
        tone: `good`, `warn`, `bad` or `quiet`; the text says the same in words.
        done: a bar beside the text, from 0 to 1.
        hint: what else is shown when it is pointed at.
        span: how many columns of its table it takes.
    """

    text: str
    tone: str = ""
    done: float | None = None
    hint: str = ""
    span: int = 1


Row = Sequence[Cell]


class View(Struct, frozen=True):
    """All that changes on the page.

    Attributes:
        cells: single texts, by the ids of their elements.
        tables: rows by the ids of their tables.
        lines: the paths of SVG, by the ids of their elements.
        token: lets this page change something.
    """

    cells: dict[str, Cell]
    tables: dict[str, list[Row]]
    lines: dict[str, str]
    token: str


def view(status: Status, token: str) -> View:
    """Make what the page shows of a status."""
    received, sent = _rates(status, "received"), _rates(status, "sent")
    top = _round_up(max(*received, *sent))
    cells = {
        "state": _state(status),
        "at": Cell(moment(status.at)),
        "slots": Cell(
            f"{status.slots_taken} of {status.slots}",
            "warn" if status.slots_taken >= status.slots else "",
            status.slots_taken / max(status.slots, 1),
        ),
        "requests": Cell(str(status.requests_under_way)),
        "connections": Cell(str(status.connections)),
        "receiving": Cell(rate(received[-1])),
        "sending": Cell(rate(sent[-1])),
        "chart-top": Cell(rate(top)),
        "chart-middle": Cell(rate(top / 2)),
        "chart-summary": Cell(
            f"Received: {rate(received[-1])} now, {rate(max(received))} at most. "
            f"Sent: {rate(sent[-1])} now, {rate(max(sent))} at most."
        ),
        "versions": Cell(" · ".join(f"{name} {version}" for name, version in status.versions.items())),
    }
    tables = {
        "transfers": _transfers(status.transfers),
        "refusals": [_refusal(one, status.at) for one in status.refusals],
        "buckets": [_bucket(one) for one in status.buckets],
        "workers": [_worker(one, status.at) for one in status.workers],
        "policies": [_rule(one) for one in status.policies],
    }
    for name, text in _EMPTY.items():
        tables[name] = tables[name] or [[Cell(text, "quiet", span=len(COLUMNS[name]))]]
    line = _path(received, top)
    lines = {
        "received-line": line,
        "received-area": f"{line}V{CHART_SIZE[1]}H0Z",
        "sent-line": _path(sent, top),
    }
    return View(cells, tables, lines, token)


def _state(status: Status) -> Cell:
    if status.workers and all(worker.draining for worker in status.workers):
        return Cell("Stops when requests under way have completed", "warn")
    silent = [bucket.name for bucket in status.buckets if not bucket.ready]
    if silent:
        return Cell(f"Does not answer: {', '.join(silent)}", "bad")
    return Cell("Serving", "good")


def _transfers(transfers: Sequence[Transfer]) -> list[Row]:
    # Who holds a slot is what a refused client wants to know.
    first = sorted(transfers, key=lambda one: (not one.holds_slot, -one.age))
    rows: list[Row] = [_transfer(one) for one in first[:MOST_ROWS]]
    if len(first) > MOST_ROWS:
        rows.append([Cell(f"and {len(first) - MOST_ROWS} more", "quiet", span=len(COLUMNS["transfers"]))])
    return rows


def _transfer(one: Transfer) -> Row:
    known = one.size is not None and one.size > 0
    return [
        Cell(shown(one.key), hint=f"request {one.id}"),
        Cell(one.bucket),
        Cell(f"{one.operation.upper()}, in a slot" if one.holds_slot else one.operation.upper()),
        Cell(
            size(one.done) if one.size is None else f"{size(one.done)} of {size(one.size)}",
            done=min(one.done / one.size, 1.0) if known and one.size else None,
        ),
        Cell(rate(one.rate), "warn" if one.holds_slot and not one.rate else ""),
        Cell(duration(one.age)),
        Cell(one.waits_for),
        Cell(one.client, hint=f"process {one.worker}"),
    ]


def _refusal(one: Refusal, now: float) -> Row:
    return [
        Cell(shown(one.key) or "no object", "" if one.key else "quiet", hint=f"request {one.id}"),
        Cell("none" if one.operation == "none" else one.operation.upper()),
        Cell("none" if one.status is None else str(one.status), "bad" if (one.status or 500) >= 500 else "warn"),
        Cell(_WORDS.get(one.reason, one.reason), hint=one.reason),
        Cell(f"{duration(max(now - one.at, 0))} ago", hint=moment(one.at)),
        Cell(one.client),
    ]


def _bucket(one: BucketStatus) -> Row:
    health = Cell("answers", "good") if one.ready else Cell(one.reason, "bad")
    return [Cell(one.name), Cell(one.kind), health, Cell(f"{duration(one.checked)} ago")]


def _worker(one: ProcessStatus, now: float) -> Row:
    return [
        Cell(str(one.pid)),
        Cell("stops", "warn") if one.draining else Cell("serves", "good"),
        Cell(duration(max(now - one.started, 0))),
        Cell(str(one.connections)),
        Cell(str(one.requests_under_way)),
        Cell(str(one.slots_taken)),
    ]


def _rule(one: Rule) -> Row:
    prefix = Cell(shown(one.prefix)) if one.prefix else Cell("anything else", "quiet")
    return [prefix, Cell(size(one.max_put)), Cell(one.bucket), Cell("all" if one.slots is None else str(one.slots))]


def shown(text: str) -> str:
    r"""A text with what cannot be seen, or changes the direction of what follows, as an escape such as \u202e."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def size(count: float) -> str:
    """A number of bytes with three digits, such as 1.25 MiB."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 999.5:
            break
        count, unit = count / 1024, larger
    if unit == "B" or count >= 100:
        return f"{count:.0f} {unit}"
    digits = f"{count:.{1 if count >= 10 else 2}f}"
    return f"{digits.rstrip('0').rstrip('.')} {unit}"


def rate(per_second: float) -> str:
    """A number of bytes per second."""
    return f"{size(per_second)}/s"


def duration(seconds: float) -> str:
    """A time in its two largest units, such as 2 min 5 s."""
    whole = int(seconds)
    for (large, name), (small, rest) in pairwise(_UNITS):
        if whole >= large:
            return f"{whole // large} {name} {whole % large // small} {rest}"
    return f"{whole} s"


def moment(seconds: float) -> str:
    """A time of the clock on the wall, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _rates(status: Status, name: str) -> list[float]:
    """Bytes per second in each interval of the last ten minutes, the latest last; the one that goes on is left out."""
    found = {one.at // INTERVAL: getattr(one, name) / INTERVAL for one in status.intervals}
    last = int(status.at) // INTERVAL
    return [found.get(number, 0.0) for number in range(last - INTERVALS, last)]


def _round_up(most: float) -> float:
    """The top of a chart: 1, 2 or 5, or ten or a hundred times that, in a unit of `size`; at least 1 KiB."""
    unit = 1024.0
    while True:
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500):
            if most <= step * unit:
                return step * unit
        unit *= 1024


def _path(values: Sequence[float], top: float) -> str:
    """The path of a line from the left to the right of the chart."""
    width, height = CHART_SIZE
    step = width / (len(values) - 1)
    return "M" + "L".join(f"{index * step:.0f},{height * (1 - value / top):.1f}" for index, value in enumerate(values))
