"""Size limits and buckets by prefix."""

from __future__ import annotations

import pytest

from twisted_storaged.routing import DEFAULT_MAX_PUT, VECTORS_MAX_PUT, VECTORS_PREFIX, Policy, Rule


class DefaultsTests:
    """The rules without configuration."""

    def test_the_vectors_prefix_is_pinned(self) -> None:
        """The prefix of vector indexes does not change, since clients depend on it."""
        assert VECTORS_PREFIX == "_vectors/"
        assert VECTORS_MAX_PUT == 4 * 1024**3
        assert DEFAULT_MAX_PUT == 256 * 1024**2

    @pytest.mark.parametrize("key", [VECTORS_PREFIX + "a", VECTORS_PREFIX, "_vectors/a/b", "_vectors//"])
    def test_vectors_may_be_large(self, key: str) -> None:
        """The limit for vector indexes is 4 GiB, as each is one object."""
        assert Policy().rule_for(key).max_put == VECTORS_MAX_PUT

    @pytest.mark.parametrize(
        "key", ["x_vectors/a", "_vectorsX", "a/_vectors/b", "_vector/s", "_vectors", "a", "_Vectors/a"]
    )
    def test_all_else_may_not(self, key: str) -> None:
        """Keys that only resemble the prefix of vector indexes have the default limit."""
        assert Policy().rule_for(key).max_put == DEFAULT_MAX_PUT


class RulesTests:
    """Configured rules."""

    def test_the_longest_prefix_wins(self) -> None:
        """The rule with the longest matching prefix applies, in whatever order the rules are."""
        policy = Policy([Rule("a/", 1), Rule("a/b/", 2), Rule("a", 3)])
        assert [policy.rule_for(key).max_put for key in ("a/b/c", "a/c", "ac", "b")] == [2, 1, 3, DEFAULT_MAX_PUT]

    def test_a_rule_replaces_the_default_of_its_prefix(self) -> None:
        """A configured rule replaces the default one of the same prefix, also of the empty prefix."""
        policy = Policy([Rule("", 7), Rule(VECTORS_PREFIX, 8)])
        assert (policy.rule_for("a").max_put, policy.rule_for("_vectors/a").max_put) == (7, 8)

    def test_buckets_under_a_prefix(self) -> None:
        """A list reads the bucket of its prefix and those of all longer prefixes."""
        policy = Policy([Rule("a/", 1, "one"), Rule("a/b/", 1, "two"), Rule("c", 1, "three")])
        assert policy.buckets_under("") == {"primary", "one", "two", "three"}
        assert policy.buckets_under("a/") == {"one", "two"}
        assert policy.buckets_under("a/b/c") == {"two"}
        assert policy.buckets_under("a") == {"primary", "one", "two"}
        assert policy.buckets_under("cd") == {"three"}
