"""Draws the chart of the table: large and small objects, speed and cost, a colour for each peer.

compare.py draws it after each run; `python benchmarks/chart.py COMPARE.json CHART.png` draws it again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from report import number

COLOURS = {"storaged": "#1f6fb4", "nginx": "#8f8f8f", "rclone": "#e0a030", "boto3": "#8c6bb1"}
LABELS = {"nginx": "nginx (one HTTP hop: the ceiling)", "rclone": "rclone serve s3", "boto3": "boto3, no gateway"}

#: Title, figure, and the rows of each panel.
PANELS = (
    ("Large objects: GB/s (more is better)", "GB/s", ("put", "put-4", "get", "get-4")),
    ("CPU-seconds per GiB (less is better; log scale)", "CPU-s/GiB", ("put", "put-4", "get", "get-4")),
    (
        "Small objects: requests/s (more is better; log scale)",
        "requests/s",
        ("put-4k", "get-4k", "put-100k", "get-100k"),
    ),
    ("CPU µs per request (less is better; log scale)", "CPU µs", ("put-4k", "get-4k", "put-100k", "get-100k")),
)

Results = Sequence[Mapping[str, Any]]


def draw(results: Results, file: Path) -> None:
    """Draw all panels for which there are rows."""
    by_name = {row["name"]: row for row in results}
    panels = [(title, figure, [by_name[name] for name in names if name in by_name]) for title, figure, names in PANELS]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return
    columns = min(2, len(panels))
    lines = ceil(len(panels) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6.5 * columns, 4 * lines), squeeze=False)
    for panel, axis in zip(panels, axes.flat, strict=False):
        _panel(axis, *panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _panel(axis: Any, title: str, figure: str, rows: Results) -> None:
    peers = [peer for peer in COLOURS if any(peer in row["medians"][figure] for row in rows)]
    width = 0.84 / len(peers)
    for place, peer in enumerate(peers):
        values = [row["medians"][figure].get(peer, 0) for row in rows]
        middles = [group + (place - (len(peers) - 1) / 2) * width for group in range(len(rows))]
        bars = axis.bar(middles, values, width * 0.94, color=COLOURS[peer], label=LABELS.get(peer, peer))
        axis.bar_label(bars, [number(value) for value in values], fontsize=7, padding=1)
    axis.set_title(title, fontsize=11, loc="left")
    titles = [row["title"].removesuffix(", 16 connections").removesuffix(" at once") for row in rows]
    axis.set_xticks(range(len(rows)), titles, fontsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    # Request rates differ by orders of magnitude: on a linear scale, the small ones would look the same.
    axis.set_yscale("linear" if figure == "GB/s" else "log")
    axis.tick_params(which="both", left=False, labelleft=False, bottom=False)
    axis.margins(y=0.12)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text())["rows"], Path(sys.argv[2]))
