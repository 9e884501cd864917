"""How text from elsewhere is shown in lines of a log, or of other output, so that it cannot forge any of these."""

from __future__ import annotations

from json.encoder import encode_basestring, encode_basestring_ascii


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
