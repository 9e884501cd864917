"""A page of ListObjectsV2, from its XML: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html .

Lists are long, and what one key takes counts. So a page is read by a regular expression, in the order of fields that
S3's schema has and engines keep; one that is written otherwise goes to an XML parser, which takes four times as long.

What a page says is taken at its word and no further: names are decoded only where the page says that they are encoded,
and a page that cannot be the one that was asked for is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from twisted_storaged.errors import BucketError
from twisted_storaged.model import ListPage, ListQuery, ObjectInfo
from twisted_storaged.protocol.http1 import Response

#: Entries that S3 has in a page when nobody says less.
MAX_KEYS = 1000

_QUOTE = '(?:&quot;|&#34;|")?'
_OBJECT = re.compile(
    r"<Contents>\s*<Key>([^<&]*)</Key>\s*<LastModified>([^<&]*)</LastModified>\s*"
    rf"<ETag>{_QUOTE}([^<&\"]*){_QUOTE}</ETag>\s*(?:<Checksum[^&]*?)?<Size>([^<&]*)</Size>"
)
_PREFIX = re.compile(r"<CommonPrefixes>\s*<Prefix>([^<&]*)</Prefix>\s*</CommonPrefixes>")
_TOKEN = re.compile(r"<NextContinuationToken>([^<&]+)</")
_URL_ENCODED = re.compile(r"<EncodingType>\s*url\s*</EncodingType>")
_TRUNCATED = re.compile(r"<IsTruncated>\s*(true|false)\s*</IsTruncated>")
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
#: Digits that are not of another alphabet, and not so many that they are no size of anything.
_SIZE = re.compile("[0-9]{1,19}")
_UTC = re.compile(r"[0-9-]{10}T[0-9:]{5}:[0-9]{2}(?:\.[0-9]+)?Z")


class _Page(NamedTuple):
    """What a page says.

    Attributes:
        objects: (key, time, ETag, size) of each.
        prefixes: the common prefixes.
        encoded: whether it says that keys and prefixes are percent-encoded.
        truncated: whether it says that there is more; None where it does not say.
    """

    objects: Sequence[tuple[str, str, str, str]]
    prefixes: Sequence[str]
    token: str | None
    encoded: bool
    truncated: bool | None


def list_parameters(query: ListQuery, token: str | None, prefix: str) -> dict[str, str]:
    """What to ask S3 for the page at `token` of a list of what is under `prefix`."""
    parameters = {"prefix": prefix + query.prefix}
    if query.delimiter is not None:
        parameters["delimiter"] = query.delimiter
    if query.after is not None:
        parameters["start-after"] = prefix + query.after
    if query.page_limit < MAX_KEYS:
        parameters["max-keys"] = str(query.page_limit)
    if token is not None:
        parameters["continuation-token"] = token
    return parameters


def sorted_after(page: ListPage, after: str) -> ListPage:
    """The entries of a page that sort after `after`: S3 gives a common prefix for the keys in it that do.

    Text sorts as the bytes of its UTF-8 do.
    """
    objects = [info for info in page.objects if info.key > after]
    return replace(page, objects=objects, prefixes=tuple([entry for entry in page.prefixes if entry > after]))


def parse_list(response: Response, query: ListQuery, prefix: str) -> ListPage:
    """A page of the list of what is under `prefix`, its keys and common prefixes without that.

    What has the key `prefix` itself, as consoles make it for a folder, has no key here, and is left out.

    Raises:
        BucketError: it is no page, or cannot be one of this list.
    """
    try:
        page = _read(response.body.decode("utf-8")) or _parse(response.body)
        keys, times, etags, sizes = zip(*page.objects, strict=True) if page.objects else ((), (), (), ())
        names = _names(keys, page.encoded, prefix + query.prefix)
        common = _names(page.prefixes, page.encoded, prefix + query.prefix)
        _check_end(page)
        _check_common(common, query, len(prefix))
        objects = list(map(ObjectInfo, _without(prefix, names), map(_size, sizes), etags, map(_timestamp, times)))
    except (ElementTree.ParseError, ValueError) as error:
        raise BucketError(f"ListObjectsV2: not a list: {error}") from error
    return ListPage([info for info in objects if info.key], page.token, tuple(_without(prefix, common)))


def _read(text: str) -> _Page | None:
    """A page that is written as most are; None where it is not."""
    objects, prefixes, token = _OBJECT.findall(text), _PREFIX.findall(text), _TOKEN.search(text)
    truncated = _TRUNCATED.search(text)
    whole = text.rstrip().endswith("</ListBucketResult>") and truncated is not None
    # Nothing was passed over.
    all_objects = text.count("Contents>") == 2 * len(objects)
    all_prefixes = text.count("CommonPrefixes>") == 2 * len(prefixes)
    if whole and all_objects and all_prefixes and (token is not None or "<NextContinuationToken>" not in text):
        encoded = _URL_ENCODED.search(text) is not None
        return _Page(objects, prefixes, token and token[1], encoded, truncated is not None and truncated[1] == "true")
    return None


def _parse(body: bytes) -> _Page:
    """Any page. Raises ParseError or ValueError when it is none."""
    root = ElementTree.fromstring(body)  # noqa: S314 (from our S3, and expat refuses entity bombs)
    space = root.tag[: root.tag.find("}") + 1]
    if root.tag != f"{space}ListBucketResult":
        raise ValueError(f"<{root.tag}>")

    def listed(item: ElementTree.Element) -> tuple[str, str, str, str]:
        key, time, etag, size = (
            item.findtext(f"{space}{name}", "") for name in ("Key", "LastModified", "ETag", "Size")
        )
        return key, time, etag.strip('"'), size

    prefixes = [item.text or "" for item in root.iterfind(f"{space}CommonPrefixes/{space}Prefix")]
    token = root.findtext(f"{space}NextContinuationToken") or None
    encoded = root.findtext(f"{space}EncodingType", "").strip() == "url"
    truncated = {"true": True, "false": False}.get(root.findtext(f"{space}IsTruncated", "").strip())
    objects = [listed(item) for item in root.iterfind(f"{space}Contents")]
    return _Page(objects, prefixes, token, encoded, truncated)


def _check_end(page: _Page) -> None:
    """Raises ValueError where nobody could tell whether this was all, or how to go on."""
    if page.token is None and page.truncated is not False:
        raise ValueError("it does not say that it is all, and has no token for what follows")


def _check_common(names: Sequence[str], query: ListQuery, skip: int) -> None:
    """Raises ValueError where common prefixes are none of this list. Their first `skip` characters are the bucket's."""
    delimiter, start = query.delimiter, skip + len(query.prefix)
    for name in names:
        if delimiter is None or name.find(delimiter, start) != len(name) - len(delimiter):
            raise ValueError(f"{name!r} is not what keys have in common up to {delimiter!r}")


