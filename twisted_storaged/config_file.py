"""Reads TOML into typed settings: frozen `msgspec.Struct`s, one for each section, one field for each key.

An error names the file, the section, the key, what stood there and what was expected, and never shows a credential,
wherever in the file it was put. Which sections and keys the configuration has is defined in `config`; those of the
secrets file are defined here.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import msgspec
import tomli
from msgspec import Meta, Struct, inspect
from msgspec.structs import FieldInfo, fields

from twisted_storaged.errors import StartError
from twisted_storaged.routing import PRIMARY

#: The path that the Go daemon reads.
DEFAULT_SECRETS = Path("/etc/lakehouse/secrets-go.toml")

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]+)\s*([KMGT]iB|B)")
_TIME_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"([0-9]{1,9})\s*(s|min|h|d)")

#: What an access key or its secret looks like in any engine: a long run of the characters of base64, with a digit.
CREDENTIAL = re.compile(r"(?=[A-Za-z+/=]*\d)[A-Za-z0-9+/=]{16,}")
_CREDENTIAL_NAME = re.compile("access_?key|secret|passw|token", re.IGNORECASE)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN_WORDS = re.compile(r"[a-z_]{1,30}")

_S = TypeVar("_S", bound=Struct)


class ConfigError(StartError):
    """The command line, the configuration file or the secrets file is invalid."""


class Size(int):
    """A number of bytes, written as an integer or with a binary unit (IEC 80000-13): "256 MiB"."""

    expected: ClassVar = 'a size such as "256 MiB" (units: B, KiB, MiB, GiB, TiB), or a non-negative integer'

    @classmethod
    def parse(cls, written: object) -> Size:
        """The size that stands in a file. Raises ValueError."""
        if isinstance(written, str) and (match := _SIZE.fullmatch(written.strip())):
            return cls(int(match[1]) * UNITS[match[2]])
        # In Python, True is an integer.
        if isinstance(written, bool) or not isinstance(written, int) or written < 0:
            raise ValueError
        return cls(written)


class Duration(int):
    """A time in whole seconds, written as an integer or with a unit: "30 s"."""

    expected: ClassVar = 'a time such as "30 s" (units: s, min, h, d), or a positive integer'

    @classmethod
    def parse(cls, written: object) -> Duration:
        """The time that stands in a file. Raises ValueError."""
        if isinstance(written, str) and (match := _TIME.fullmatch(written.strip())):
            written = int(match[1]) * _TIME_UNITS[match[2]]
        # In Python, True is an integer.
        if isinstance(written, bool) or not isinstance(written, int) or written < 1:
            raise ValueError
        return cls(written)


class Credential(str):
    """An access key or its secret; repr() does not show it."""

    expected: ClassVar = "a non-empty string"

    def __repr__(self) -> str:
        return "(not shown)"

    @classmethod
    def parse(cls, written: object) -> Credential:
        """The credential that stands in a file. Raises ValueError."""
        if not isinstance(written, str) or not written:
            raise ValueError
        return cls(written)


# The types of keys. Errors say in the words of `expected` what a key may be.
Text = Annotated[str, Meta(min_length=1, extra={"expected": "a non-empty string"})]
FilePath = Annotated[str, Meta(pattern=r"\A[^\0]+\Z", extra={"expected": "a non-empty path"})]
Positive = Annotated[int, Meta(ge=1, extra={"expected": "a positive integer"})]
NonNegative = Annotated[int, Meta(ge=0, extra={"expected": "a non-negative integer"})]
Seconds = Annotated[Duration, Meta(extra={"unit": "seconds"})]

#: The words for types that need no constraint; TOML has no null.
_PLAIN_TYPES: Mapping[type[inspect.Type], list[str]] = {
    inspect.BoolType: ["true", "false"],
    inspect.StrType: ["a string"],
    inspect.NoneType: [],
}


AccessKeyId = Annotated[
    Credential | None,
    Meta(description="Access key of the bucket; better kept in the secrets file, which takes precedence."),
    Meta(extra={"unset": "boto3's credential chain"}),
]
SecretAccessKey = Annotated[
    Credential | None,
    Meta(description="Secret of the access key; better kept in the secrets file, which takes precedence."),
    Meta(extra={"unset": "boto3's credential chain"}),
]


class SecretsSection(Struct, frozen=True, kw_only=True):
    """A section of the secrets file."""

    access_key_id: AccessKeyId = None
    secret_access_key: SecretAccessKey = None


@dataclass(frozen=True)
class Credentials:
    """An access key and its secret."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


