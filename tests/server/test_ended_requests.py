"""The line of the access log for a request that has ended."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address

from twisted_storaged.server.ended_requests import LONGEST_FIELD, AccessLog, EndedRequest, redacted

CLIENT = IPv4Address("TCP", "10.0.0.7", 4711)
#: A secret that does not look like one.
SECRET = "hunter2"


def line(**values: object) -> str:
    """The line of a request with these values."""
    defaults = {"at": 0.0, "client": CLIENT, "method": b"PUT", "uri": b"/objects/a", "version": b"HTTP/1.1"}
    return AccessLog().line(EndedRequest(**{**defaults, **values}))  # type: ignore[arg-type]


class LineTests:
    """What a line has."""

    def test_whole(self) -> None:
        """A line begins with the Common Log Format; the ending and further fields follow."""
        whole = line(
            operation="put",
            bucket="primary",
            key="a b",
            status=503,
            outcome="complete",
            reason="NoFreeSlot",
            received=3,
            sent=9,
            seconds=0.25,
            first_byte=0.125,
            fields={"user-agent": ["curl/8"]},
            id="abc",
        )
        assert whole == (
            '10.0.0.7 - - [01/Jan/1970:00:00:00 +0000] "PUT /objects/a HTTP/1.1" 503 9 complete id=abc operation=put '
            'bucket=primary key="a b" received=3 seconds=0.250000 first_byte=0.125000 reason=NoFreeSlot agent="curl/8"'
        )

    def test_empty(self) -> None:
        """What is not known is a hyphen."""
        assert line(method=b"-", uri=b"", version=b"", client=None).endswith(
            '"-" - -  id=- operation=none bucket=- key=- received=0 seconds=0.000000 first_byte=- reason=- agent=-'
        )

    def test_long_user_agent(self) -> None:
        """A user agent is bounded."""
        assert f'agent="{"x" * LONGEST_FIELD}"' in line(fields={"user-agent": ["x" * 5000]})

    def test_long_user_agent_with_a_password(self) -> None:
        """What is cut off of a user agent does not hide that the rest is a password."""
        agent = f"{'x' * (LONGEST_FIELD - 20)}//user:{SECRET}@host"
        assert SECRET[:3] not in line(fields={"user-agent": [agent]})

    @given(text=st.text(), data=st.binary())
    def test_nothing_can_be_forged(self, text: str, data: bytes) -> None:
        """Whatever a key, a user agent or a target has, the line is one, printable, and has as many quotes as usual."""
        written = line(key=f"k{text}", uri=b"/" + data, outcome="cut: x", fields={"user-agent": [text]})
        assert written.isprintable()
        assert len(re.findall(r'"(?:[^"\\]|\\.)*"', written)) == 3
        assert written.count(" agent=") >= 1

    @pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x9b", "\u2028", "\u202e", "\x7f", "\0"])
    def test_characters_that_change_a_terminal(self, character: str) -> None:
        """Line breaks, control sequences and changes of direction are escaped."""
        assert character not in line(key=character, fields={"user-agent": [character]}, outcome=character)


class RedactedTests:
    """Secrets in what a client has sent."""

    @pytest.mark.parametrize(
        "target",
        [
            f"/objects/a?X-Amz-Signature={SECRET}&x=1",
            f"/objects/a?x=1&X-Amz-Security-Token={SECRET}",
            f"/objects/a?x-amz-credential={SECRET}",
            f"/objects/a?X%2DAmz%2DSignatur%65={SECRET}",
            f"/objects/a?to%6ben={SECRET}",
            f"/objects/a?AWSAccessKeyId={SECRET}",
            f"/objects/a%3FX-Amz-Signature%3D{SECRET}%26x%3D1",
            f"http://user:{SECRET}@host/objects/a",
            f"/objects/http:%2F%2Fuser:{SECRET}%40host/a",
        ],
    )
    def test_target(self, target: str) -> None:
        """A password or a signature in a URL, also in one that became a key, is not in the line."""
        written = line(uri=target.encode(), key=target, fields={"authorization": [SECRET], "user-agent": [target]})
        assert SECRET not in written
        assert written.count("[redacted]") == 3

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
