"""Pages of ListObjectsV2: requests for them, and both ways to parse them."""

from __future__ import annotations

from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.errors import BucketFailed
from twisted_storaged.model import ListPage, ListQuery, ObjectInfo
from twisted_storaged.protocol import s3_xml as listing
from twisted_storaged.protocol.http1 import Response
from twisted_storaged.protocol.s3_xml import list_parameters, parse_list, sorted_after

LETTERS = st.characters(exclude_categories=["Cs"])
NAMES = st.text(LETTERS, min_size=1, max_size=12)
FOLDERS = st.text(LETTERS.filter(lambda letter: letter != "/"), max_size=11).map(lambda name: f"{name}/")
ALL_KEYS = ListQuery(delimiter="/")
TIME = "2023-11-14T22:13:20.500Z"


#: Elements of a page beside its entries: names are encoded; this is the last page; more pages follow.
ENCODED, ALL = "<EncodingType>url</EncodingType>", "<IsTruncated>false</IsTruncated>"
MORE = "<IsTruncated>true</IsTruncated>"


def page(*parts: str, said: str = ENCODED + ALL) -> Response:
    """A response whose page has these elements."""
    response = Response(200, {})
    head = '<?xml version="1.0"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    response.body = f"{head}{said}{''.join(parts)}</ListBucketResult>\n".encode()
    return response


def parsed(response: Response, prefix: str = "", query: ListQuery = ALL_KEYS) -> ListPage:
    return parse_list(response, query, prefix)


def an_object(key: str, size: object = 5, etag: str = "&quot;e&quot;", time: str = TIME, more: str = "") -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag>{more}<Size>{size}</Size>"
        "<StorageClass>STANDARD</StorageClass><Owner><ID>x</ID></Owner></Contents>"
    )


