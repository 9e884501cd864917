"""Events as lines of a log, in text and in JSON; and how text from elsewhere is shown: it forges no line, and has no
secrets.

The lines of the access log are made in `server.ended_requests`. Several of them are one event, with two fields of its
own: `lines` has them, and `is_json` says that each is an object of JSON already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

from twisted.logger import LogEvent, LogLevel, eventAsText, formatEvent

LogFormat: TypeAlias = Literal["text", "json"]

#: The priorities of sd-daemon(3).
_PRIORITIES = {LogLevel.critical: 2, LogLevel.error: 3, LogLevel.warn: 4, LogLevel.info: 6, LogLevel.debug: 7}

#: What stands before an @ in an absolute URL, and the parameters of a URL. Both may be percent-encoded, as in a key
#: that was made of a URL. No part can match a beginning of the next, so that the time is linear in the length.
_USER = re.compile(r"(//|%2f%2f)(?:(?!%2f|%40)[^/?#@\s])*(@|%40)", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;]|%3f|%26|%3b)((?:(?!%3d|%26|%3b|%3f)[^=&;#?])*)(=|%3d)((?:(?!%26|%3b)[^&;#\s])*)", re.IGNORECASE
)
_SECRET_NAME = re.compile(r"sig|token|cred|secret|pass|pwd|auth|key|session|bearer|jwt", re.IGNORECASE)


def printable(text: str, longest: int | None = None) -> str:
    """A text with all characters escaped, as in TOML, that could end a line or make a terminal show something else.

    Of a text with more than `longest` characters, only so many are shown.
    """
    text = text[:longest]
    if text.isprintable():
        return text
    # Control characters, those that change the direction of text or are not seen, and lone halves of surrogate pairs.
    return "".join(
        char if char.isprintable() else f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"
        for char in text
    )


def quoted(text: str) -> str:
    """A text as a string of JSON, in quotes: no character of it can end the line, the string, or change a terminal."""
    return encode_basestring(text) if text.isprintable() else encode_basestring_ascii(text)


def redacted(text: str) -> str:
    """A URL, or a part of one, without passwords and the values of parameters whose names say that they are secret.

    These are those of presigned URLs, such as X-Amz-Signature and X-Amz-Security-Token, and of other services.
    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    """
    # Most have none of it, and these searches cost far less than the expressions.
    if "@" in text or "%40" in text:
        text = _USER.sub(r"\1[redacted]\2", text)
    if "=" in text or "%3" in text:
        text = _PARAMETER.sub(_redact_value, text)
    return text


def _redact_value(match: re.Match[str]) -> str:
    start, name, equals, value = match.groups()
    # Decoded twice, as a client may have encoded a URL that was encoded already.
    shown = "[redacted]" if value and _SECRET_NAME.search(unquote(unquote(name))) else value
    return f"{start}{name}{equals}{shown}"


def as_text(event: LogEvent) -> str:
    """The lines of an event: one with time, namespace and level, and more that begin with a tab. Empty without text."""
    text = eventAsText(event)
    if not text:
        return ""
    if "lines" in event:
        return text.replace("\n", "\n\t") + "\n"
    # Texts of errors name keys, which may have been made of URLs.
    return "\n\t".join(map(printable, redacted(text).split("\n"))) + "\n"


def as_json(event: LogEvent) -> str:
    """An event as an object of JSON in a line. Empty without text."""
    if event.get("is_json"):
        return f"{event['lines']}\n"
    message, traceback = message_of(event)
    if not message and not traceback:
        return ""
    found = {
        "time": rfc3339(event.get("log_time") or 0.0),
        "level": level_of(event).name,
        "namespace": event.get("log_namespace"),
        "message": redacted(message),
    }
    if traceback:
        found["traceback"] = redacted(traceback)
    # All characters that are not ASCII are escaped.
    return json.dumps(found, separators=(",", ":")) + "\n"


#: What makes the lines of an event, by the name of the format.
FORMATS: Mapping[LogFormat, Callable[[LogEvent], str]] = {"text": as_text, "json": as_json}


def message_of(event: LogEvent) -> tuple[str, str]:
    """The message of an event, and its traceback, if it has one."""
    failure = event.get("log_failure")
    if failure is not None:
        return formatEvent(event), failure.getTraceback()
    if "traceback" in event:
        # Of another process, see `log_pipe`.
        return event["text"], event["traceback"]
    return formatEvent(event), ""


def level_of(event: LogEvent) -> Any:
    """The level of an event: `info` if it has none that we know."""
    level = event.get("log_level")
    return level if level in _PRIORITIES else LogLevel.info


def with_priority(lines: str, level: Any) -> str:
    """Put its priority before each line, for the journal of systemd. See sd-daemon(3)."""
    prefix = f"<{_PRIORITIES[level]}>"
    # Not `splitlines`: the journal takes only a line feed for the end of a line.
    return "".join([f"{prefix}{line}\n" for line in lines.removesuffix("\n").split("\n")])


def rfc3339(seconds: float) -> str:
    """A time, in seconds since the epoch, as in RFC 3339, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
