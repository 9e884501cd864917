"""The configuration: a TOML file and the command line, to frozen dataclasses. The file may be shared with others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from twisted_storaged.admission import DEFAULT_PUT_SLOTS
from twisted_storaged.buckets.local import LocalSettings
from twisted_storaged.buckets.s3conditions import CLAIMS
from twisted_storaged.buckets.s3settings import (
    DEFAULT_ABANDONED_AFTER,
    DEFAULT_DEADLINE,
    DEFAULT_REAP_INTERVAL,
    S3Settings,
    Upkeep,
)
from twisted_storaged.endpoints import DEFAULT_BIND, endpoint_description, is_local
from twisted_storaged.policy import PRIMARY, Policy, Rule
from twisted_storaged.secrets import Credentials, take_credentials
from twisted_storaged.tables import (
    ANY_TEXT,
    COUNT,
    FLAG,
    FLAG_OR_AUTO,
    NUMBER,
    SIZE,
    TEXT,
    ConfigError,
    Table,
    described,
    one_of,
    read_toml,
)

#: What stands for the file in errors about the command line.
COMMAND_LINE = Path("command line")


BucketSettings = S3Settings | LocalSettings


@dataclass(frozen=True)
class Config:
    """All that makeService goes by.

    Attributes:
        endpoint: the Twisted endpoint description to listen on.
        put_slots: how many PUTs may be under way at once.
        policy: rules by key prefix.
        buckets: settings by name; `primary` is always among them.
        upkeep: what holds for all buckets of S3.
    """

    endpoint: str
    put_slots: int
    policy: Policy
    buckets: Mapping[str, BucketSettings]
    upkeep: Upkeep


@dataclass(frozen=True)
class Overrides:
    """What the command line says, which goes before the file; None where it says nothing."""

    config: Path | None = None
    data: Path | None = None
    bind: str | None = None


def load_config(overrides: Overrides, secrets: Mapping[str, Credentials], environ: Mapping[str, str]) -> Config:
    """The configuration.

    Raises:
        ConfigError: what is wrong first, with its place.
    """
    file = overrides.config or COMMAND_LINE
    document = read_toml(overrides.config) if overrides.config else {}
    storaged = Table(document.get("storaged", {}), file, "[storaged]")
    put_slots = storaged.take("put_slots", COUNT, DEFAULT_PUT_SLOTS)
    endpoint = _endpoint(storaged, overrides.bind)
    upkeep = _upkeep(storaged, overrides.data or default_data(environ))
    storaged.done()
    buckets = _buckets(document, file, secrets)
    if PRIMARY not in buckets:
        buckets[PRIMARY] = LocalSettings(overrides.data or default_data(environ))
    elif overrides.data is not None:
        raise ConfigError(
            f"--data is {str(overrides.data)!r}: expected none, as {file} says where the primary bucket is"
        )
    return Config(endpoint, put_slots, _policy(document, file, buckets), buckets, upkeep)


def _upkeep(storaged: Table, data: Path) -> Upkeep:
    state = storaged.take("state", TEXT)
    return Upkeep(
        Path(state) if state else data,
        storaged.take("reap_interval", COUNT, DEFAULT_REAP_INTERVAL),
        storaged.take("s3_deadline", COUNT, DEFAULT_DEADLINE),
        storaged.take("abandoned_after", COUNT, DEFAULT_ABANDONED_AFTER),
    )


def default_data(environ: Mapping[str, str]) -> Path:
    """Where the embedded bucket is when nobody says: systemd's state directory, else the user's.

    See systemd.exec(5), StateDirectory=, and the XDG Base Directory Specification.
    """
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        return Path(state)
    data_home = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "~", ".local", "share")
    return Path(data_home).expanduser() / "storaged"


def _endpoint(storaged: Table, override: str | None) -> str:
    in_file = storaged.take("bind", TEXT)
    allow_network = storaged.take("allow_network", FLAG, False)
    bind = override or in_file or DEFAULT_BIND
    description = endpoint_description(bind)
    if not allow_network and not is_local(description):
        where = "--bind" if override else f"{storaged.file}: [storaged] bind"
        raise ConfigError(
            f"{where} is {bind!r}: expected a loopback address or a unix socket: there is no authentication, so that "
            "any other needs [storaged] allow_network = true"
        )
    return description


def _buckets(
    document: Mapping[str, object], file: Path, secrets: Mapping[str, Credentials]
) -> dict[str, BucketSettings]:
    tables = dict(Table(document.get("buckets", {}), file, "[buckets]").tables())
    if "s3" in document:
        if PRIMARY in tables:
            raise ConfigError(f"{file}: [s3] and [buckets.{PRIMARY}] are both there: expected one, they are the same")
        tables[PRIMARY] = Table(document["s3"], file, "[s3]")
    return {name: _bucket(table, secrets.get(name)) for name, table in tables.items()}


def _bucket(table: Table, secret: Credentials | None) -> BucketSettings:
    kind = table.take("kind", TEXT, "s3")
    if kind == "s3":
        settings: BucketSettings = _s3_bucket(table, secret)
    elif kind == "local":
        settings = LocalSettings(Path(table.need("path", TEXT)))
    else:
        raise table.error("kind", repr(kind), '"s3" or "local"')
    table.done()
    return settings


def _s3_bucket(table: Table, secret: Credentials | None) -> S3Settings:
    in_file = take_credentials(table)
    credentials = secret or in_file
    return S3Settings(
        bucket=table.need("bucket", TEXT),
        prefix=table.take("prefix", ANY_TEXT, ""),
        endpoint=_endpoint_url(table),
        region=table.take("region", TEXT),
        use_path_style=table.take("use_path_style", FLAG),
        access_key_id=credentials.access_key_id if credentials else None,
        secret_access_key=credentials.secret_access_key if credentials else None,
        conditional_writes=table.take("conditional_writes", one_of(*CLAIMS), "auto"),
        lists_in_order=table.take("lists_in_order", FLAG, True),
        get_resumes=table.take("get_resumes", NUMBER, 3),
        verify_reads=table.take("verify_reads", FLAG_OR_AUTO),
    )


def _endpoint_url(table: Table) -> str | None:
    url = table.take("endpoint", TEXT)
    if url is None:
        return None
    if "@" in url:
        # The endpoint is in log lines and in the upload journal; and what is before the @ is a password.
        raise table.error("endpoint", "not shown", "a URL without user and password: those are keys of their own")
    if not url.startswith(("http://", "https://")):
        raise table.error("endpoint", repr(url), "a URL that starts with http:// or https://")
    return url


def _policy(document: Mapping[str, object], file: Path, buckets: Mapping[str, BucketSettings]) -> Policy:
    entries = document.get("policy", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{file}: policy is {described(entries)}: expected [[policy]] sections")
    policy = Policy()
    rules: dict[str, Rule] = {}
    for entry in entries:
        rule = _rule(Table(entry, file, "[[policy]]"), policy, buckets)
        if rule.prefix in rules:
            raise ConfigError(f"{file}: [[policy]] prefix is {rule.prefix!r} twice: expected one section per prefix")
        rules[rule.prefix] = rule
    return Policy(rules.values())


def _rule(table: Table, policy: Policy, buckets: Mapping[str, BucketSettings]) -> Rule:
    """A rule; what a section does not say stays as it is by default."""
    prefix = table.take("prefix", ANY_TEXT)
    if prefix is None:
        raise table.error("prefix", "missing", ANY_TEXT.expected)
    default = policy.rule_for(prefix)
    bucket = table.take("bucket", TEXT, default.bucket)
    if bucket != PRIMARY and bucket not in buckets:
        raise table.error("bucket", repr(bucket), f"the name of a bucket: {', '.join(sorted({PRIMARY, *buckets}))}")
    rule = replace(default, prefix=prefix, max_put=table.take("max_put", SIZE, default.max_put), bucket=bucket)
    table.done()
    return rule
