"""What answers of S3 mean, in storage terms: objects, pages of lists, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from botocore.exceptions import BotoCoreError, ClientError

from twisted_storaged.buckets.objects import ListPage, ObjectInfo
from twisted_storaged.errors import BucketError, ObjectNotFound
from twisted_storaged.s3.client import RequestFailed
from twisted_storaged.s3.wire import Answer, ConnectionFailed


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the data plane and boto3 raise into errors of storage.

    Raises:
        ObjectNotFound: S3 says that there is no such key. That there is no such bucket is trouble.
        BucketError: anything else, with its cause.
    """
    try:
        yield
    except RequestFailed as error:
        if error.answer.status == 404 and error.answer.code in ("NoSuchKey", "NotFound", ""):
            raise ObjectNotFound(str(error)) from error
        raise BucketError(str(error)) from error
    except (ConnectionFailed, ClientError, BotoCoreError, OSError) as error:
        raise BucketError(f"{type(error).__name__}: {error}") from error


def etag_of(answer: Answer) -> str:
    """The ETag, without quotes. Raises BucketError where there is none."""
    etag = answer.headers.get("etag", "").strip('"')
    if not etag:
        raise BucketError("the engine gave no ETag")
    return etag


def info_of(answer: Answer, key: str) -> ObjectInfo:
    """What the head of a GetObject's answer says of the object. Raises BucketError where it does not say it."""
    try:
        size, modified = int(answer.headers["content-length"]), _http_date(answer.headers["last-modified"])
    except (KeyError, ValueError) as error:
        raise BucketError(f"the engine's answer does not say what {key!r} is: {error}") from error
    return ObjectInfo(key, size, etag_of(answer), modified)


def parse_list(answer: Answer, prefix: str) -> ListPage:
    """A page of ListObjectsV2, its keys without `prefix`. Raises BucketError when it is none."""
    try:
        root = ElementTree.fromstring(answer.body)  # noqa: S314 (from our S3, and expat refuses entity bombs)
    except ElementTree.ParseError as error:
        raise BucketError(f"ListObjectsV2: not XML: {error}") from error
    namespace = root.tag[: root.tag.find("}") + 1]
    names = [namespace + name for name in ("Key", "Size", "ETag", "LastModified")]
    objects = [_listed(item, names, len(prefix)) for item in root.iterfind(f"{namespace}Contents")]
    token = root.findtext(f"{namespace}NextContinuationToken")
    return ListPage(objects, token or None)


def _listed(item: ElementTree.Element, names: list[str], skip: int) -> ObjectInfo:
    fields = {child.tag: child.text for child in item}
    key, size, etag, modified = [fields[name] or "" for name in names]
    return ObjectInfo(unquote_plus(key)[skip:], int(size), etag.strip('"'), _iso_date(modified))


@lru_cache(maxsize=4096)
def _iso_date(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@lru_cache(maxsize=1024)
def _http_date(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()
