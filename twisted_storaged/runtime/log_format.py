"""Events as lines of a log, in text and in JSON; and how text from elsewhere is shown, so that it cannot forge a line.

The lines of the access log are made in `server.ended_requests`. Several of them are one event, with two fields of its
own: `lines` has them, and `is_json` says that each is an object of JSON already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, Literal, TypeAlias

from twisted.logger import LogEvent, LogLevel, eventAsText, formatEvent

LogFormat: TypeAlias = Literal["text", "json"]

#: The priorities of sd-daemon(3).
_PRIORITIES = {LogLevel.critical: 2, LogLevel.error: 3, LogLevel.warn: 4, LogLevel.info: 6, LogLevel.debug: 7}


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


def as_text(event: LogEvent) -> str:
    """The lines of an event: one with time, namespace and level, and more that begin with a tab. Empty without text."""
    text = eventAsText(event)
    if not text:
        return ""
    lines = text.split("\n")
    return "\n\t".join(lines if "lines" in event else map(printable, lines)) + "\n"


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
        "message": message,
    }
    if traceback:
        found["traceback"] = traceback
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
