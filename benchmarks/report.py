"""Makes the table from samples: medians, ratios and bars, as JSON and as Markdown that is readable as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from figures import FIGURES
from loads import Sample
from rows import Bar, Row

#: The samples of a row by peer, run for run.
Samples = Mapping[str, Sequence[Sample]]

PLACES = {
    "s3": "In front of S3",
    "far": "In front of S3 that gives each connection 80 MB/s and 30 ms to first byte",
    "embedded": "The embedded bucket, and the same disk without it",
    "tls-in": "TLS from clients (curl); no bar",
    "tls-out": "TLS to S3; no bar",
}


def result(row: Row, samples: Samples) -> dict[str, Any]:
    """The JSON document of a row."""
    medians = {figure: _medians(row, figure, samples) for figure in row.figures}
    bars = [bar for bar in row.bars if {"storaged", bar.peer or "storaged"} <= set(samples)]
    return {
        "name": row.name,
        "place": row.place,
        "title": row.title,
        "medians": medians,
        "bars": [_against(bar, medians[bar.figure]) for bar in bars],
        "samples": {peer: [asdict(sample) for sample in taken] for peer, taken in samples.items()},
    }


def markdown(results: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a table for each place. A cell is a median and, for a peer, the ratio of storaged's median to it."""
    results = list(results)
    for place, title in PLACES.items():
        rows = [row for row in results if row["place"] == place]
        if rows:
            yield from (f"### {title}", "", *_table(rows), "")
    bars = [bar for row in results for bar in row["bars"]]
    yield f"{sum(bar['reached'] for bar in bars)} of {len(bars)} bars reached."


def _medians(row: Row, figure: str, samples: Samples) -> dict[str, float]:
    medians = {}
    for peer, taken in samples.items():
        values = [FIGURES[figure].of(sample, row.loads[-1]) for sample in taken]
        if None not in values:
            medians[peer] = median(value for value in values if value is not None)
    return medians


def _against(bar: Bar, medians: Mapping[str, float]) -> dict[str, Any]:
    value = medians["storaged"]
    if bar.peer is not None:
        # CPU time is counted in ticks, so that a peer's may be 0.
        value /= max(medians[bar.peer], 1e-9)
    more = FIGURES[bar.figure].more_is_better
    reached = value >= bar.value if more else value <= bar.value
    return {"figure": bar.figure, "peer": bar.peer, "value": value, "bar": bar.value, "more": more, "reached": reached}


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    peers = list(dict.fromkeys(peer for row in rows for peer in row["samples"]))
    lines = [["", "figure", *peers]]
    lines += [_line(row, figure, peers) for row in rows for figure in row["medians"]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"


def _line(row: Mapping[str, Any], figure: str, peers: Sequence[str]) -> list[str]:
    title = row["title"] if figure == next(iter(row["medians"])) else ""
    return [title, figure, *(_cell(row, figure, peer) for peer in peers)]


def _cell(row: Mapping[str, Any], figure: str, peer: str) -> str:
    medians = row["medians"][figure]
    if peer not in medians:
        return ""
    about = peer if peer != "storaged" else None
    texts = [_verdict(bar) for bar in row["bars"] if (bar["figure"], bar["peer"]) == (figure, about)]
    if about and not texts and medians[peer] and "storaged" in medians:
        texts = [f"({number(medians['storaged'] / medians[peer])})"]
    return " ".join([number(medians[peer]), *texts])


def _verdict(bar: Mapping[str, Any]) -> str:
    value = f"{number(bar['value'])} " if bar["peer"] else ""
    return f"({value}{'≥' if bar['more'] else '≤'} {number(bar['bar'])} {'✓' if bar['reached'] else '✗'})"


def number(value: float) -> str:
    """A number with as many digits as are significant."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"