def _names(names: Sequence[str], encoded: bool, start: str) -> Sequence[str]:
    """Names as they are. Raises ValueError where one does not begin with `start`, or is empty."""
    found = _decoded(names) if encoded else names
    for name in found:
        if not name.startswith(start) or not name:
            raise ValueError(f"{name!r} does not begin with {start!r}")
    return found


def _decoded(names: Sequence[str]) -> Sequence[str]:
    """Encoded names as they are; all at once, which is three times as fast, unless one has a line break."""
    together = "\n".join(names)
    if "%" not in together and "+" not in together:
        return names
    if _BAD_ESCAPE.search(together):
        raise ValueError("a name has a % that is not followed by two hex digits")
    # Another name must not be made up for one that is not UTF-8.
    decoded = unquote_plus(together, errors="strict").split("\n")
    return decoded if len(decoded) == len(names) else [unquote_plus(name, errors="strict") for name in names]


def _without(prefix: str, names: Sequence[str]) -> Sequence[str]:
    return [name[len(prefix) :] for name in names] if prefix else names


def _size(text: str) -> int:
    if not _SIZE.fullmatch(text):
        raise ValueError(f"{text[:30]!r} is no size")
    return int(text)


def _timestamp(text: str) -> float:
    """Seconds since the epoch, of "2023-11-14T22:13:20.500Z". Many objects share a minute."""
    if _UTC.fullmatch(text):
        return _minute(text[:16]) + float(text[17:-1])
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time.timestamp()


@lru_cache(maxsize=1024)
def _minute(text: str) -> float:
    return datetime.fromisoformat(f"{text}Z").timestamp()
