"""Header fields: which form of a response a client prefers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.protocol.http_fields import preference

OFFERED = ("text/plain", "application/problem+json", "application/x-other")


def preferred(*accept: str) -> str:
    """What a client with these values of Accept prefers."""
    return preference(SimpleNamespace(fields={"accept": list(accept)} if accept else {}), OFFERED)


class PreferenceTests:
    """Accept. RFC 9110, 12.5.1."""

    @pytest.mark.parametrize(
        "accept",
        [
            (),
            ("",),
            ("*/*",),
            ("application/*",),
            ("application/*, */*;q=0.1",),
            ("text/plain",),
            ("text/html",),
            ("application/problem+json;q=0",),
            ("application/problem+json;q=0.000",),
            ("application/problem+json;q=0.5, text/plain",),
            ("application/problem+json;q=0.5, text/*;q=0.6",),
            ("application/problem+json;q=0.5, */*",),
            ("application/problem+json;q=0.5, */*;q=0.1, text/plain;q=0.7",),
            ("application/problem+jsonx",),
            ("xapplication/problem+json",),
            ("application/problem+json;q=2",),
            ("application/problem+json;q=-1",),
            ("application/problem+json;q=0.1234",),
            ("application/problem+json;q=nan",),
            ("application/problem+json;q=",),
            ('x/y;a="application/problem+json"',),
            ('x/y;a=",application/problem+json,"',),
            ('x/y;a="\\",application/problem+json,"',),
        ],
    )
    def test_the_first(self, accept: tuple[str, ...]) -> None:
        """The first form is for all who do not name another, or prefer the first; a malformed weight counts as none."""
        assert preferred(*accept) == "text/plain"

    @pytest.mark.parametrize(
        "accept",
        [
            ("application/problem+json",),
            ("APPLICATION/Problem+JSON",),
            (" application/problem+json ",),
            ("application/problem+json; charset=utf-8",),
            ("application/problem+json;q=0.001",),
            ("application/problem+json, */*",),
            ("*/*, application/problem+json",),
            ("application/problem+json, text/plain",),
            ("application/problem+json;q=0.5, text/plain;q=0.4, */*",),
            ("application/problem+json;q=0.5, text/*;q=0.5, */*",),
            ("application/problem+json;q=0.1, application/problem+json",),
            ("application/json, application/problem+json;Q=0.9, */*;q=0.8",),
            ("application/problem+json;q=0.9, application/x-other;q=0.8",),
            ('x/y;a="b,c;q=0", application/problem+json',),
            ("text/html", "application/problem+json"),
            (",,application/problem+json,,",),
        ],
    )
    def test_another(self, accept: tuple[str, ...]) -> None:
        """Another form is for those who name it, with no lower weight than the first has."""
        assert preferred(*accept) == "application/problem+json"

    def test_the_best_of_others(self) -> None:
        """Of several others, the one with the highest weight counts."""
        assert preferred("application/problem+json;q=0.8, application/x-other;q=0.9") == "application/x-other"

    @given(st.text())
    def test_anything(self, accept: str) -> None:
        """Whatever a client sends, it gets one of the forms."""
        assert preferred(accept) in OFFERED
        assert preferred(f"{accept},application/problem+json") in OFFERED

    @pytest.mark.parametrize("piece", ['\\"', '"', '"\\', ",", ";", ";q=", "a/b;", " "])
    def test_hostile(self, piece: str) -> None:
        """A long value takes time in proportion to its length."""
        assert preferred("application/problem+json;" + piece * 100_000) in OFFERED
        assert preferred('x/y;a="' + piece * 100_000 + "application/problem+json") in OFFERED
