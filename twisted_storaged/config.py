"""The configuration: each key there is, defined once; and how the file and the command line become settings.

`python -m twisted_storaged.config` prints the reference of all keys, as Markdown. How a file is read, and the secrets
file, are in `config_file`. The configuration file may be shared: sections that are not defined here are left alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from twisted_storaged.admission import DEFAULT_PUT_SLOTS, DEFAULT_RETRY_AFTER
from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.s3.session import (
    DEFAULT_ABANDONED_AFTER,
    DEFAULT_DEADLINE,
    DEFAULT_REAP_INTERVAL,
    ConditionalWrites,
    S3Settings,
    Upkeep,
)
from twisted_storaged.config_file import (
    AccessKeyId,
    ConfigError,
    Credentials,
    Duration,
    FilePath,
    NonNegative,
    Positive,
    Seconds,
    SecretAccessKey,
    Section,
    Size,
    Text,
    describe,
    read_toml,
    shown_name,
    shown_value,
)
from twisted_storaged.routing import DEFAULT_MAX_PUT, PRIMARY, VECTORS_MAX_PUT, VECTORS_PREFIX, Policy, Rule
from twisted_storaged.runtime.log_format import LogFormat

BucketSettings = S3Settings | LocalSettings

#: Seconds that requests under way have to complete when the daemon stops.
DEFAULT_DRAIN = 30

#: The largest fixed Retry-After, in seconds: a day. A client that obeys a mistyped one must come back some time.
LONGEST_RETRY_AFTER = 86_400

#: The most processes that serve requests: a typing error must not start thousands.
MAX_WORKERS = 128

#: Stands for the file in errors about the command line.
COMMAND_LINE = Path("command line")


class StoragedSection(Struct, frozen=True, kw_only=True):
    """The section of the daemon itself."""

    bind: Annotated[
        Text, Meta(description="Where to listen: host:port, or the description of a Twisted server endpoint.")
    ] = "127.0.0.1:3211"
    allow_network: Annotated[
        bool,
        Meta(description="Whether bind may be an address that other hosts can reach; clients are not authenticated."),
    ] = False
    workers: Annotated[
        Literal["auto"]
        | Annotated[
            int, Meta(ge=1, le=MAX_WORKERS, extra={"expected": f"a positive integer of at most {MAX_WORKERS}"})
        ],
        Meta(description="How many processes serve requests; `auto`: one for each core."),
        Meta(extra={"unit": "processes"}),
    ] = 1
    put_slots: Annotated[
        Positive, Meta(description="How many PUTs may be in progress at once; the next one is refused with 503.")
    ] = DEFAULT_PUT_SLOTS
    retry_after: Annotated[
        Literal["auto"]
        | Annotated[
            int,
            Meta(
                ge=1, le=LONGEST_RETRY_AFTER, extra={"expected": f"a positive integer of at most {LONGEST_RETRY_AFTER}"}
            ),
        ],
        Meta(
            description="Retry-After of a PUT that is refused as no slot is free, or an estimate of when one will be."
        ),
        Meta(extra={"unit": "seconds"}),
    ] = DEFAULT_RETRY_AFTER
    state: Annotated[
        FilePath | None,
        Meta(description="Folder of the journal of multipart uploads to S3; several daemons may share it."),
        Meta(extra={"unset": "the data folder, see `--data`"}),
    ] = None
    reap_interval: Annotated[
        Seconds,
        Meta(description="Time between two rounds of aborting the uploads that killed daemons left in the journal."),
    ] = Duration(DEFAULT_REAP_INTERVAL)
    abandoned_after: Annotated[
        Seconds,
        Meta(description="Age at which an upload without parts, whose id no daemon knows, is taken to be abandoned."),
    ] = Duration(DEFAULT_ABANDONED_AFTER)
    s3_deadline: Annotated[
        Seconds, Meta(description="Time for one request to S3, including its retries; then the client gets 504.")
    ] = Duration(DEFAULT_DEADLINE)
    drain: Annotated[
        Seconds, Meta(description="Time that requests under way have to complete after SIGTERM; then they are aborted.")
    ] = Duration(DEFAULT_DRAIN)
    log_format: Annotated[
        LogFormat,
        Meta(description="Whether each line of the log is text, or an object of JSON."),
    ] = "text"
    access_log: Annotated[
        bool | FilePath, Meta(description="Whether the log has a line for each request; or a file for these lines.")
    ] = True
    status_page: Annotated[
        bool,
        Meta(
            description="Whether `GET /` is a page for browsers; never with allow_network, as it asks for no password."
        ),
    ] = True


class S3Section(Struct, frozen=True, kw_only=True):
    """The section of a bucket in S3."""

    kind: Annotated[
        Literal["s3", "local"], Meta(description="Whether the bucket is in S3 or a folder of this host, see below.")
    ] = "s3"
    bucket: Annotated[Text, Meta(description="Name of the bucket in S3.")]
    prefix: Annotated[str, Meta(description="Only keys under this prefix are used; clients do not see it.")] = (
        S3Settings.prefix
    )
    endpoint: Annotated[
        Annotated[
            str,
            # The endpoint is in log lines and in the upload journal, and what stands before an @ is a password.
            Meta(pattern=r"\Ahttps?://[^@]*\Z"),
            Meta(extra={"expected": "a URL that starts with http:// or https://, without user and password"}),
        ]
        | None,
        Meta(description="URL of the S3 engine.", extra={"unset": "AWS, as boto3 finds it"}),
    ] = None
    region: Annotated[
        Text | None,
        Meta(description="Region of the bucket.", extra={"unset": "boto3's, else us-east-1"}),
    ] = None
    use_path_style: Annotated[
        bool | None,
        Meta(description="Whether URLs are ENDPOINT/BUCKET/KEY (true) or BUCKET.ENDPOINT/KEY (false)."),
        Meta(extra={"unset": "boto3's choice"}),
    ] = None
    access_key_id: AccessKeyId = None
    secret_access_key: SecretAccessKey = None
    conditional_writes: Annotated[
        ConditionalWrites,
        Meta(description="Which writes with If-None-Match or If-Match are allowed; others are refused with 501."),
    ] = S3Settings.conditional_writes
    get_resumes: Annotated[
        NonNegative,
        Meta(description="How many times one GET is resumed after S3 broke it off.", extra={"unit": "times"}),
    ] = S3Settings.get_resumes
    verify_reads: Annotated[
        Literal["auto"] | bool,
        Meta(description="Whether GETs of whole objects are verified against a checksum while they are read."),
    ] = "auto"
    lists_in_order: Annotated[
        bool, Meta(description="Whether the engine lists keys in the order of their bytes, as AWS, Ceph and Swift do.")
    ] = S3Settings.lists_in_order


class LocalSection(Struct, frozen=True, kw_only=True):
    """The section of an embedded bucket."""

    kind: Annotated[Literal["local"], Meta(description="The bucket is a folder of this host.")]
    path: Annotated[FilePath, Meta(description="Folder of the bucket; it is created if it does not exist.")]


class PolicySection(Struct, frozen=True, kw_only=True):
    """One rule; what it leaves out is as the next shorter prefix has it by default."""

    prefix: Annotated[str, Meta(description="The keys that the rule is for; the longest prefix of a key wins.")]
    max_put: Annotated[
        Size | None,
        Meta(description="Largest body of a PUT.", extra={"unit": "bytes"}),
        Meta(
            extra={
                "unset": f'`"{DEFAULT_MAX_PUT >> 20} MiB"`; under `{VECTORS_PREFIX}`, `"{VECTORS_MAX_PUT >> 30} GiB"`'
            }
        ),
    ] = None
    bucket: Annotated[
        Text | None,
        Meta(description="Name of the bucket that holds these keys.", extra={"unset": f'`"{PRIMARY}"`'}),
    ] = None
    slots: Annotated[
        Positive | None,
        Meta(description="How many of the put slots these keys may hold, so that others find one free."),
        Meta(extra={"unset": "all"}),
    ] = None


#: The sections of the configuration file, as the reference names them.
SECTIONS: Mapping[str, type[Struct]] = {
    "`[storaged]`": StoragedSection,
    '`[s3]`, or `[buckets.NAME]` with `kind = "s3"`': S3Section,
    '`[buckets.NAME]` with `kind = "local"`': LocalSection,
    "`[[policy]]`": PolicySection,
}


@dataclass(frozen=True)
class Config:
    """The settings of a daemon.

    Attributes:
        endpoint: the Twisted endpoint description to listen on.
        put_slots: how many PUTs may be in progress at once.
        retry_after: seconds after which a refused PUT may be tried again; None for an estimate.
        policy: rules by key prefix.
        buckets: settings by name; `primary` is always among them.
        upkeep: what all buckets of S3 share.
        drain: seconds that requests under way have to complete when the daemon stops.
        workers: how many processes serve requests.
        allow_network: whether other hosts may reach the endpoint.
        log_format: of the lines of the log.
        access_log: whether requests are logged; or the file for that.
        status_page: whether there is a page for browsers.
    """

    endpoint: str
    put_slots: int
    retry_after: int | None
    policy: Policy
    buckets: Mapping[str, BucketSettings]
    upkeep: Upkeep
    drain: float = DEFAULT_DRAIN
    workers: int = 1
    allow_network: bool = False
    log_format: LogFormat = "text"
    access_log: bool | Path = True
    status_page: bool = True

    @property
    def primary_kind(self) -> str:
        """The kind of the primary bucket, as the configuration file has it."""
        return kind_of(self.buckets[PRIMARY])


def kind_of(settings: BucketSettings) -> str:
    """The kind of a bucket, as the configuration file has it."""
    return "local" if isinstance(settings, LocalSettings) else "s3"


@dataclass(frozen=True)
class Overrides:
    """Settings of the command line, which take precedence over the file's; None where there is none."""

    config: Path | None = None
    data: Path | None = None
    bind: str | None = None
    log_format: LogFormat | None = None


