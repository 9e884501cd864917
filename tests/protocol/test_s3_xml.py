"""Pages of lists: read fast where they are written as usual, and right in any case."""

from __future__ import annotations

from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.errors import BucketError
from twisted_storaged.model import ListPage, ListQuery, ObjectInfo
from twisted_storaged.protocol import s3_xml as listing
from twisted_storaged.protocol.http1 import Response
from twisted_storaged.protocol.s3_xml import list_parameters, parse_list, sorted_after

LETTERS = st.characters(exclude_categories=["Cs"])
NAMES = st.text(LETTERS, min_size=1, max_size=12)
FOLDERS = st.text(LETTERS.filter(lambda letter: letter != "/"), max_size=11).map(lambda name: f"{name}/")
ALL_KEYS = ListQuery(delimiter="/")
TIME = "2023-11-14T22:13:20.500Z"


#: What engines say beside what is listed: that names are encoded, and that this is all.
ENCODED, ALL = "<EncodingType>url</EncodingType>", "<IsTruncated>false</IsTruncated>"
MORE = "<IsTruncated>true</IsTruncated>"


def page(*parts: str, said: str = ENCODED + ALL) -> Response:
    """A page with these elements."""
    answer = Response(200, {})
    head = '<?xml version="1.0"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    answer.body = f"{head}{said}{''.join(parts)}</ListBucketResult>\n".encode()
    return answer


def parsed(answer: Response, prefix: str = "", query: ListQuery = ALL_KEYS) -> ListPage:
    return parse_list(answer, query, prefix)


def an_object(key: str, size: object = 5, etag: str = "&quot;e&quot;", time: str = TIME, more: str = "") -> str:
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
        answer = page(token, an_object("p/a%20b", etag=etag, more=more), a_prefix("p/c%2F"), an_object("p/z", 7))
        seconds = 1_700_000_000.5
        objects = [ObjectInfo("a b", 5, "e", seconds), ObjectInfo("z", 7, "e", seconds)]
        assert parsed(answer, "p/") == ListPage(objects, "1/to+ken=", ("c/",))

    @pytest.mark.usefixtures("no_parser")
    def test_an_empty_page(self) -> None:
        """Has nothing, and no token."""
        assert parsed(page("<ContinuationToken>x</ContinuationToken>")) == ListPage([], None)

    @given(names=st.lists(NAMES, max_size=5), prefixes=st.lists(FOLDERS, max_size=3), plus=st.booleans())
    def test_names_are_as_they_were(self, names: list[str], prefixes: list[str], plus: bool) -> None:
        """Whatever is in them, in either of the encodings that engines use."""

        def encoded(name: str) -> str:
            text = quote(name, safe="/")
            return text.replace("%20", "+") if plus else text

        answer = page(*[an_object(encoded(name)) for name in names], *[a_prefix(encoded(name)) for name in prefixes])
        read = parsed(answer)
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
        assert parsed(answer) == ListPage(objects, None)

    def test_a_prefix_that_is_written_otherwise(self) -> None:
        """Is not passed over."""
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
    def test_what_is_none(self, body: bytes) -> None:
        """Is trouble, never an empty page."""
        answer = Response(200, {})
        answer.body = body
        with pytest.raises(BucketError, match="not a list"):
            parsed(answer)


@pytest.fixture(params=["fast", "parsed"])
def written(request: pytest.FixtureRequest) -> str:
    """Something in a page that makes it be read by the one way or by the other."""
    return "" if request.param == "fast" else an_object("<![CDATA[~]]>")


