"""Keys and prefixes, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.errors import InvalidKey
from twisted_storaged.model import parse_key, parse_prefix

BROKEN = [
    (b"a" * 1025, "key too long (>1024 bytes)"),
    ("ä".encode() * 513, "key too long (>1024 bytes)"),
    (b"a\0b", "key contains NUL byte"),
    (b"/a", "key starts with /"),
    (b"/", "key starts with /"),
    (b"..", "key contains .. component"),
    (b"a/../b", "key contains .. component"),
    (b"a/..", "key contains .. component"),
    (b"a\nb", "key contains control char"),
    (b"a\x01", "key contains control char"),
    (b"a\x1f", "key contains control char"),
    (b"a\x7f", "key contains control char"),
    (b"a\xff", "key is not UTF-8"),
    (b"\xed\xa0\x80", "key is not UTF-8"),
]
FINE = [
    "a",
    "a/b",
    "a//b",
    "a/",
    "...",
    "..a",
    "a..",
    "a/...",
    " ",
    "a b",
    "%",
    "+",
    "?",
    "#",
    "ä€😀",
    ".",
    "\x80",
    "x" * 1024,
]


class ParseKeyTests:
    """What is a valid key."""

    @pytest.mark.parametrize(("raw", "message"), BROKEN)
    def test_broken_rule_is_named(self, raw: bytes, message: str) -> None:
        """The error has exactly the text of the wire contract."""
        with pytest.raises(InvalidKey) as caught:
            parse_key(raw)
        assert str(caught.value) == message

    @pytest.mark.parametrize("key", FINE)
    def test_anything_else_is_a_key(self, key: str) -> None:
        """Spaces, slashes and other special characters are part of the key."""
        assert parse_key(key.encode()) == key

    def test_empty_key_is_none(self) -> None:
        """An empty key is refused."""
        with pytest.raises(InvalidKey, match=r"^empty key$"):
            parse_key(b"")

    def test_rules_are_tried_in_the_order_of_the_contract(self) -> None:
        """For a key that breaks several rules, the first one is reported."""
        with pytest.raises(InvalidKey, match="NUL"):
            parse_key(b"/../\0\xff\n")
        with pytest.raises(InvalidKey, match="starts with /"):
            parse_key(b"/../\xff\n")
        with pytest.raises(InvalidKey, match="component"):
            parse_key(b"a/../\xff\n")
        with pytest.raises(InvalidKey, match="control"):
            parse_key(b"a/\xff\n")

    @given(st.binary(max_size=64))
    def test_what_is_taken_is_what_was_sent(self, raw: bytes) -> None:
        """A key is either refused or decodes to exactly its bytes."""
        try:
            key = parse_key(raw)
        except InvalidKey:
            return
        assert key.encode() == raw
        assert not any(ord(char) < 0x20 or char == "\x7f" for char in key)
        assert ".." not in key.split("/")
        assert not key.startswith("/")


class ParsePrefixTests:
    """What is a valid prefix."""

    def test_empty_prefix_is_everything(self) -> None:
        """An empty prefix is valid."""
        assert parse_prefix(b"") == ""

    @pytest.mark.parametrize(("raw", "message"), BROKEN)
    def test_rules_are_those_of_keys(self, raw: bytes, message: str) -> None:
        """A prefix that no key can have is refused with the error of such a key."""
        with pytest.raises(InvalidKey) as caught:
            parse_prefix(raw)
        assert str(caught.value) == message