def load_config(overrides: Overrides, secrets: Mapping[str, Credentials], environ: Mapping[str, str]) -> Config:
    """The configuration, with credentials by bucket name that take precedence over the file's.

    Raises:
        ConfigError: the first thing that is wrong, with its place.
    """
    file = overrides.config or COMMAND_LINE
    document = read_toml(overrides.config) if overrides.config else {}
    section = Section(document.get("storaged", {}), file, "[storaged]")
    storaged = section.read(StoragedSection)
    endpoint = _endpoint(section, storaged, overrides.bind)
    data = overrides.data or default_data(environ)
    upkeep = Upkeep(
        state=Path(storaged.state) if storaged.state else data,
        reap_interval=storaged.reap_interval,
        deadline=storaged.s3_deadline,
        abandoned_after=storaged.abandoned_after,
    )
    buckets = _buckets(document, file, secrets)
    if PRIMARY not in buckets:
        buckets[PRIMARY] = LocalSettings(data)
    elif overrides.data is not None:
        # Silently ignored, the option would let an operator believe that objects are in that folder.
        raise ConfigError(f"--data is {str(overrides.data)!r}: expected none, as {file} defines the primary bucket")
    _check_folders(buckets, file)
    return Config(
        endpoint=endpoint,
        put_slots=storaged.put_slots,
        retry_after=None if storaged.retry_after == "auto" else storaged.retry_after,
        policy=_policy(document, file, buckets, storaged.put_slots),
        buckets=buckets,
        upkeep=upkeep,
        drain=storaged.drain,
        workers=len(os.sched_getaffinity(0)) if storaged.workers == "auto" else storaged.workers,
        allow_network=storaged.allow_network,
        log_format=overrides.log_format or storaged.log_format,
        access_log=Path(storaged.access_log) if isinstance(storaged.access_log, str) else storaged.access_log,
        status_page=storaged.status_page and not storaged.allow_network,
    )


