"""Rules by prefix, the registry of buckets, the key space over several buckets, and checks of their lists."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from tests.support import MemoryBucket, entries, result
from twisted_storaged.errors import BucketError, BucketFailed, StartError, UnknownBucket
from twisted_storaged.model import ListPage, ListQuery, ObjectInfo
from twisted_storaged.routing import (
    DEFAULT_MAX_PUT,
    EMPTY_PAGES,
    VECTORS_MAX_PUT,
    VECTORS_PREFIX,
    ListChecker,
    Namespace,
    Policy,
    Registry,
    Rule,
)


class DefaultRulesTests:
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


class RegistryTests:
    """Finding, opening and closing buckets."""

    def test_by_name(self) -> None:
        """A bucket is found by its name, and an unknown name raises UnknownBucket."""
        one, two = MemoryBucket("one"), MemoryBucket("two")
        registry = Registry([one, two])
        registry.start()
        assert (registry.get("one"), registry.get("two")) == (one, two)
        with pytest.raises(UnknownBucket, match="three"):
            registry.get("three")
        result(registry.stop())

    def test_a_bucket_that_cannot_be_opened(self) -> None:
        """If a bucket cannot be opened, the buckets that were opened before it are closed, and no others."""
        calls: list[str] = []

        class RecordingBucket(MemoryBucket):
            def start(self) -> None:
                calls.append(f"start {self.name}")
                if self.name == "two":
                    raise StartError("no")

            def close(self) -> None:
                calls.append(f"close {self.name}")

        with pytest.raises(StartError):
            Registry([RecordingBucket("one"), RecordingBucket("two"), RecordingBucket("three")]).start()
        assert calls == ["start one", "start two", "close one"]


RULES = [Rule("a/", 1, "one"), Rule("a/b/", 1, "two"), Rule("c", 1, "one")]


def listed(namespace: Namespace, prefix: str, delimiter: str | None = None, after: str | None = None) -> list[str]:
    async def collect() -> list[str]:
        query = ListQuery(prefix, delimiter, after)
        return [name async for page in namespace.pages(query) for name in page.names()]

    return result(Deferred.fromCoroutine(collect()))


class NamespaceTests:
    """Which bucket has a key, and how lists are merged."""

    def test_the_bucket_of_a_key(self) -> None:
        """The bucket of a key is that of the rule with the longest matching prefix."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        namespace = Namespace(Policy(RULES), Registry(buckets))
        assert [namespace.bucket_for(key).name for key in ("x", "a/x", "a/b/x", "cx")] == [
            "primary",
            "one",
            "two",
            "one",
        ]

    def test_an_unknown_bucket(self) -> None:
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

    def test_a_bucket_that_fails(self) -> None:
        """A list fails if any of the buckets that it reads fails."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        buckets[2].failing = BucketError("down")
        namespace = Namespace(Policy(RULES), Registry(buckets))
        with pytest.raises(BucketError):
            listed(namespace, "")
        assert listed(namespace, "x") == []

    def test_an_impossible_list(self) -> None:
        """A bucket whose tokens repeat makes the list fail, whether it is the only one or one of several."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        namespace = Namespace(Policy(RULES), Registry(buckets))
        asked = []

        def again(query: ListQuery, token: str | None = None) -> object:
            asked.append(token)
            return succeed(ListPage([], "token"))

        buckets[0].list = again  # type: ignore[method-assign,assignment]
        for prefix in ("", "x"):
            with pytest.raises(BucketFailed, match="cycle"):
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

    def test_a_bucket_by_name(self) -> None:
        """A bucket can be selected by name, whatever the policy says."""
        buckets = [MemoryBucket(name) for name in ("primary", "one", "two")]
        namespace = Namespace(Policy(RULES), Registry(buckets))
        buckets[2].objects = {"x": b"", "a/x": b""}
        assert namespace.bucket_for("x", "two") is buckets[2]

        async def collect() -> list[str]:
            return [name async for page in namespace.pages(ListQuery(), "two") for name in page.names()]

        assert result(Deferred.fromCoroutine(collect())) == ["a/x", "x"]


def page(*keys: str, token: str | None = None, prefixes: tuple[str, ...] = (), ordered: bool = True) -> ListPage:
    return ListPage([ObjectInfo(key, 0, "e", 0.0) for key in keys], token, prefixes, ordered)


def check(*pages: ListPage) -> None:
    checker = ListChecker()
    for one in pages:
        checker.take(one)


class ListOrderTests:
    """Entries must be in the order of the bytes of their names, each once."""

    def test_a_list(self) -> None:
        """Objects and common prefixes may be mixed, pages may be empty, and the order is that of UTF-8, not UTF-16."""
        check(page("a", "c", prefixes=("b/",)), page(), page("d"), page(prefixes=("e/", "\uffff/")), page("😀"))

    @pytest.mark.parametrize(
        "pages",
        [
            [page("b", "a")],
            [page("a", "a")],
            [page("b"), page("a")],
            [page("a"), page("a")],
            [page(prefixes=("b/", "a/"))],
            [page("a", prefixes=("b/",)), page("b")],
            [page("a", prefixes=("b/",)), page(prefixes=("b/",))],
            [page("c", prefixes=("b/",)), page("bx")],
            [page("😀", "\uffff")],
            [page("b"), page(), page("a")],
        ],
    )
    def test_out_of_order(self, pages: list[ListPage]) -> None:
        """Entries out of order, on one page or from one to the next, are an error."""
        with pytest.raises(BucketFailed, match="order"):
            check(*pages)

    def test_where_none_is_promised(self) -> None:
        """The order is not checked where the bucket promises none."""
        check(page("b", "a", ordered=False), page("a", ordered=False, prefixes=("b/", "a/")))


class ListEndTests:
    """Every list ends, even that of a faulty engine."""

    @given(before=st.integers(0, 20), length=st.integers(1, 50))
    def test_tokens_that_repeat(self, before: int, length: int) -> None:
        """A cycle of tokens is found after a number of pages that its start and length bound."""
        numbers = range(4 * (before + length))
        tokens = [number if number < before else before + (number - before) % length for number in numbers]
        with pytest.raises(BucketFailed, match="cycle"):
            check(*(page("a", token=str(token), ordered=False) for token in tokens))

    def test_tokens_that_do_not(self) -> None:
        """A long list without repeated tokens is accepted."""
        checker = ListChecker()
        for number in range(5000):
            checker.take(page(f"{number:04}", token=str(number)))
        checker.take(page())

    def test_pages_that_stay_empty(self) -> None:
        """Too many consecutive empty pages are an error; a page with an entry restarts the count."""
        checker, tokens = ListChecker(), map(str, count())
        for key in ("a", "b"):
            for _ in range(EMPTY_PAGES):
                checker.take(page(token=next(tokens)))
            checker.take(page(key, token=next(tokens)))
        for _ in range(EMPTY_PAGES):
            checker.take(page(token=next(tokens)))
        with pytest.raises(BucketFailed, match="pages of a list are empty"):
            checker.take(page(token=next(tokens)))
