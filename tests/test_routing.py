"""One key space over several buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from tests.support import MemoryBucket, entries, result
from twisted_storaged.errors import BucketError, UnknownBucket
from twisted_storaged.model import ListPage, ListQuery
from twisted_storaged.routing import Namespace, Policy, Registry, Rule

RULES = [Rule("a/", 1, "one"), Rule("a/b/", 1, "two"), Rule("c", 1, "one")]


def listed(namespace: Namespace, prefix: str, delimiter: str | None = None, after: str | None = None) -> list[str]:
    async def collect() -> list[str]:
        query = ListQuery(prefix, delimiter, after)
        return [name async for page in namespace.pages(query) for name in page.names()]

    return result(Deferred.fromCoroutine(collect()))


class NamespaceTests:
    """Which bucket has a key, and how lists are merged."""

    def test_a_key_lives_where_the_policy_says(self) -> None:
        """The bucket of a key is that of the rule with the longest matching prefix."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        namespace = Namespace(Policy(RULES), Registry(buckets))
        assert [namespace.bucket_for(key).name for key in ("x", "a/x", "a/b/x", "cx")] == [
            "primary",
            "one",
            "two",
            "one",
        ]

    def test_an_unknown_bucket_is_named(self) -> None:
        """A bucket that does not exist raises UnknownBucket with its name."""
        with pytest.raises(UnknownBucket, match="one"):
            Namespace(Policy(RULES), Registry([MemoryBucket()])).bucket_for("a/x")

    @given(
        keys=st.sets(st.text("abc/é😀\uffff", min_size=1, max_size=5), max_size=30),
        strays=st.sets(st.text("abc/", min_size=1, max_size=4), max_size=5),
        prefix=st.text("abc/", max_size=3),
        page=st.integers(1, 4),
    )
    def test_a_list_is_as_of_one_bucket(self, keys: set[str], strays: set[str], prefix: str, page: int) -> None:
        """A list has all keys in order, each once, and none that the policy finds in another bucket."""
        buckets = {name: MemoryBucket(name, page) for name in ("primary", "one", "two")}
        namespace = Namespace(Policy(RULES), Registry(buckets.values()))
        for key in keys:
            buckets[namespace.rule_for(key).bucket].objects[key] = b""
        for key in strays:
            wrong = "two" if namespace.rule_for(key).bucket == "primary" else "primary"
            buckets[wrong].objects[key] = b""
        expected = sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
        assert listed(namespace, prefix) == expected

    def test_trouble_of_any_bucket_is_trouble(self) -> None:
        """A list fails if any of the buckets that it reads fails."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        buckets[2].failing = BucketError("down")
        namespace = Namespace(Policy(RULES), Registry(buckets))
        with pytest.raises(BucketError):
            listed(namespace, "")
        assert listed(namespace, "x") == []

    def test_a_list_that_cannot_be_is_trouble(self) -> None:
        """A bucket whose tokens repeat makes the list fail, whether it is the only one or one of several."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        namespace = Namespace(Policy(RULES), Registry(buckets))
        asked = []

        def again(query: ListQuery, token: str | None = None) -> object:
            asked.append(token)
            return succeed(ListPage([], "token"))

        buckets[0].list = again  # type: ignore[method-assign,assignment]
        for prefix in ("", "x"):
            with pytest.raises(BucketError, match="cycle"):
                listed(namespace, prefix)
        assert len(asked) < 10

    @given(
        keys=st.sets(st.text("abc/é", min_size=1, max_size=6), max_size=30),
        prefix=st.text("abc/", max_size=2),
        after=st.text("abc/", max_size=3),
        page=st.integers(1, 4),
    )
    def test_common_prefixes_are_as_of_one_bucket(self, keys: set[str], prefix: str, after: str, page: int) -> None:
        """A common prefix is listed once even if several buckets have keys below it."""
        buckets = {name: MemoryBucket(name, page) for name in ("primary", "one", "two")}
        namespace = Namespace(Policy(RULES), Registry(buckets.values()))
        for key in keys:
            buckets[namespace.rule_for(key).bucket].objects[key] = b""
        expected = entries(keys, ListQuery(prefix, "/", after))
        assert listed(namespace, prefix, "/", after) == expected

    def test_a_bucket_can_be_asked_for(self) -> None:
        """A bucket can be selected by name, whatever the policy says."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        namespace = Namespace(Policy(RULES), Registry(buckets))
        buckets[2].objects = {"x": b"", "a/x": b""}
        assert namespace.bucket_for("x", "two") is buckets[2]

        async def collect() -> list[str]:
            return [name async for page in namespace.pages(ListQuery(), "two") for name in page.names()]

        assert result(Deferred.fromCoroutine(collect())) == ["a/x", "x"]
