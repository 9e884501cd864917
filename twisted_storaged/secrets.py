"""The secrets file: credentials by bucket, kept apart from the configuration so that only the daemon can read them."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twisted_storaged.policy import PRIMARY
from twisted_storaged.tables import TEXT, ConfigError, Table, read_toml

DEFAULT_SECRETS = Path("/etc/lakehouse/secrets-go.toml")


@dataclass(frozen=True)
class Credentials:
    """An access key and its secret."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


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
    document = read_toml(path)
    found = dict(Table(document.get("buckets", {}), path, "[buckets]", secret=True).tables())
    if "s3" in document:
        found[PRIMARY] = Table(document["s3"], path, "[s3]", secret=True)
    return {name: _credentials(table) for name, table in found.items()}


def take_credentials(table: Table) -> Credentials | None:
    """The credentials that a section gives, if it does. Raises ConfigError when it gives one half."""
    access_key_id = table.take("access_key_id", TEXT)
    secret_access_key = table.take("secret_access_key", TEXT)
    if access_key_id is None and secret_access_key is None:
        return None
    if access_key_id is None:
        raise table.error("access_key_id", "missing", "it beside secret_access_key")
    if secret_access_key is None:
        raise table.error("secret_access_key", "missing", "it beside access_key_id")
    return Credentials(access_key_id, secret_access_key)


def _credentials(table: Table) -> Credentials:
    credentials = take_credentials(table)
    table.done()
    if credentials is None:
        raise table.error("access_key_id", "missing", TEXT.expected)
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
