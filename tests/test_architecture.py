"""Imports between modules go down the floors only and in no circle; foreign packages are used in their places only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

import pytest

from tests import source

#: From the lowest floor. A part is a module or folder of this name, which may import from itself and from lower floors.
FLOORS = (
    "errors",
    "model runtime",
    "interfaces protocol listening status",
    "preparation",
    "admission buckets routing server",
    "readiness reports",
    "under_way",
    "api",
    "config_file",
    "config",
    "check status_table",
    "service supervisor",
    "client conformance tap",
    "__main__",
    "worker",
)
FLOOR_OF = {"": -1} | {part: floor for floor, parts in enumerate(FLOORS) for part in parts.split()}
MAY_IMPORT_WEB = ("server", "api", "service", "client", "conformance")


def test_imports() -> None:
    """No import goes sideways or up, or in a circle, and foreign packages are used in their places only."""
    assert {violation for name in source.modules() for violation in _violations(name)} == set()


def test_floors() -> None:
    """Each module has a floor."""
    assert {_part(name) for name in source.modules()} == set(FLOOR_OF)


def test_violations_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of violation is found, also in a function, or in an import for type checking only."""
    code = """
from twisted import web
from twisted_storaged import errors, model
from twisted_storaged.runtime import example
if TYPE_CHECKING:
    from twisted_storaged.runtime import a
def later():
    import botocore.config
"""
    for name, text in {"example": code, "a": "from twisted_storaged.runtime.example import later"}.items():
        monkeypatch.setitem(source.modules(), f"twisted_storaged.runtime.{name}", ast.parse(text))
    monkeypatch.setitem(source.modules(), "twisted_storaged.model.example", ast.parse("transport._buffer"))
    assert sorted(_violations("twisted_storaged.runtime.example")) == [
        "runtime.example imports botocore.config",
        "runtime.example imports model, which is not below",
        "runtime.example imports runtime.a, in a circle",
        "runtime.example imports runtime.example, in a circle",
        "runtime.example imports twisted.web",
    ]
    assert list(_violations("twisted_storaged.model.example")) == ["model.example uses _buffer"]


def _violations(name: str) -> Iterator[str]:
    part, short = _part(name), _short(name)
    for target in source.imports(name):
        if target.startswith("twisted.web") and part not in MAY_IMPORT_WEB:
            yield f"{short} imports {target}"
        if target.startswith(("boto3", "botocore")) and short != "buckets.s3.session":
            yield f"{short} imports {target}"
        if target in source.modules():
            if _part(target) != part and FLOOR_OF[_part(target)] >= FLOOR_OF[part]:
                yield f"{short} imports {_short(target)}, which is not below"
            elif name in _reachable(target):
                yield f"{short} imports {_short(target)}, in a circle"
    if part != "runtime":
        yield from (f"{short} uses {private}" for private in source.private_names(name))


def _short(name: str) -> str:
    return name.removeprefix("twisted_storaged").removeprefix(".")


def _part(name: str) -> str:
    return _short(name).split(".")[0]


@cache
def _reachable(name: str) -> frozenset[str]:
    """A module and all modules that it imports, directly or indirectly."""
    found, left = {name}, [name]
    while left:
        new = {target for target in source.imports(left.pop()) if target in source.modules()} - found
        found |= new
        left += new
    return frozenset(found)