class Section:
    """One table of a file."""

    def __init__(self, values: object, file: Path, name: str, *, confidential: bool = False) -> None:
        """The table `name`, brackets included; if `confidential`, errors show none of its values.

        Raises:
            ConfigError: `values` is not a table.
        """
        self.file = file
        self.name = name
        self.confidential = confidential
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: {name} is {self._shown(values, strings=False)}: expected a table")
        self.values: Mapping[str, Any] = values

    def read(self, definition: type[_S]) -> _S:
        """The section as settings of this type.

        Raises:
            ConfigError: a key is unknown, has a value of another type, or is missing; reported in this order.
        """
        known = {info.name: info for info in fields(definition)}
        # First, since a misspelt key would else be reported as one that is missing.
        for key in self.values:
            if key not in known:
                raise ConfigError(
                    f"{self.file}: {self.name} has an unknown key {self._shown_key(key, known)}: "
                    f"expected {_alternatives(list(known))}"
                )
        values = {key: self._converted(known[key]) for key in self.values}
        for key, info in known.items():
            if info.required and key not in values:
                raise self.error(key, "missing", expected(info))
        return definition(**values)

    def read_key(self, definition: type[Struct], key: str) -> Any:
        """The value of one key that has a default, before the others are looked at. Raises ConfigError."""
        info = next(info for info in fields(definition) if info.name == key)
        return self._converted(info) if key in self.values else info.default

    def sections(self) -> Iterator[tuple[str, Section]]:
        """Every value of this section as a section of its own, with its name. Raises ConfigError."""
        for key, value in self.values.items():
            name = f"{self.name[:-1]}.{shown_name(key)}]"
            # A credential stands here where the header that names its section was forgotten.
            stray = _CREDENTIAL_NAME.search(key) is not None
            yield key, Section(value, self.file, name, confidential=self.confidential or stray)

    def credentials(self, access_key_id: AccessKeyId, secret_access_key: SecretAccessKey) -> Credentials | None:
        """The credentials that this section has, if it has both halves or none. Raises ConfigError."""
        if access_key_id is None and secret_access_key is None:
            return None
        if access_key_id is None:
            raise self.error("access_key_id", "missing", "it beside secret_access_key")
        if secret_access_key is None:
            raise self.error("secret_access_key", "missing", "it beside access_key_id")
        return Credentials(access_key_id, secret_access_key)

    def refused(self, key: str, value: object, expectation: str) -> ConfigError:
        """An error about the value of a key."""
        return self.error(key, self._shown(value), expectation)

    def error(self, key: str, found: str, expectation: str) -> ConfigError:
        """An error about a key: `found` is what is wrong with it, in words."""
        return ConfigError(f"{self.file}: {self.name} {key} is {found}: expected {expectation}")

    def _converted(self, info: FieldInfo) -> Any:
        value = self.values[info.name]
        try:
            return msgspec.convert(value, info.type, dec_hook=_parse_custom)
        except msgspec.ValidationError:
            pass
        # Not inside the handler, and without its message: that one repeats the value.
        found = "not shown" if _CREDENTIAL_NAME.search(info.name) else self._shown(value)
        raise self.error(info.name, found, expected(info))

    def _shown(self, value: object, *, strings: bool = True) -> str:
        return "not shown" if self.confidential else shown_value(value, strings=strings)

    def _shown_key(self, key: str, known: Iterable[str]) -> str:
        """The name of an unknown key, unless it may be a credential itself."""
        if _letters(key) in map(_letters, known):
            return repr(key)
        if self.confidential and not _PLAIN_WORDS.fullmatch(key):
            return "(not shown)"
        shown = shown_value(key)
        return "(not shown)" if shown == "not shown" else shown


def _letters(key: str) -> str:
    """A key without what a misspelling changes most: case, underscores and hyphens."""
    return re.sub("[_-]", "", key).lower()


def shown_name(name: str) -> str:
    """A name as TOML has it in the header of a table, unless it may be a credential."""
    return name if _BARE_KEY.fullmatch(name) and not CREDENTIAL.search(name) else shown_value(name)


def may_hold_credential(text: str) -> bool:
    """Whether a text is too much like a credential to be shown."""
    # What stands before an @ in a URL is, or ends in, a password.
    return "@" in text or CREDENTIAL.search(text) is not None


