"""Caps and buckets by prefix."""

from __future__ import annotations

import pytest

from twisted_storaged.routing import DEFAULT_MAX_PUT, VECTORS_MAX_PUT, VECTORS_PREFIX, Policy, Rule


class DefaultsTests:
    """What holds when nobody configured anything."""

    def test_the_vectors_prefix_is_pinned(self) -> None:
        """Clients have this prefix written into them."""
        assert VECTORS_PREFIX == "_vectors/"
        assert VECTORS_MAX_PUT == 4 * 1024**3
        assert DEFAULT_MAX_PUT == 256 * 1024**2

    @pytest.mark.parametrize("key", [VECTORS_PREFIX + "a", VECTORS_PREFIX, "_vectors/a/b", "_vectors//"])
    def test_vectors_may_be_large(self, key: str) -> None:
        """One index is one object."""
        assert Policy().rule_for(key).max_put == VECTORS_MAX_PUT

    @pytest.mark.parametrize(
        "key", ["x_vectors/a", "_vectorsX", "a/_vectors/b", "_vector/s", "_vectors", "a", "_Vectors/a"]
    )
    def test_all_else_may_not(self, key: str) -> None:
        """The prefix matches at the front and to its last byte."""
        assert Policy().rule_for(key).max_put == DEFAULT_MAX_PUT


class RulesTests:
    """What an operator configured."""

    def test_the_longest_prefix_wins(self) -> None:
        """In whatever order the rules stand."""
        policy = Policy([Rule("a/", 1), Rule("a/b/", 2), Rule("a", 3)])
        assert [policy.rule_for(key).max_put for key in ("a/b/c", "a/c", "ac", "b")] == [2, 1, 3, DEFAULT_MAX_PUT]

    def test_a_rule_replaces_the_default_of_its_prefix(self) -> None:
        """Also of the empty one."""
        policy = Policy([Rule("", 7), Rule(VECTORS_PREFIX, 8)])
        assert (policy.rule_for("a").max_put, policy.rule_for("_vectors/a").max_put) == (7, 8)

    def test_buckets_under_a_prefix(self) -> None:
        """A list has to ask the prefix's own bucket and those of all prefixes below."""
        policy = Policy([Rule("a/", 1, "one"), Rule("a/b/", 1, "two"), Rule("c", 1, "three")])
        assert policy.buckets_under("") == {"primary", "one", "two", "three"}
        assert policy.buckets_under("a/") == {"one", "two"}
        assert policy.buckets_under("a/b/c") == {"two"}
        assert policy.buckets_under("a") == {"primary", "one", "two"}
        assert policy.buckets_under("cd") == {"three"}
