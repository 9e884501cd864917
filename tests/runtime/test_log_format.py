"""Events as lines of a log, and how text from elsewhere is shown in them."""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, LogLevel, textFileLogObserver
from twisted.python.failure import Failure

from twisted_storaged.runtime.log_format import as_json, as_text, printable, quoted, redacted, with_priority

#: The first line of an event in text.
_FIRST = re.compile(r"1970-01-01T\d\d:00:01[+-]\d{4} \[storaged\.x#warn\] .*")


def event(text: str, level: Any = LogLevel.warn, **more: object) -> LogEvent:
    """An event with this text."""
    return {
        "log_format": "{text}",
        "text": text,
        "log_level": level,
        "log_namespace": "storaged.x",
        "log_time": 1.25,
        **more,
    }


def failed(text: str) -> LogEvent:
    """An event of a failure whose error has this text."""
    try:
        raise ValueError(text)
    except ValueError:
        return event("unexpected", LogLevel.critical, log_failure=Failure())


class TextTests:
    """Lines of text."""

    @pytest.mark.parametrize("one", [event("it happened"), event("two\nlines"), event("é"), failed("x"), event(""), {}])
    def test_is_as_of_twisted(self, one: LogEvent) -> None:
        """An event has the lines that Twisted gives it."""
        stream = io.StringIO()
        textFileLogObserver(stream)(one)
        assert as_text(one) == stream.getvalue()

    @given(st.text(min_size=1))
    def test_nothing_can_be_forged(self, text: str) -> None:
        """Whatever an event has in it, it has one line that begins as one, and nothing changes a terminal."""
        for one in (event(text), failed(text)):
            first, *rest = as_text(one).removesuffix("\n").split("\n")
            assert all(line.startswith("\t") and line[1:].isprintable() for line in rest)
            assert first.isprintable()
        assert _FIRST.fullmatch(as_text(event(text)).split("\n")[0])


class JsonTests:
    """Lines of JSON."""

    def test_fields(self) -> None:
        """An event has time, level, namespace and message."""
        assert json.loads(as_json(event("it happened"))) == {
            "time": "1970-01-01T00:00:01.250000Z",
            "level": "warn",
            "namespace": "storaged.x",
            "message": "it happened",
        }

    def test_a_failure(self) -> None:
        """A traceback is a field of its own."""
        found = json.loads(as_json(failed("hello")))
        assert (found["level"], found["message"]) == ("critical", "unexpected")
        assert found["traceback"].startswith("Traceback (most recent call last):\n")
        assert found["traceback"].strip().endswith("ValueError: hello")

    def test_lines_of_the_access_log(self) -> None:
        """They are objects already."""
        assert as_json({"log_format": "{lines}", "lines": '{"a":1}\n{"b":2}', "is_json": True}) == '{"a":1}\n{"b":2}\n'

    @pytest.mark.parametrize("one", [event(""), {}])
    def test_without_text(self, one: LogEvent) -> None:
        """There is no line."""
        assert as_json(one) == ""

    def test_without_a_level(self) -> None:
        """What is told without a level is information."""
        assert json.loads(as_json({"log_format": "x"}))["level"] == "info"

    def test_other_values_are_not_shown(self) -> None:
        """A value that the text of an event does not name, such as settings, is not in its line."""
        one = event("it happened", settings={"secret_access_key": "hunter2"})
        assert "hunter2" not in as_json(one) + as_text(one)

    @given(st.text(min_size=1))
    def test_nothing_can_be_forged(self, text: str) -> None:
        """Whatever an event has in it, it is one line of ASCII, and can be read again."""
        for one in (event(text), failed(text)):
            line = as_json(one)
            assert line.isascii()
            assert line.removesuffix("\n").isprintable()
        assert json.loads(as_json(event(text)))["message"] == text


class PriorityTests:
    """Priorities for the journal of systemd."""

    @pytest.mark.parametrize(
        ("level", "number"),
        [
            (LogLevel.critical, 2),
            (LogLevel.error, 3),
            (LogLevel.warn, 4),
            (LogLevel.info, 6),
            (LogLevel.debug, 7),
        ],
    )
    def test_each_line(self, level: Any, number: int) -> None:
        """Each line of an event has the priority of its level."""
        assert with_priority("a\n\tb\x0bc\n", level) == f"<{number}>a\n<{number}>\tb\x0bc\n"


class EscapingTests:
    """Texts that others have chosen."""

    @given(st.text())
    def test_quoted_is_json(self, text: str) -> None:
        """A quoted text is printable, and can be read again."""
        assert quoted(text).isprintable()
        assert json.loads(quoted(text)) == text

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\')))
    def test_printable_is_toml(self, text: str) -> None:
        """A text is printable, and can be read again by TOML, if it has no quotes and backslashes of its own."""
        assert printable(text).isprintable()
        assert tomllib.loads(f'text = "{printable(text)}"')["text"] == text

    def test_half_of_a_pair(self) -> None:
        """Half of a surrogate pair, which no encoding can have, is escaped."""
        assert printable("a\ud800") == "a\\ud800"


class RedactedTests:
    """Secrets in texts."""

    @pytest.mark.parametrize(
        "target", ["/objects/day=2024-01-01/a", "/storage/list?prefix=a&limit=5", "/a@b", "/objects/a?x", "/?x=1&y="]
    )
    def test_what_is_kept(self, target: str) -> None:
        """Other parameters and keys are shown as they are."""
        assert redacted(target) == target

    @pytest.mark.parametrize(
        "text", ["=" + "?" * 500_000, "=" + "%3f" * 200_000, "@" + "//" * 300_000, "=" + "&a" * 300_000]
    )
    def test_hostile(self, text: str) -> None:
        """Long texts of what the expressions look for take time in proportion to their length."""
        assert redacted(text) == text

    @pytest.mark.parametrize("make", [as_text, as_json])
    def test_events(self, make: Callable[[LogEvent], str]) -> None:
        """What an event, or the error of a failure, has of them is not in its lines."""
        text = "GET 'a?X-Amz-Signature=hunter2&x=1': no connection to http://user:hunter2@host"
        for one in (event(text), failed(text), {**event(text), "traceback": text}):
            assert "hunter2" not in make(one)
            assert make(one).count("[redacted]") >= 2