class EncodingTests:
    """Names, and what is said of their encoding."""

    @pytest.mark.parametrize("key", ["a+b", "a%41b", "a%2Fb", "a%zz", "é", "%"])
    def test_are_as_they_stand_where_nothing_is_said(self, written: str, key: str) -> None:
        """There are engines that ignore `encoding-type`; who deletes by a list must not meet others' keys."""
        read = parsed(page(written, an_object(key), a_prefix(f"{key}/"), said=ALL))
        assert (read.objects[-1].key, read.prefixes) == (key, (f"{key}/",))

    @pytest.mark.parametrize("said", ["<EncodingType/>", "<EncodingType>base64</EncodingType>"])
    def test_another_encoding_is_none(self, written: str, said: str) -> None:
        """Only `url` is known."""
        assert parsed(page(written, an_object("a+b"), said=said + ALL)).objects[-1].key == "a+b"

    @pytest.mark.parametrize("key", ["a%zz", "%", "a%2", "%FF", "a%ED%A0%80"])
    def test_what_cannot_be_decoded(self, written: str, key: str) -> None:
        """Is no key; another one must not be made up for it."""
        with pytest.raises(BucketError, match="not a list"):
            parsed(page(written, an_object(key)))


class StrictnessTests:
    """What cannot be a page of the list that was asked for is an error, not an entry."""

    @pytest.mark.parametrize(
        "said",
        [MORE, "", "<IsTruncated/>", "<IsTruncated>yes</IsTruncated>", f"{MORE}<NextContinuationToken/>"],
        ids=["more", "nothing", "empty", "yes", "empty-token"],
    )
    def test_a_page_without_a_token_that_is_not_all(self, written: str, said: str) -> None:
        """A list that ended there would be cut short."""
        with pytest.raises(BucketError, match="token"):
            parsed(page(written, an_object("a"), said=ENCODED + said))

    def test_a_page_with_a_token(self, written: str) -> None:
        """Is not the last, whatever else it says."""
        token = "<NextContinuationToken>t</NextContinuationToken>"
        assert parsed(page(written, token, said=ENCODED + MORE)).token == "t"
        assert parsed(page(written, token)).token == "t"

    @pytest.mark.parametrize("size", ["-1", "+1", "1_0", "", " 1", "1.0", "٣", "9" * 20, "9" * 5000])
    def test_a_size_that_is_none(self, written: str, size: str) -> None:
        """Whatever Python would make of it."""
        with pytest.raises(BucketError, match="not a list"):
            parsed(page(written, an_object("a", size)))

    @pytest.mark.parametrize("time", ["", "yesterday", "2023-11-14T22:13:nanZ", "2023-11-14T22:13:20", "2023-11-14"])
    def test_a_time_that_is_none(self, written: str, time: str) -> None:
        """Nor one of which nobody knows when it was."""
        with pytest.raises(BucketError, match="not a list"):
            parsed(page(written, an_object("a", time=time)))

    @pytest.mark.parametrize("key", ["", "b", "p", "q/a", "p/b", "%70/b"])
    def test_a_key_outside_the_prefix(self, written: str, key: str) -> None:
        """Be it the bucket's or the query's; also a common prefix."""
        query = ListQuery("a", "/")
        written = written.replace("~", "p/a~")
        assert parsed(page(written, an_object("%70%2Fa")), "p/", query).objects[-1].key == "a"
        for part in (an_object(key), a_prefix(f"{key}/")):
            with pytest.raises(BucketError, match="does not begin with 'p/a'"):
                parsed(page(written, part), "p/", query)

    @pytest.mark.parametrize(("name", "delimiter"), [("a", "/"), ("a/b/", "/"), ("a/", None), ("a/", "-"), ("p/", "/")])
    def test_a_common_prefix_that_is_none(self, written: str, name: str, delimiter: str | None) -> None:
        """Some engines end them at a slash, whatever the delimiter is."""
        query = ListQuery("p/" if name == "p/" else "", delimiter)
        with pytest.raises(BucketError, match="in common"):
            parsed(page(written.replace("~", "p/~"), a_prefix(name)), "", query)

    def test_a_folder_of_the_bucket_itself(self, written: str) -> None:
        """Has no key here: consoles make an object of the prefix's own name."""
        read = parsed(page(an_object("p/"), written.replace("~", "p/~"), an_object("p/a")), "p/")
        assert [info.key for info in read.objects if info.key != "~"] == ["a"]


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
