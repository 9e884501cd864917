"""The line of the access log for a request that has ended."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address

from tests.daemon import ROOT
from twisted_storaged.model import TraceContext
from twisted_storaged.runtime.log_format import LogFormat, redacted
from twisted_storaged.server.ended_requests import LONGEST_FIELD, LONGEST_TARGET, AccessLog, EndedRequest

CLIENT = IPv4Address("TCP", "10.0.0.7", 4711)
#: A secret that does not look like one.
SECRET = "hunter2"
#: What the tables of fields begin with in the page on logs.
TABLES = ["| field of each object |", "| field | in text |"]


def line(log_format: LogFormat = "text", **values: object) -> str:
    """The line of a request with these values."""
    defaults = {"at": 0.0, "client": CLIENT, "method": b"PUT", "uri": b"/objects/a", "version": b"HTTP/1.1"}
    return AccessLog(log_format).line(EndedRequest(**{**defaults, **values}))  # type: ignore[arg-type]


def fields(**values: object) -> dict[str, Any]:
    """The fields of the line in JSON of a request with these values."""
    found: dict[str, Any] = json.loads(line("json", **values))
    return found


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
            trace=TraceContext(f"00-{'4b' * 16}-{'0a' * 8}-01"),
        )
        assert whole == (
            '10.0.0.7 - - [01/Jan/1970:00:00:00 +0000] "PUT /objects/a HTTP/1.1" 503 9 complete id=abc operation=put '
            'bucket=primary key="a b" received=3 seconds=0.250000 first_byte=0.125000 reason=NoFreeSlot '
            f'trace={"4b" * 16} agent="curl/8"'
        )

    def test_empty(self) -> None:
        """What is not known is a hyphen."""
        assert line(method=b"-", uri=b"", version=b"", client=None).endswith(
            '"-" - -  id=- operation=none bucket=- key=- received=0 seconds=0.000000 first_byte=- reason=-'
            " trace=- agent=-"
        )

    def test_long_request_line(self) -> None:
        """A method and a target are bounded: a batch of requests with 16 KiB each would keep the daemon busy."""
        long: dict[str, Any] = {"method": b"G" * 5000, "uri": b"/" + b"x" * 5000, "version": b"HTTP/1.1"}
        shown = "G" * LONGEST_FIELD, "/" + "x" * (LONGEST_TARGET - 1), "HTTP/1.1"
        assert f'"{" ".join(shown)}"' in line(**long)
        found = json.loads(line("json", **long))
        assert (found["method"], found["target"], found["version"]) == shown

    def test_long_target_with_a_password(self) -> None:
        """What is cut off of a target does not hide that the rest is a password."""
        target = f"/{'x' * (LONGEST_TARGET - 20)}//user:{SECRET}@host"
        assert SECRET[:3] not in line(uri=target.encode())
        assert SECRET[:3] not in line("json", uri=target.encode())

    def test_long_user_agent(self) -> None:
        """A user agent is bounded."""
        assert f'agent="{"x" * LONGEST_FIELD}"' in line(fields={"user-agent": ["x" * 5000]})

    def test_long_user_agent_with_a_password(self) -> None:
        """What is cut off of a user agent does not hide that the rest is a password."""
        agent = f"{'x' * (LONGEST_FIELD - 20)}//user:{SECRET}@host"
        assert SECRET[:3] not in line(fields={"user-agent": [agent]})
        assert SECRET[:3] not in line("json", fields={"user-agent": [agent]})

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


class JsonTests:
    """What a line in JSON has."""

    def test_whole(self) -> None:
        """A line has each field by its name and type, and those that all lines of the log have."""
        assert fields(
            at=1.25,
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
            trace=TraceContext(f"00-{'4b' * 16}-{'0a' * 8}-01"),
        ) == {
            "time": "1970-01-01T00:00:01.250000Z",
            "level": "info",
            "namespace": "storaged.access",
            "message": "PUT /objects/a HTTP/1.1",
            "client": "10.0.0.7",
            "method": "PUT",
            "target": "/objects/a",
            "version": "HTTP/1.1",
            "status": 503,
            "sent": 9,
            "outcome": "complete",
            "id": "abc",
            "operation": "put",
            "bucket": "primary",
            "key": "a b",
            "received": 3,
            "seconds": 0.25,
            "first_byte": 0.125,
            "reason": "NoFreeSlot",
            "trace": "4b" * 16,
            "agent": "curl/8",
        }

    def test_empty(self) -> None:
        """What is not known is null; the same fields are there."""
        found = fields(method=b"-", uri=b"", version=b"", client=None, outcome="cut: no request")
        assert found.keys() == fields().keys()
        unknown = {name for name, value in found.items() if value is None}
        texts = {"client", "method", "target", "version", "id", "bucket", "key", "reason", "trace", "agent"}
        assert unknown == texts | {"status", "first_byte"}
        assert found["message"] == found["outcome"] == "cut: no request"

    def test_is_documented(self) -> None:
        """The page on logs has each field, in its order."""
        page = (ROOT / "docs" / "logs.md").read_text("utf-8")
        tables = [re.findall(r"^\| (`.*?) \|", page.partition(begin)[2].partition("\n\n")[0], re.M) for begin in TABLES]
        documented = [name for table in tables for names in table for name in re.findall(r"`(\w+)`", names)]
        assert documented == [*list(fields())[:4], "traceback", *list(fields())[4:]]

    @given(st.floats(0, 4e9))
    def test_time(self, at: float) -> None:
        """The time is that of the request, to a microsecond."""
        read = datetime.strptime(fields(at=at)["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert abs(read.timestamp() - at) <= 2e-6

    @given(text=st.text(min_size=1), data=st.binary(min_size=1))
    def test_nothing_can_be_forged(self, text: str, data: bytes) -> None:
        """Whatever a client sends, the line is one, printable, has the same fields, and can be read again."""
        values: dict[str, Any] = {"uri": b"/" + data, "key": text, "outcome": text, "fields": {"user-agent": [text]}}
        assert line("json", **values).isprintable()
        found = fields(**values)
        assert found.keys() == fields().keys()
        assert (found["key"], found["outcome"]) == (redacted(text), text)
        assert found["agent"] == redacted(text)[:LONGEST_FIELD]
        assert found["message"] == f"PUT {found['target']} HTTP/1.1"
        assert (found["method"], found["version"], found["id"]) == ("PUT", "HTTP/1.1", None)

    @given(st.binary(min_size=1).filter(lambda data: b" " not in data))
    def test_method(self, data: bytes) -> None:
        """A method that is none of HTTP is escaped."""
        found = fields(method=data)
        assert (found["target"], found["version"]) == ("/objects/a", "HTTP/1.1")


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
        sent = {"authorization": [SECRET], "user-agent": [target]}
        written = line(uri=target.encode(), key=target, fields=sent)
        assert SECRET not in written
        assert written.count("[redacted]") == 3
        found = fields(uri=target.encode(), key=target, fields=sent)
        assert SECRET not in str(found)
        assert all("[redacted]" in found[name] for name in ("message", "target", "key", "agent"))
