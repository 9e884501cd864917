"""How text from elsewhere is shown in a log."""

from __future__ import annotations

import json
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.runtime.log_format import printable, quoted


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
