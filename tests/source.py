"""The source code of the package: what each module imports, and which private names of others it uses."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import twisted_storaged

ROOT = Path(twisted_storaged.__file__).parent
#: Names that begin with an underscore and are documented, in `collections.namedtuple` and `os`.
_DOCUMENTED = {"_asdict", "_exit", "_fields", "_make", "_replace"}


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of each module, by its full name."""
    files = ((file, file.relative_to(ROOT.parent).with_suffix("")) for file in sorted(ROOT.rglob("*.py")))
    return {".".join(path.parts).removesuffix(".__init__"): ast.parse(file.read_text("utf-8")) for file, path in files}


def imports(name: str) -> set[str]:
    """The full names of the modules that a module imports anywhere in it, also for type checking only."""
    found: set[str] = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{name} has a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            # A name from a whole package may be a module; one from a module of another package is taken not to be.
            found |= whole if "." not in node.module else {one if one in modules() else node.module for one in whole}
    return found


def private_names(name: str) -> set[str]:
    """The private names of others that a module uses.

    They are attributes of any object but `self` or `cls`, in `getattr` and the like too; attributes of `self` that a
    base class from elsewhere has, also where our class sets or overrides them; and what is imported.
    """
    found: set[str] = set()
    for node in ast.walk(modules()[name]):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=attribute):
                found.add(attribute)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"), args=[_, ast.Constant(value=text), *_]
            ):
                found.add(str(text))
            case ast.ImportFrom(module=str(module), names=aliases):
                found |= {*module.split("."), *(alias.name for alias in aliases)}
            case ast.Import(names=aliases):
                found |= {part for alias in aliases for part in alias.name.split(".")}
            case ast.ClassDef():
                found |= _inherited(getattr(import_module(name), node.name), node)
    return {one for one in found if _is_private(one)}


def _inherited(cls: type, body: ast.ClassDef) -> set[str]:
    """The names in a class body that a class of another package defines: a base class of it, or of a subclass."""
    if not isinstance(cls, type):  # an interface of zope
        return set()
    lines = [cls.__mro__, *(one.__mro__ for one in _subclasses(cls))]
    others = {base for line in lines for base in line if not base.__module__.startswith(twisted_storaged.__name__)}
    theirs = {name for base in others for name in {*vars(base), *_set_in(base)}}
    return theirs & {*_defined(body), *_of_self(body)}


def _subclasses(cls: type) -> Iterator[type]:
    """All direct and indirect subclasses of a class in the package."""
    for name in modules():
        import_module(name)
    subclasses: list[type] = cls.__subclasses__()
    for one in subclasses:
        yield one
        yield from _subclasses(one)


def _defined(body: ast.ClassDef) -> Iterator[str]:
    """The names of the methods and class attributes in the body of a class."""
    for statement in body.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name))


@cache
def _set_in(cls: type) -> set[str]:
    """The attributes that the methods of a class set."""
    try:
        body = ast.parse(dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # it is built in, or made at run time
        return set()
    return set(_of_self(body, ast.Store))


def _of_self(tree: ast.AST, context: type[ast.expr_context] = ast.expr_context) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=found) if isinstance(found, context):
                yield name


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _DOCUMENTED | {"_"}
