"""The files of the page: colours that can be read, and a script that makes no HTML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import twisted_storaged.api.ops
from tests.api.ops.pages import status
from twisted_storaged.api.ops.page_view import COLUMNS, view

FOLDER = Path(twisted_storaged.api.ops.__file__).parent
CSS = (FOLDER / "page.css").read_text("utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in CSS.split("@media (prefers-color-scheme: dark)")
)


def luminance(color: str) -> float:
    """The relative luminance of a colour: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance ."""
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours."""
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(colors: dict[str, str]) -> None:
    """Texts have a contrast of at least 4.5, and what else has a meaning, of at least 3."""
    texts = [(text, back) for text in ("text", "quiet", "link", "good", "warn", "bad") for back in ("page", "card")]
    texts += [("on-link", "link"), ("on-link", "bad")]
    low = {pair for pair in texts if contrast(colors[pair[0]], colors[pair[1]]) < 4.5}
    assert low == set()
    assert {line for line in ("received", "sent") if contrast(colors[line], colors["card"]) < 3} == set()
    assert contrast(colors["received"], colors["track"]) >= 3


def test_colors_are_variables() -> None:
    """Each colour is defined once, for light and for dark."""
    assert {*LIGHT} == {*DARK}
    rules = re.sub(r":root \{.*?\}", "", CSS, flags=re.DOTALL)
    assert re.findall(r"#[0-9a-f]{3,8}\b|\brgb|\bhsl", rules) == []


def test_nothing_is_loaded_by_style() -> None:
    """The style refers to no file."""
    assert re.findall(r"url\(|@import|@font-face", CSS) == []


def test_script_makes_texts_only() -> None:
    """The script never makes HTML, code or styles of what it gets."""
    script = (FOLDER / "page.js").read_text("utf-8")
    found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|\bFunction\(", script)
    assert found == []


def test_template_has_all() -> None:
    """The template has an element for each text, table and line of the view, and no others."""
    template = (FOLDER / "page.html").read_text("utf-8")
    found = view(status(), "")
    for names, render in ((found.cells, "cell"), (found.tables, "table"), (found.lines, "line")):
        tags = re.findall(rf"<[^>]*t:render=\"{render}\"[^>]*>", template)
        assert sorted(name for tag in tags for name in re.findall(r" id=\"([^\"]*)\"", tag)) == sorted(names)
    assert {*found.tables} == {*COLUMNS}
