"""The trace context of a request, as the W3C has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.model import TraceContext
from twisted_storaged.protocol.trace_context import trace_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def parsed(*parents: str, states: tuple[str, ...] = ()) -> TraceContext | None:
    """The trace context in these values of traceparent and tracestate."""
    return trace_context({"traceparent": list(parents), **({"tracestate": list(states)} if states else {})})


class ParentTests:
    """traceparent."""

    def test_valid(self) -> None:
        """A valid one is passed on as it is, and its trace id is known."""
        found = parsed(PARENT)
        assert found == TraceContext(PARENT, "")
        assert found.trace_id == TRACE

    @pytest.mark.parametrize("more", ["", "-", "-what-comes-later"])
    def test_a_later_version(self, more: str) -> None:
        """One of a later version is passed on as one of the version that is known."""
        assert parsed(f"cc-{TRACE}-{SPAN}-01{more}") == TraceContext(PARENT)

    @pytest.mark.parametrize(
        "given_",
        [
            "",
            "00",
            PARENT[:-1],
            f"{PARENT}0",
            f"{PARENT}-",
            f"{PARENT}-more",
            f" {PARENT}",
            f"{PARENT}\n",
            PARENT.upper(),
            f"ff-{TRACE}-{SPAN}-01",
            f"0x-{TRACE}-{SPAN}-01",
            f"cc-{TRACE}-{SPAN}-01.more",
            f"00-{'0' * 32}-{SPAN}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"00-{TRACE}-{SPAN}-0g",
            f"00_{TRACE}_{SPAN}_01",
            f"00-{TRACE[1:]}-{SPAN}-01",
        ],
    )
    def test_not_valid(self, given_: str) -> None:
        """A malformed one, or one without a trace or a parent, is as none."""
        assert parsed(given_, states=("a=b",)) is None

    def test_none_and_two(self) -> None:
        """Without one, or with two, there is no trace context."""
        assert trace_context({"tracestate": ["a=b"]}) is None
        assert parsed(PARENT, PARENT) is None

    @given(st.text())
    def test_anything(self, text: str) -> None:
        """Whatever a client sends, what is passed on has the form of a valid one, in one line."""
        for found in (parsed(text), parsed(f"01-{TRACE}-{SPAN}-01-{text}"), parsed(PARENT, states=(text,))):
            assert found is None or (len(found.parent) == len(PARENT) and f"{found.parent}{found.state}".isprintable())


class StateTests:
    """tracestate."""

    @pytest.mark.parametrize(
        ("states", "passed_on"),
        [
            (("a=b",), "a=b"),
            (("a=b, c=d",), "a=b,c=d"),
            (("a=b", "c=d"), "a=b,c=d"),
            (("a=b,,\t c=d ,",), "a=b,c=d"),
            (("tenant@system=x y/z", "0a_-*/=!"), "tenant@system=x y/z,0a_-*/=!"),
            ((",".join(f"k{n}=v" for n in range(32)),), ",".join(f"k{n}=v" for n in range(32))),
            (("",), ""),
            ((",".join(f"k{n}=v" for n in range(33)),), ""),
            (("a",), ""),
            (("A=b",), ""),
            (("a=b=c",), ""),
            (("a=",), ""),
            (("a=b\x7f",), ""),
            (("a=\u00e4",), ""),
            (("a=b", "c"), ""),
            ((f"a={'x' * 256},b={'x' * 255}",), ""),
        ],
    )
    def test_passed_on(self, states: tuple[str, ...], passed_on: str) -> None:
        """A valid one is passed on, in one field; one that is not valid, or too long, does not spoil traceparent."""
        assert parsed(PARENT, states=states) == TraceContext(PARENT, passed_on)
