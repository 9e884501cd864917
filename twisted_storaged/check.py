"""What `--check` and `--explain` print: the effective configuration, whether buckets answer, and the rule of a key.

Nothing is changed: no bucket is opened, and no folder is created.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from twisted.internet.ssl import Certificate

from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.s3.session import S3Settings, ask_bucket
from twisted_storaged.config import BucketSettings, Config, endpoint_arguments
from twisted_storaged.config_file import CREDENTIAL, UNITS, may_hold_credential
from twisted_storaged.errors import InvalidKey, StartError
from twisted_storaged.listening import make_endpoint
from twisted_storaged.model import parse_key
from twisted_storaged.runtime.log_format import printable

#: Stands for a credential in what is printed.
MASK = "(not shown)"
#: A certificate that expires within this time is worth a warning.
EXPIRES_SOON = timedelta(days=14)
#: Bytes of the longest path of a unix socket. See unix(7).
LONGEST_SOCKET_PATH = 107

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\n.+?\n-----END CERTIFICATE-----", re.DOTALL)


def effective_config(config: Config) -> Iterator[str]:
    """Yield the lines of a configuration file with all settings, defaults included, and with credentials masked.

    storaged can load it again, but for the credentials. A key that boto3 decides is left out.
    """
    upkeep = config.upkeep
    storaged = {
        "bind": config.endpoint,
        "allow_network": config.allow_network,
        "workers": config.workers,
        "put_slots": config.put_slots,
        "retry_after": config.retry_after or "auto",
        "state": str(upkeep.state),
        "reap_interval": int(upkeep.reap_interval),
        "abandoned_after": int(upkeep.abandoned_after),
        "s3_deadline": int(upkeep.deadline),
        "drain": int(config.drain),
        "log_format": config.log_format,
        "access_log": str(config.access_log) if isinstance(config.access_log, Path) else config.access_log,
    }
    yield from _section("[storaged]", storaged)
    for name, settings in config.buckets.items():
        yield from _section(f"[buckets.{_toml(name)}]", _keys_of(settings))
    for rule in config.policy.rules:
        keys = {"prefix": rule.prefix, "max_put": _size(rule.max_put), "bucket": rule.bucket, "slots": rule.slots}
        yield from _section("[[policy]]", keys)


def check(config: Config, reactor: Any, wall_clock: Callable[[], float] = time.time) -> tuple[list[str], bool]:
    """Ask each bucket, and check the endpoint and its certificates; returns lines to print, and whether all is well.

    Blocking: a bucket in S3 is listed.
    """
    problems = {"endpoint": _problem_of_endpoint(config.endpoint, reactor)}
    warnings: list[str] = []
    if not problems["endpoint"]:
        now = datetime.fromtimestamp(wall_clock(), UTC)
        problems["endpoint"], warnings = _validity_of_certificates(config.endpoint, now)
    if isinstance(config.access_log, Path):
        problems["access log"] = _problem_of_access_log(config.access_log)
    for name, settings in config.buckets.items():
        problems[f"bucket {name}"] = _problem_of_bucket(settings, config.upkeep.deadline)
    lines = [f"# warning: {warning}" for warning in warnings]
    lines += [f"# {what}: {problem or 'ok'}" for what, problem in problems.items()]
    return [*effective_config(config), *map(printable, lines)], not any(problems.values())


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
    lines = [
        f"key: {key}",
        f"rule: the one for the prefix {rule.prefix!r}, the longest prefix of the key that has a rule{shorter}",
        f"largest body of a PUT: {_size(rule.max_put)} ({rule.max_put} bytes)",
        f"put slots: {slots}",
        f"bucket: {rule.bucket}, {_place_of(config.buckets[rule.bucket], key)}",
    ]
    return [printable(line) for line in lines]


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
    yield printable(header)
    for name, value in keys.items():
        if value is not None:
            yield printable(f"{name} = {_toml(value)}")
    yield ""


def _toml(value: object) -> str:
    # JSON's strings, integers and flags are TOML's as well, but for DEL, which `printable` escapes.
    return json.dumps(value, ensure_ascii=False)


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
    kind, arguments = endpoint_arguments(description)
    address = arguments.get("address", "")
    # A NUL begins a name that is not in the file system. See unix(7).
    problem = _problem_of_socket(address) if kind == "unix" and not address.startswith("\0") else ""
    return problem and f"cannot listen on {description}: {problem}"


def _problem_of_socket(address: str) -> str:
    path = Path(address).absolute()
    if len(os.fsencode(address)) > LONGEST_SOCKET_PATH:
        return f"the path is longer than {LONGEST_SOCKET_PATH} bytes"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not _can_create_in(path.parent):
        return f"no file can be created in {path.parent}"
    return f"{path} exists and is not a socket" if os.path.lexists(path) and not path.is_socket() else ""


def _validity_of_certificates(description: str, now: datetime) -> tuple[str, list[str]]:
    """What is wrong with the certificates of an endpoint that has loaded them, and warnings."""
    warnings = []
    for path, certificate in _certificates(description):
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > end:
            return f"the certificate in {path} has expired on {end:%Y-%m-%d %H:%M} UTC", []
        if now < begin:
            return f"the certificate in {path} is not valid before {begin:%Y-%m-%d %H:%M} UTC", []
        if end - now < EXPIRES_SOON:
            warnings.append(f"the certificate in {path} expires on {end:%Y-%m-%d %H:%M} UTC")
    return "", warnings


def _certificates(description: str) -> Iterator[tuple[str, Any]]:
    """Yield the path of each certificate that an endpoint sends, and the certificate."""
    kind, arguments = endpoint_arguments(description)
    if kind != "ssl":
        return
    # The defaults of Twisted.
    own = arguments.get("certKey", arguments.get("privateKey", "server.pem"))
    chain = arguments.get("extraCertChain")
    # Of its own file, only the first certificate is sent.
    found = [(own, pem) for pem in _PEM.findall(Path(own).read_bytes())[:1]]
    if chain is not None:
        found += [(chain, pem) for pem in _PEM.findall(Path(chain).read_bytes())]
    for path, pem in found:
        yield path, Certificate.loadPEM(pem).original.to_cryptography()


def _problem_of_bucket(settings: BucketSettings, deadline: float) -> str:
    if isinstance(settings, S3Settings):
        try:
            ask_bucket(settings, deadline)
        except ValueError as error:
            return _without_credentials(str(error), settings)
        return ""
    # The index is not opened: SQLite would change its files.
    path = settings.path
    if os.path.lexists(path):
        return "" if _is_usable(path) else f"{path} is not a folder that can be read and written"
    parent = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    return "" if _is_usable(parent) else f"{path} does not exist, and cannot be created in {parent}"


def _problem_of_access_log(path: Path) -> str:
    if os.path.lexists(path):
        return "" if os.access(path, os.R_OK | os.W_OK) and not path.is_dir() else f"{path} cannot be read and written"
    return "" if _is_usable(path.parent) else f"{path} does not exist, and cannot be created"


def _is_usable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK) and _can_create_in(path)


def _can_create_in(folder: Path) -> bool:
    """Whether files can be created in a folder; the permissions do not say that of all, such as those of /proc."""
    with suppress(OSError):
        # Without a name, it is seen by nobody.
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return True
    # NFS, for one, has no such files.
    with suppress(OSError):
        os.rmdir(mkdtemp(prefix=".storaged-check-", dir=folder))
        return True
    return False