def shown_value(value: object, *, strings: bool = True) -> str:
    """A value as an error may repeat it: strings (unless told otherwise), numbers and flags that cannot be, or hold,
    a credential; of all else only the type."""
    # Python refuses to write integers of more than 4300 digits in decimal.
    if isinstance(value, int) and value.bit_length() > 64:
        return "a large integer"
    if isinstance(value, bool | int | float) or (strings and isinstance(value, str)):
        shown = repr(value) if isinstance(value, str) else str(value).lower()
        return "not shown" if may_hold_credential(shown) else shown
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "an array"
    return "a table" if isinstance(value, dict) else "a date or time"


def read_toml(path: Path, *, confidential: bool = False) -> dict[str, Any]:
    """A TOML file. If it is `confidential`, an error says where it is not TOML, but nothing of what stands there.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomli.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except tomli.TOMLDecodeError as error:
        place = f"at line {error.lineno}, column {error.colno}"
        # Some messages name a key.
        problem = place if confidential or CREDENTIAL.search(error.msg) else f"{error.msg} ({place})"
    except (ValueError, RecursionError) as error:
        # Bytes that are not UTF-8, an integer of thousands of digits, nesting without end.
        problem = str(error)
    # Not inside a handler: tomli's error, which would be the context of this one, holds the text of the file.
    raise ConfigError(f"{path}: is not TOML: {problem}")


def read_secrets(path: Path | None) -> Mapping[str, Credentials]:
    """The credentials in a secrets file, by bucket name; without a `path`, in the default file if it exists.

    `[s3]` is for the primary bucket, `[buckets.NAME]` for the others; further sections belong to other services.

    Raises:
        ConfigError: it does not exist though it was named, it cannot be read, others can read it, or it is malformed.
    """
    if path is None and not _is_there(DEFAULT_SECRETS):
        return {}
    if path is not None and not _is_there(path):
        raise ConfigError(f"{path}: does not exist: expected the secrets file that --secrets names")
    path = path or DEFAULT_SECRETS
    document = read_toml(path, confidential=True)
    found = dict(Section(document.get("buckets", {}), path, "[buckets]", confidential=True).sections())
    if "s3" in document:
        found[PRIMARY] = Section(document["s3"], path, "[s3]", confidential=True)
    return {name: _needed_credentials(section) for name, section in found.items()}


def _needed_credentials(section: Section) -> Credentials:
    keys = section.read(SecretsSection)
    credentials = section.credentials(keys.access_key_id, keys.secret_access_key)
    if credentials is None:
        raise section.error("access_key_id", "missing", Credential.expected)
    return credentials


def _is_there(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if mode & stat.S_IRWXO:
        raise ConfigError(f"{path}: its mode is {stat.S_IMODE(mode):04o}: expected no access for others (chmod o-rwx)")
    return True


class Key(NamedTuple):
    """The description of a key, for errors and for the reference table."""

    name: str
    #: What it may be, in words.
    values: str
    unit: str
    #: As TOML if `has_default`; else in words.
    default: str
    has_default: bool
    explanation: str


def describe(definition: type[Struct]) -> list[Key]:
    """The keys of a section, in the order of their definition."""
    return [_key(info) for info in fields(definition)]


def expected(info: FieldInfo) -> str:
    """What a key may be, in words, with its unit."""
    key = _key(info)
    return f"{key.values} ({key.unit})" if key.unit else key.values


def _key(info: FieldInfo) -> Key:
    kind = inspect.type_info(info.type)
    assert isinstance(kind, inspect.Metadata)
    assert kind.extra_json_schema, f"{info.name} has no description"
    extra = kind.extra or {}
    has_default = not info.required and info.default is not None
    default = (
        msgspec.json.encode(info.default, enc_hook=int).decode() if has_default else extra.get("unset", "required")
    )
    return Key(
        name=info.name,
        values=_alternatives(_values(kind)),
        unit=extra.get("unit", ""),
        default=default,
        has_default=has_default,
        explanation=kind.extra_json_schema["description"],
    )


def _values(kind: inspect.Type) -> list[str]:
    """What a type allows, in words: one entry for each alternative."""
    match kind:
        case inspect.Metadata():
            words = (kind.extra or {}).get("expected")
            return [words] if words else _values(kind.type)
        case inspect.UnionType():
            return [words for one in kind.types for words in _values(one)]
        case inspect.CustomType():
            custom: Any = kind.cls
            return [custom.expected]
        case inspect.LiteralType():
            return [f'"{word}"' for word in kind.values]
    return _PLAIN_TYPES[type(kind)]


def _alternatives(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _parse_custom(custom: Any, written: object) -> Any:
    return custom.parse(written)
