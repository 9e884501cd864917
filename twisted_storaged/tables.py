"""Reading TOML so that every error says where it is: file, section, key, what stood there, what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import tomli

from twisted_storaged.errors import StartError

_T = TypeVar("_T")
_D = TypeVar("_D")

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]iB|B)")


class ConfigError(StartError):
    """A file of the operator's says something that storaged cannot go by."""


@dataclass(frozen=True)
class Kind(Generic[_T]):
    """What a value may be: `read` gives it or raises ValueError, `expected` says so in words."""

    read: Callable[[object], _T]
    expected: str


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _any_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _flag_or_auto(value: object) -> bool | None:
    return None if value == "auto" else _flag(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError
    return value


def _size(value: object) -> int:
    """Bytes; see IEC 80000-13 for the units."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(match[1]) * _UNITS[match[2]]
    return _number(value)


def one_of(*words: str) -> Kind[str]:
    """One of these words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    return Kind(read, " or ".join(f'"{word}"' for word in words))


TEXT = Kind(_text, "a text that is not empty")
ANY_TEXT = Kind(_any_text, "a text")
FLAG = Kind(_flag, "true or false")
FLAG_OR_AUTO = Kind(_flag_or_auto, '"auto", true or false')
COUNT = Kind(_count, "a whole number of at least 1")
NUMBER = Kind(_number, "a whole number, or 0")
SIZE = Kind(_size, 'a size such as "256 MiB", or a whole number of bytes')


class Table:
    """One section of a file. What nobody took is an error in the end: see `done`."""

    def __init__(self, values: object, file: Path, section: str, *, secret: bool = False) -> None:
        """With `secret`, no value of it is ever shown. Raises ConfigError when `values` is not a table."""
        self.file = file
        self.section = section
        self._secret = secret
        if not isinstance(values, dict):
            stood = "not shown" if secret else described(values)
            raise ConfigError(f"{file}: {section} is {stood}: expected a table")
        self._values: dict[str, Any] = dict(values)

    @overload
    def take(self, key: str, kind: Kind[_T]) -> _T | None: ...
    @overload
    def take(self, key: str, kind: Kind[_T], default: _D) -> _T | _D: ...
    def take(self, key: str, kind: Kind[_T], default: Any = None) -> Any:
        """The value of a key, or `default` where there is none. Raises ConfigError when it is not of its kind."""
        if key not in self._values:
            return default
        value = self._values.pop(key)
        try:
            return kind.read(value)
        except ValueError:
            raise self.error(key, self._shown(key, value), kind.expected) from None

    def need(self, key: str, kind: Kind[_T]) -> _T:
        """The value of a key that must be there. Raises ConfigError."""
        if key not in self._values:
            raise self.error(key, "missing", kind.expected)
        value = self.take(key, kind)
        assert value is not None
        return value

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Every value as a table of its own, with its name."""
        for name, value in self._values.items():
            yield name, Table(value, self.file, f"{self.section[:-1]}.{name}]", secret=self._secret)

    def _shown(self, key: str, value: object) -> str:
        """A value as an error may show it: a string is repeated only where no credential is expected."""
        if self._secret or "secret" in key or "access_key" in key:
            return "not shown"
        return repr(value) if isinstance(value, str) else described(value)

    def error(self, key: str, stood: str, expected: str) -> ConfigError:
        """An error about a key of this table."""
        return ConfigError(f"{self.file}: {self.section} {key} is {stood}: expected {expected}")

    def done(self) -> None:
        """Everything known was taken. Raises ConfigError when there is something else."""
        for key in self._values:
            raise ConfigError(f"{self.file}: {self.section} has an unknown key {key!r}")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomli.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        # Without a cause: tomli's error has the whole text of the file in it, and with it any secret.
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def described(value: object) -> str:
    """What stood where something else was expected: a number or flag as it is, of all else only the type.

    A string, an array or a table in a wrong place may be, or hold, a secret.
    """
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "an array"
    return "a table" if isinstance(value, dict) else "a date or time"
