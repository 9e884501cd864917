"""Pages of lists: read fast where they are written as usual, and right in any case."""

from __future__ import annotations

from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.buckets.objects import ListPage, ListQuery, ObjectInfo
from twisted_storaged.errors import BucketError
from twisted_storaged.s3 import listing
from twisted_storaged.s3.listing import list_parameters, parse_list, sorted_after
from twisted_storaged.s3.wire import Answer

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TIME = "2023-11-14T22:13:20.500Z"


def page(*parts: str) -> Answer:
    """A page with these elements."""
    answer = Answer(200, {})
    head = '<?xml version="1.0"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    answer.body = f"{head}<EncodingType>url</EncodingType>{''.join(parts)}</ListBucketResult>\n".encode()
    return answer


def an_object(key: str, size: int = 5, etag: str = "&quot;e&quot;", time: str = TIME, more: str = "") -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag>{more}<Size>{size}</Size>"
        "<StorageClass>STANDARD</StorageClass><Owner><ID>x</ID></Owner></Contents>"
    )


def a_prefix(name: str) -> str:
    return f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow way would be noticed."""
    monkeypatch.delattr(listing, "_parse")


class ParseListTests:
    """What is in a page."""

    @pytest.mark.usefixtures("no_parser")
    @pytest.mark.parametrize("etag", ["&quot;e&quot;", '"e"', "&#34;e&#34;", "e"])
    @pytest.mark.parametrize(
        "more", ["", "<ChecksumAlgorithm>CRC32C</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"]
    )
    def test_is_read_fast(self, etag: str, more: str) -> None:
        """As AWS, Ceph, Swift, rclone and moto write it."""
        token = "<NextContinuationToken>1/to+ken=</NextContinuationToken>"
        answer = page(token, an_object("p/a%20b", etag=etag, more=more), a_prefix("p/c%2Fd/"), an_object("p/z", 7))
        seconds = 1_700_000_000.5
        objects = [ObjectInfo("a b", 5, "e", seconds), ObjectInfo("z", 7, "e", seconds)]
        assert parse_list(answer, "p/") == ListPage(objects, "1/to+ken=", ("c/d/",))

    @pytest.mark.usefixtures("no_parser")
    def test_an_empty_page(self) -> None:
        """Has nothing, and no token."""
        assert parse_list(page("<ContinuationToken>x</ContinuationToken>"), "") == ListPage([], None)

    @given(names=st.lists(NAMES, max_size=5), prefixes=st.lists(NAMES, max_size=3), plus=st.booleans())
    def test_names_are_as_they_were(self, names: list[str], prefixes: list[str], plus: bool) -> None:
        """Whatever is in them, in either of the encodings that engines use."""

        def encoded(name: str) -> str:
            text = quote(name, safe="/")
            return text.replace("%20", "+") if plus else text

        answer = page(*[an_object(encoded(name)) for name in names], *[a_prefix(encoded(name)) for name in prefixes])
        read = parse_list(answer, "")
        assert ([info.key for info in read.objects], list(read.prefixes)) == (names, prefixes)

    @pytest.mark.parametrize(
        "written",
        [
            # Another order, comments, CDATA, references, attributes, times with an offset.
            f"<Contents><Size>5</Size><ETag>e</ETag><LastModified>{TIME}</LastModified><Key>a</Key></Contents>",
            an_object("a").replace("</Key>", "</Key><!-- x -->"),
            an_object("<![CDATA[a]]>"),
            an_object("&#97;"),
            an_object("a").replace("<Contents>", '<Contents a="b">'),
            an_object("a").replace(TIME, "2023-11-14T23:13:20.5+01:00"),
        ],
    )
    def test_is_read_anyhow(self, written: str) -> None:
        """However it is written; also beside what is written as usual."""
        answer = page(an_object("0"), written)
        objects = [ObjectInfo("0", 5, "e", 1_700_000_000.5), ObjectInfo("a", 5, "e", 1_700_000_000.5)]
        assert parse_list(answer, "") == ListPage(objects, None)

    def test_a_prefix_that_is_written_otherwise(self) -> None:
        """Is not passed over."""
        prefix = f"<CommonPrefixes><Owner/><Prefix>{escape('a&b/')}</Prefix></CommonPrefixes>"
        token = "<NextContinuationToken>&lt;</NextContinuationToken>"
        assert parse_list(page(prefix, token), "") == ListPage([], "<", ("a&b/",))

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"not XML",
            b"<ListBucketResult><Contents></ListBucketResult>",
            b"<Error><Code>InternalError</Code></Error>",
            b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
            b"\xff",
        ],
    )
    def test_what_is_none(self, body: bytes) -> None:
        """Is trouble, never an empty page."""
        answer = Answer(200, {})
        answer.body = body
        with pytest.raises(BucketError, match="not a list"):
            parse_list(answer, "")


class QueryTests:
    """What is asked for."""

    def test_only_what_is_needed(self) -> None:
        """A plain list says no more than its prefix."""
        assert list_parameters(ListQuery("a"), None, "p/") == {"prefix": "p/a"}

    def test_all_of_it(self) -> None:
        """With the bucket's own prefix where keys are meant."""
        assert list_parameters(ListQuery("a", "/", "ab", 10), "t", "p/") == {
            "prefix": "p/a",
            "delimiter": "/",
            "start-after": "p/ab",
            "max-keys": "10",
            "continuation-token": "t",
        }

    def test_what_sorts_before_is_left_out(self) -> None:
        """A common prefix of later keys may be no later itself."""
        infos = [ObjectInfo(key, 0, "e", 0.0) for key in ("a", "a/b", "é", "\uffee", "😀")]
        read = sorted_after(ListPage(infos, "t", ("a/", "é/", "😀/")), "\uffee")
        assert read == ListPage(infos[-1:], "t", ("😀/",))