def a_prefix(name: str) -> str:
    return f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test fail that needs the XML parser."""
    monkeypatch.delattr(listing, "_parse")


class ParseListTests:
    """`parse_list`."""

    @pytest.mark.usefixtures("no_parser")
    @pytest.mark.parametrize("etag", ["&quot;e&quot;", '"e"', "&#34;e&#34;", "e"])
    @pytest.mark.parametrize(
        "more", ["", "<ChecksumAlgorithm>CRC32C</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"]
    )
    def test_a_usual_page(self, etag: str, more: str) -> None:
        """A page as AWS, Ceph, Swift, rclone and moto write it is parsed without the XML parser."""
        token = "<NextContinuationToken>1/to+ken=</NextContinuationToken>"
        response = page(token, an_object("p/a%20b", etag=etag, more=more), a_prefix("p/c%2F"), an_object("p/z", 7))
        seconds = 1_700_000_000.5
        objects = [ObjectInfo("a b", 5, "e", seconds), ObjectInfo("z", 7, "e", seconds)]
        assert parsed(response, "p/") == ListPage(objects, "1/to+ken=", ("c/",))

    @pytest.mark.usefixtures("no_parser")
    def test_an_empty_page(self) -> None:
        """A page without entries is an empty list, and the token of the request is not taken for the next one."""
        assert parsed(page("<ContinuationToken>x</ContinuationToken>")) == ListPage([], None)

    @given(names=st.lists(NAMES, max_size=5), prefixes=st.lists(FOLDERS, max_size=3), plus=st.booleans())
    def test_names_are_decoded(self, names: list[str], prefixes: list[str], plus: bool) -> None:
        """Names with any characters are decoded from either encoding that engines use: spaces as `%20` or `+`."""

        def encoded(name: str) -> str:
            text = quote(name, safe="/")
            return text.replace("%20", "+") if plus else text

        response = page(*[an_object(encoded(name)) for name in names], *[a_prefix(encoded(name)) for name in prefixes])
        read = parsed(response)
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
    def test_an_object_in_unusual_xml(self, written: str) -> None:
        """An object that is written in another valid way is parsed, also beside one that is written as usual."""
        response = page(an_object("0"), written)
        objects = [ObjectInfo("0", 5, "e", 1_700_000_000.5), ObjectInfo("a", 5, "e", 1_700_000_000.5)]
        assert parsed(response) == ListPage(objects, None)

    def test_a_prefix_in_unusual_xml(self) -> None:
        """A common prefix or token that is written in another valid way is not overlooked."""
        prefix = f"<CommonPrefixes><Owner/><Prefix>{escape('a&b/')}</Prefix></CommonPrefixes>"
        token = "<NextContinuationToken>&lt;</NextContinuationToken>"
        assert parsed(page(prefix, token)) == ListPage([], "<", ("a&b/",))

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
    def test_invalid_pages(self, body: bytes) -> None:
        """A body that is not a page raises BucketFailed, and is never taken for an empty page."""
        response = Response(200, {})
        response.body = body
        with pytest.raises(BucketFailed, match="not a list"):
            parsed(response)


@pytest.fixture(params=["fast", "parsed"])
def written(request: pytest.FixtureRequest) -> str:
    """An element that makes a page be parsed by regular expressions (none), or by the XML parser."""
    return "" if request.param == "fast" else an_object("<![CDATA[~]]>")


class EncodingTests:
    """Names, and the EncodingType of a page."""

    @pytest.mark.parametrize("key", ["a+b", "a%41b", "a%2Fb", "a%zz", "é", "%"])
    def test_names_without_an_encoding(self, written: str, key: str) -> None:
        """Names are not decoded in a page without EncodingType: some engines ignore the request for an encoding."""
        read = parsed(page(written, an_object(key), a_prefix(f"{key}/"), said=ALL))
        assert (read.objects[-1].key, read.prefixes) == (key, (f"{key}/",))

    @pytest.mark.parametrize("said", ["<EncodingType/>", "<EncodingType>base64</EncodingType>"])
    def test_unknown_encodings(self, written: str, said: str) -> None:
        """Names are not decoded if EncodingType is not `url`."""
        assert parsed(page(written, an_object("a+b"), said=said + ALL)).objects[-1].key == "a+b"

    @pytest.mark.parametrize("key", ["a%zz", "%", "a%2", "%FF", "a%ED%A0%80"])
    def test_names_that_cannot_be_decoded(self, written: str, key: str) -> None:
        """A page with a name that is not valid percent-encoded UTF-8 raises BucketFailed."""
        with pytest.raises(BucketFailed, match="not a list"):
            parsed(page(written, an_object(key)))


class StrictnessTests:
    """Pages that cannot belong to the requested list."""

    @pytest.mark.parametrize(
        "said",
        [MORE, "", "<IsTruncated/>", "<IsTruncated>yes</IsTruncated>", f"{MORE}<NextContinuationToken/>"],
        ids=["more", "nothing", "empty", "yes", "empty-token"],
    )
    def test_a_page_without_a_token_that_is_not_the_last(self, written: str, said: str) -> None:
        """A page that is not said to be the last, and has no token for the next, raises BucketFailed."""
        with pytest.raises(BucketFailed, match="token"):
            parsed(page(written, an_object("a"), said=ENCODED + said))

    def test_a_page_with_a_token(self, written: str) -> None:
        """A page with a continuation token is not the last, whatever IsTruncated says."""
        token = "<NextContinuationToken>t</NextContinuationToken>"
        assert parsed(page(written, token, said=ENCODED + MORE)).token == "t"
        assert parsed(page(written, token)).token == "t"

    @pytest.mark.parametrize("size", ["-1", "+1", "1_0", "", " 1", "1.0", "٣", "9" * 20, "9" * 5000])
    def test_invalid_sizes(self, written: str, size: str) -> None:
        """A size that is not 1 to 19 ASCII digits raises BucketFailed, even if int() accepts it."""
        with pytest.raises(BucketFailed, match="not a list"):
            parsed(page(written, an_object("a", size)))

    @pytest.mark.parametrize("time", ["", "yesterday", "2023-11-14T22:13:nanZ", "2023-11-14T22:13:20", "2023-11-14"])
    def test_invalid_times(self, written: str, time: str) -> None:
        """A time that is malformed or has no time zone raises BucketFailed."""
        with pytest.raises(BucketFailed, match="not a list"):
            parsed(page(written, an_object("a", time=time)))

    @pytest.mark.parametrize("key", ["", "b", "p", "q/a", "p/b", "%70/b"])
    def test_a_key_outside_the_prefix(self, written: str, key: str) -> None:
        """A key or common prefix outside the prefixes of the bucket and of the query raises BucketFailed."""
        query = ListQuery("a", "/")
        written = written.replace("~", "p/a~")
        assert parsed(page(written, an_object("%70%2Fa")), "p/", query).objects[-1].key == "a"
        for part in (an_object(key), a_prefix(f"{key}/")):
            with pytest.raises(BucketFailed, match="does not begin with 'p/a'"):
                parsed(page(written, part), "p/", query)

    @pytest.mark.parametrize(("name", "delimiter"), [("a", "/"), ("a/b/", "/"), ("a/", None), ("a/", "-"), ("p/", "/")])
    def test_invalid_common_prefixes(self, written: str, name: str, delimiter: str | None) -> None:
        """A common prefix that does not end at the first delimiter raises BucketFailed; some engines use a slash."""
        query = ListQuery("p/" if name == "p/" else "", delimiter)
        with pytest.raises(BucketFailed, match="not a common prefix"):
            parsed(page(written.replace("~", "p/~"), a_prefix(name)), "", query)

    def test_an_object_named_like_the_prefix_of_the_bucket(self, written: str) -> None:
        """An object whose key is the bucket's prefix, which consoles create for a folder, is left out."""
        read = parsed(page(an_object("p/"), written.replace("~", "p/~"), an_object("p/a")), "p/")
        assert [info.key for info in read.objects if info.key != "~"] == ["a"]


class ListParametersTests:
    """`list_parameters` and `sorted_after`."""

    def test_a_plain_list(self) -> None:
        """The request for the first page of a plain list has no parameter but its prefix."""
        assert list_parameters(ListQuery("a"), None, "p/") == {"prefix": "p/a"}

    def test_all_parameters(self) -> None:
        """The bucket's own prefix is added to `prefix` and `start-after`, not to the delimiter or the token."""
        assert list_parameters(ListQuery("a", "/", "ab", 10), "t", "p/") == {
            "prefix": "p/a",
            "delimiter": "/",
            "start-after": "p/ab",
            "max-keys": "10",
            "continuation-token": "t",
        }

    def test_earlier_entries_are_left_out(self) -> None:
        """A common prefix that sorts before `after` is left out, even if it stands for keys that sort after it."""
        infos = [ObjectInfo(key, 0, "e", 0.0) for key in ("a", "a/b", "é", "\uffee", "😀")]
        read = sorted_after(ListPage(infos, "t", ("a/", "é/", "😀/")), "\uffee")
        assert read == ListPage(infos[-1:], "t", ("😀/",))
