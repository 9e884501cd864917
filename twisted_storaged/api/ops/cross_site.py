"""Telling requests of the page from those that other web sites make a browser send.

A site that somebody visits can make their browser send requests to this host. It cannot read the responses, and so gets
no token; unless its name resolves to this host (DNS rebinding), which the Host field then has.
https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted_storaged.errors import CrossSiteRequest
from twisted_storaged.protocol.http_fields import field

#: Seconds in which the same token is made; it is valid for as long again.
PERIOD = 3600
_KEY_BYTES = 32

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]*)?")


class Tokens:
    """Makes and checks tokens. They are the same in all processes that have the same key and the same clock."""

    def __init__(self, key: bytes, clock: Callable[[], float]) -> None:
        """`clock` is the monotonic one of this host, in seconds."""
        self._key = key
        self._clock = clock

    def make(self) -> str:
        """Return the token of this hour."""
        return self._token(int(self._clock() // PERIOD))

    def check(self, token: str | None) -> None:
        """Check a token.

        Raises:
            CrossSiteRequest: it is none of this hour, or of the one before.
        """
        now = int(self._clock() // PERIOD)
        given = (token or "").encode("utf-8", "replace")
        matches = [hmac.compare_digest(given, self._token(period).encode("ascii")) for period in (now, now - 1)]
        if not any(matches):
            raise CrossSiteRequest("the token of the page is missing, wrong or too old: open the page again")

    def _token(self, period: int) -> str:
        return hmac.new(self._key, b"%d" % period, "sha256").hexdigest()


def make_key() -> bytes:
    """Make a key for tokens."""
    return secrets.token_bytes(_KEY_BYTES)


def make_key_file() -> int:
    """Make a file in memory with a key, for processes that inherit its descriptor. Raises OSError."""
    descriptor = os.memfd_create("page-key", os.MFD_CLOEXEC)
    os.pwrite(descriptor, make_key(), 0)
    return descriptor


def read_key(descriptor: int) -> bytes:
    """Read the key of such a file. Raises OSError."""
    return os.pread(descriptor, _KEY_BYTES, 0)


def check_host(request: Any) -> None:
    """Check that the browser knows this daemon by a name of this host.

    Raises:
        CrossSiteRequest: it does not; the name may be that of any site.
    """
    match = _HOST.fullmatch(field(request, "Host") or "")
    if match is None or not _is_loopback(match[1].lower().strip("[]")):
        raise CrossSiteRequest("the page is for browsers on this host: use localhost or a loopback address")


def _is_loopback(host: str) -> bool:
    # RFC 6761, 6.3: names under localhost are always loopback addresses.
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_same_site(request: Any) -> None:
    """Check that no other site has sent the request, as far as the browser says. It says more over loopback and TLS.

    Raises:
        CrossSiteRequest: another one has, or another port of this host, or the Host field names another host.
    """
    check_host(request)
    # https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header
    if (field(request, "Sec-Fetch-Site") or "none") not in ("same-origin", "none"):
        raise CrossSiteRequest("the request comes from another site")
    origin = field(request, "Origin")
    if origin is not None and origin.partition("://")[2].lower() != (field(request, "Host") or "").lower():
        raise CrossSiteRequest("the request comes from another site")