def default_data(environ: Mapping[str, str]) -> Path:
    """The folder of the embedded bucket if none is configured: systemd's state directory, else the user's data folder.

    See systemd.exec(5), StateDirectory=, and the XDG Base Directory Specification.
    """
    # systemd separates several folders with colons.
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        return Path(state)
    # The XDG specification: an empty variable counts as unset. Without HOME, `expanduser` asks the user database.
    data_home = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "~", ".local", "share")
    return Path(data_home).expanduser() / "storaged"


def _endpoint(section: Section, storaged: StoragedSection, override: str | None) -> str:
    description = endpoint_description(override or storaged.bind)
    if not storaged.allow_network and not is_local(description):
        expectation = (
            "a loopback address or a unix socket: there is no authentication, so that any other needs "
            "[storaged] allow_network = true"
        )
        if override:
            raise ConfigError(f"--bind is {override!r}: expected {expectation}")
        raise section.refused("bind", storaged.bind, expectation)
    return description


def _buckets(
    document: Mapping[str, object], file: Path, secrets: Mapping[str, Credentials]
) -> dict[str, BucketSettings]:
    sections = dict(Section(document.get("buckets", {}), file, "[buckets]").sections())
    if "s3" in document:
        if PRIMARY in sections:
            raise ConfigError(
                f"{file}: [s3] and [buckets.{PRIMARY}] are both there: expected one, as they define the same bucket"
            )
        sections[PRIMARY] = Section(document["s3"], file, "[s3]")
    return {name: _bucket(section, secrets.get(name)) for name, section in sections.items()}


def _check_folders(buckets: Mapping[str, BucketSettings], file: Path) -> None:
    """Check that no two embedded buckets have the same folder. Raises ConfigError."""
    names: dict[str, str] = {}
    for name, settings in buckets.items():
        if isinstance(settings, LocalSettings):
            other = names.setdefault(os.path.realpath(settings.path), name)
            if other != name:
                raise ConfigError(
                    f"{file}: the buckets {shown_name(other)} and {shown_name(name)} are in the same folder, "
                    f"{settings.path}: expected one for each"
                )


