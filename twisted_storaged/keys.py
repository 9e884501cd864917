"""What an object key may be. Keys arrive as percent-decoded bytes and leave as text."""

from __future__ import annotations

import re

from twisted_storaged.errors import InvalidKey

#: S3's own limit, in bytes of UTF-8.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
MAX_KEY_BYTES = 1024

#: What breaks no rule, nor could: most keys.
_PLAIN = re.compile(rb"(?!/)[\x20-\x7e]{1,%d}" % MAX_KEY_BYTES)
_CONTROL = bytes([*range(0x20), 0x7F])


def parse_key(raw: bytes) -> str:
    """The key that these bytes spell.

    Raises:
        InvalidKey: it is empty, or breaks a rule that prefixes share.
    """
    if not raw:
        raise InvalidKey("empty key")
    return parse_prefix(raw)


def parse_prefix(raw: bytes) -> str:
    """The prefix that these bytes spell: as a key, but it may be empty.

    Raises:
        InvalidKey: the first rule that is broken, in the order of the wire contract.
    """
    if _PLAIN.fullmatch(raw) and b".." not in raw:
        return raw.decode("ascii")
    if len(raw) > MAX_KEY_BYTES:
        raise InvalidKey("key too long (>1024 bytes)")
    if b"\0" in raw:
        raise InvalidKey("key contains NUL byte")
    if raw.startswith(b"/"):
        raise InvalidKey("key starts with /")
    if b".." in raw.split(b"/"):
        raise InvalidKey("key contains .. component")
    if raw.translate(None, _CONTROL) != raw:
        raise InvalidKey("key contains control char")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidKey("key is not UTF-8") from None
