"""Rules by key prefix: how large a body may be, and which bucket it goes to. The longest matching prefix wins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MiB = 1 << 20
GiB = 1 << 30

#: The bucket of every key that no rule sends elsewhere.
PRIMARY = "primary"

#: A vector index is written as ONE object, so that it can never be half there.
VECTORS_PREFIX = "_vectors/"

#: Caps on one body, in bytes. 4 GiB covers more than 700 K vectors at d=768.
DEFAULT_MAX_PUT = 256 * MiB
VECTORS_MAX_PUT = 4 * GiB


@dataclass(frozen=True)
class Rule:
    """What holds for the keys that start with `prefix`: the cap in bytes, and the name of their bucket."""

    prefix: str
    max_put: int
    bucket: str = PRIMARY


DEFAULT_RULES = (Rule("", DEFAULT_MAX_PUT), Rule(VECTORS_PREFIX, VECTORS_MAX_PUT))


class Policy:
    """A set of rules, one per prefix; a later rule takes the place of an earlier one with the same prefix."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        by_prefix = {rule.prefix: rule for rule in (*DEFAULT_RULES, *rules)}
        self._rules = sorted(by_prefix.values(), key=lambda rule: len(rule.prefix), reverse=True)

    def rule_for(self, key: str) -> Rule:
        """The rule with the longest prefix of `key`. There always is one: the empty prefix has a rule."""
        for rule in self._rules:
            if key.startswith(rule.prefix):
                break
        return rule

    def buckets_under(self, prefix: str) -> set[str]:
        """The names of all buckets that can hold a key which starts with `prefix`."""
        deeper = {rule.bucket for rule in self._rules if rule.prefix.startswith(prefix)}
        return deeper | {self.rule_for(prefix).bucket}