def _bucket(section: Section, secret: Credentials | None) -> BucketSettings:
    # The kind decides which other keys the section may have.
    if section.read_key(S3Section, "kind") == "local":
        return LocalSettings(Path(section.read(LocalSection).path))
    s3 = section.read(S3Section)
    # Half a pair is an error also where the secrets file has a whole one.
    in_file = section.credentials(s3.access_key_id, s3.secret_access_key)
    credentials = secret or in_file
    return S3Settings(
        bucket=s3.bucket,
        prefix=s3.prefix,
        endpoint=s3.endpoint,
        region=s3.region,
        use_path_style=s3.use_path_style,
        access_key_id=credentials.access_key_id if credentials else None,
        secret_access_key=credentials.secret_access_key if credentials else None,
        conditional_writes=s3.conditional_writes,
        get_resumes=s3.get_resumes,
        verify_reads=None if s3.verify_reads == "auto" else s3.verify_reads,
        lists_in_order=s3.lists_in_order,
    )


def _policy(
    document: Mapping[str, object], file: Path, buckets: Mapping[str, BucketSettings], put_slots: int
) -> Policy:
    entries = document.get("policy", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{file}: policy is {shown_value(entries, strings=False)}: expected [[policy]] sections")
    rules: dict[str, Rule] = {}
    for entry in entries:
        section = Section(entry, file, "[[policy]]")
        rule = section.read(PolicySection)
        if rule.bucket is not None and rule.bucket not in buckets:
            names = ", ".join(map(shown_name, sorted(buckets)))
            raise section.refused("bucket", rule.bucket, f"the name of a bucket: {names}")
        if rule.slots is not None and rule.slots > put_slots:
            raise section.refused("slots", rule.slots, f"at most put_slots, which is {put_slots}")
        if rule.prefix in rules:
            raise ConfigError(
                f"{file}: [[policy]] prefix is {shown_value(rule.prefix)} twice: expected one section per prefix"
            )
        # The built-in rules only, so that no section depends on another, or on their order.
        default = Policy().rule_for(rule.prefix)
        rules[rule.prefix] = Rule(
            prefix=rule.prefix,
            max_put=default.max_put if rule.max_put is None else rule.max_put,
            bucket=default.bucket if rule.bucket is None else rule.bucket,
            slots=rule.slots,
        )
    return Policy(rules.values())


_HOST_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]*):(?P<port>[0-9]+)")
_DESCRIPTIONS = {"tcp", "tcp6", "ssl", "unix"}


def endpoint_description(bind: str) -> str:
    """The Twisted endpoint description of `bind`: `host:port`, or a description already.

    https://docs.twisted.org/en/stable/core/howto/endpoints.html#servers
    """
    match = _HOST_PORT.fullmatch(bind)
    # "tcp:3211" looks like a host and a port.
    if match is None or match["host"] in _DESCRIPTIONS:
        return bind
    host = match["host"].strip("[]")
    kind = "tcp6" if ":" in host else "tcp"
    interface = host.replace(":", r"\:")
    return f"{kind}:{match['port']}" + (f":interface={interface}" if host else "")


#: Names of arguments that an endpoint description may have without their names, in this order. See
#: https://docs.twisted.org/en/stable/core/howto/endpoints.html
_POSITIONAL = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "ssl": ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters"),
}


def endpoint_arguments(description: str) -> tuple[str, Mapping[str, str]]:
    """Return the kind of an endpoint description, and its arguments by their names."""
    kind, *arguments = _fields(description)
    positional = [argument for argument in arguments if "=" not in argument]
    named = [argument.partition("=")[::2] for argument in arguments if "=" in argument]
    return kind, {**dict(zip(_POSITIONAL.get(kind, ()), positional, strict=False)), **dict(named)}


def is_local(description: str) -> bool:
    """Whether an endpoint description is certain to be a unix socket or a loopback address."""
    kind, arguments = endpoint_arguments(description)
    if kind == "unix":
        return True
    # Without an interface, Twisted listens on all of them; and an endpoint of another plugin may listen anywhere.
    interface = arguments.get("interface", "") if kind in _POSITIONAL else ""
    try:
        return interface == "localhost" or ip_address(interface).is_loopback
    except ValueError:
        return False


def _fields(description: str) -> list[str]:
    """The fields between colons; a backslash makes the character after it an ordinary one."""
    raw = re.findall(r"(?:\A|:)((?:[^:\\]|\\.)*)", description, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", field, flags=re.DOTALL) for field in raw]


def reference_table() -> str:
    """The reference of the configuration file, in Markdown: a heading and a table for each kind of section."""
    lines: list[str] = []
    for title, definition in SECTIONS.items():
        lines += [f"### {title}", "", "| Key | Value | Unit | Default | Explanation |", "|---|---|---|---|---|"]
        for key in describe(definition):
            default = f"`{key.default}`" if key.has_default else key.default
            lines.append(f"| `{key.name}` | {key.values} | {key.unit} | {default} | {key.explanation} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(reference_table())
