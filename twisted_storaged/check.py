"""What `--check` and `--explain` print: the effective configuration, whether buckets answer, and the rule of a key.

Nothing is changed: no bucket is opened, and no folder is created.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.s3.session import S3Settings, ask_bucket
from twisted_storaged.config import BucketSettings, Config, is_local, make_endpoint
from twisted_storaged.config_file import CREDENTIAL, UNITS, may_hold_credential
from twisted_storaged.errors import InvalidKey, StartError
from twisted_storaged.model import parse_key

#: Stands for a credential in what is printed.
MASK = "(not shown)"


def effective_config(config: Config) -> Iterator[str]:
    """Yield the lines of a configuration file with all settings, defaults included, and with credentials masked.

    storaged can load it again, but for the credentials. A key that boto3 decides is left out.
    """
    upkeep = config.upkeep
    storaged = {
        "bind": config.endpoint,
        "allow_network": not is_local(config.endpoint),
        "put_slots": config.put_slots,
        "retry_after": config.retry_after or "auto",
        "state": str(upkeep.state),
        "reap_interval": int(upkeep.reap_interval),
        "abandoned_after": int(upkeep.abandoned_after),
        "s3_deadline": int(upkeep.deadline),
        "drain": int(config.drain),
    }
    yield from _section("[storaged]", storaged)
    for name, settings in config.buckets.items():
        yield from _section(f"[buckets.{_toml(name)}]", _keys_of(settings))
    for rule in config.policy.rules:
        keys = {"prefix": rule.prefix, "max_put": _size(rule.max_put), "bucket": rule.bucket, "slots": rule.slots}
        yield from _section("[[policy]]", keys)


def check(config: Config, reactor: Any) -> tuple[list[str], bool]:
    """Ask each bucket, and load the certificates of the endpoint; returns lines to print, and whether all is well.

    Blocking: a bucket in S3 is listed.
    """
    lines = list(effective_config(config))
    problems = {"endpoint": _problem_of_endpoint(config.endpoint, reactor)}
    for name, settings in config.buckets.items():
        problems[f"bucket {name}"] = _problem_of_bucket(settings, config.upkeep.deadline)
    lines += [f"# {what}: {problem or 'ok'}" for what, problem in problems.items()]
    return lines, not any(problems.values())


def explain(config: Config, key: str) -> list[str]:
    """Return lines that say which rule, limit, put slots and bucket an object key meets, and why.

    Raises:
        StartError: it is not a valid key.
    """
    try:
        parse_key(os.fsencode(key))
    except InvalidKey as error:
        raise StartError(f"{key!r} is not a valid key: {error}") from error
    rule = config.policy.rule_for(key)
    others = [repr(one.prefix) for one in config.policy.rules if key.startswith(one.prefix) and one is not rule]
    shorter = f"; shorter prefixes of it with rules: {', '.join(others)}" if others else ""
    slots = f"{rule.slots} of the {config.put_slots}" if rule.slots else f"all {config.put_slots}"
    return [
        f"key: {key}",
        f"rule: the one for the prefix {rule.prefix!r}, the longest prefix of the key that has a rule{shorter}",
        f"largest body of a PUT: {_size(rule.max_put)} ({rule.max_put} bytes)",
        f"put slots: {slots}",
        f"bucket: {rule.bucket}, {_place_of(config.buckets[rule.bucket], key)}",
    ]


def _place_of(settings: BucketSettings, key: str) -> str:
    if isinstance(settings, LocalSettings):
        return f"a folder: {settings.path}"
    where = _masked(settings.endpoint) if settings.endpoint else "AWS"
    return f"in S3: {_masked(settings.bucket)!r} at {where}, with the key {_masked(settings.prefix) + key!r}"


def _keys_of(settings: BucketSettings) -> Mapping[str, object]:
    if isinstance(settings, LocalSettings):
        return {"kind": "local", "path": str(settings.path)}
    return {
        "kind": "s3",
        # An operator may have put a credential into one of these by mistake.
        "bucket": _masked(settings.bucket),
        "prefix": _masked(settings.prefix),
        "endpoint": settings.endpoint and _masked(settings.endpoint),
        "region": settings.region and _masked(settings.region),
        "use_path_style": settings.use_path_style,
        "access_key_id": settings.access_key_id and MASK,
        "secret_access_key": settings.secret_access_key and MASK,
        "conditional_writes": settings.conditional_writes,
        "get_resumes": settings.get_resumes,
        "verify_reads": "auto" if settings.verify_reads is None else settings.verify_reads,
        "lists_in_order": settings.lists_in_order,
    }


def _section(header: str, keys: Mapping[str, object]) -> Iterator[str]:
    yield header
    for name, value in keys.items():
        if value is not None:
            yield f"{name} = {_toml(value)}"
    yield ""


def _toml(value: object) -> str:
    # JSON's strings, integers and flags are TOML's as well, but for DEL, which TOML has escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _masked(text: str) -> str:
    """The text, unless it may be, or hold, a credential."""
    return MASK if may_hold_credential(text) else text


def _without_credentials(text: str, settings: S3Settings) -> str:
    # boto3 repeats requests in some errors.
    for credential in (settings.access_key_id, settings.secret_access_key):
        if credential and credential.strip():
            text = text.replace(credential.strip(), MASK)
    return CREDENTIAL.sub(MASK, text)


def _size(count: int) -> str:
    unit = max((unit for unit in UNITS if count and count % UNITS[unit] == 0), key=UNITS.__getitem__, default="B")
    return f"{count // UNITS[unit]} {unit}"


def _problem_of_endpoint(description: str, reactor: Any) -> str:
    try:
        make_endpoint(reactor, description)
    except StartError as error:
        return str(error)
    return ""


def _problem_of_bucket(settings: BucketSettings, deadline: float) -> str:
    if isinstance(settings, S3Settings):
        try:
            ask_bucket(settings, deadline)
        except ValueError as error:
            return _without_credentials(str(error), settings)
        return ""
    # The index is not opened: SQLite would change its files.
    if settings.path.exists():
        return "" if _is_usable(settings.path) else f"{settings.path} is not a folder that can be read and written"
    if not _is_usable(next(parent for parent in settings.path.absolute().parents if parent.exists())):
        return f"{settings.path} does not exist, and cannot be created"
    return ""


def _is_usable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK)
