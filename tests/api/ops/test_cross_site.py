"""Tokens, and what browsers say of where a request comes from. The rest is in test_page."""

from __future__ import annotations

import os

import pytest
from twisted.internet.task import Clock

from twisted_storaged.api.ops.cross_site import PERIOD, Tokens, make_key, make_key_file, read_key
from twisted_storaged.errors import CrossSiteRequest


def test_processes_agree() -> None:
    """Processes that have the same file have the same tokens; other daemons have others."""
    clock = Clock()
    file = make_key_file()
    try:
        one, other = Tokens(read_key(file), clock.seconds), Tokens(read_key(file), clock.seconds)
    finally:
        os.close(file)
    other.check(one.make())
    with pytest.raises(CrossSiteRequest, match="open the page again"):
        Tokens(make_key(), clock.seconds).check(one.make())


def test_age() -> None:
    """A token is valid in its period and in the next one."""
    clock = Clock()
    tokens = Tokens(make_key(), clock.seconds)
    token = tokens.make()
    clock.advance(2 * PERIOD - 1)
    assert tokens.make() != token
    tokens.check(token)
    clock.advance(1)
    with pytest.raises(CrossSiteRequest):
        tokens.check(token)


@pytest.mark.parametrize("token", [None, "", "0" * 64, "ü", "\ud800"])
def test_wrong_tokens(token: str | None) -> None:
    """Anything else is refused."""
    with pytest.raises(CrossSiteRequest):
        Tokens(make_key(), Clock().seconds).check(token)
