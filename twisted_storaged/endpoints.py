"""What `bind` may say: `host:port`, or any Twisted endpoint description; and whether only this host can reach it.

https://docs.twisted.org/en/stable/core/howto/endpoints.html#servers
"""

from __future__ import annotations

import re
from ipaddress import ip_address

DEFAULT_BIND = "tcp:3211:interface=127.0.0.1"

_HOST_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]*):(?P<port>\d+)")
_DESCRIPTIONS = {"tcp", "tcp6", "ssl", "unix"}


def endpoint_description(bind: str) -> str:
    """The Twisted endpoint description of what `bind` says."""
    match = _HOST_PORT.fullmatch(bind)
    if match is None or match["host"] in _DESCRIPTIONS:
        return bind
    host = match["host"].strip("[]")
    kind = "tcp6" if ":" in host else "tcp"
    interface = host.replace(":", r"\:")
    return f"{kind}:{match['port']}" + (f":interface={interface}" if host else "")


def is_local(description: str) -> bool:
    """Whether the description says, without a doubt, a unix socket or a loopback address."""
    kind, *arguments = _fields(description)
    if kind == "unix":
        return True
    if kind not in ("tcp", "tcp6", "ssl"):
        return False
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    positional = [argument for argument in arguments if "=" not in argument]
    interface = named.get("interface", positional[1] if kind != "ssl" and len(positional) > 1 else "")
    return _is_loopback(interface)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _fields(description: str) -> list[str]:
    """The parts between colons; a backslash takes the meaning away from the character after it."""
    raw = re.split(r"(?<!\\):", description)
    return [re.sub(r"\\(.)", r"\1", part) for part in raw]
