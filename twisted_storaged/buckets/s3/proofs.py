"""What proves that a request which writes was carried out, or was not: what an answer must hold to count as success,
and what an object that is there says of a write whose reply was lost.

A reply is lost when it does not come, is a 500, 502 or 504, or is a success that lacks what S3's documentation says
it holds: a proxy's page, or nothing. Then it is not known whether the write was carried out. Equal bytes prove
nothing, as somebody else may have written the same. What proves it, for each operation:

    PutObject                 carried out: the object has this write's id in its metadata, which is random
                              not carried out, if it has a condition: the object that contradicts the condition was
                              there before the write began
    CompleteMultipartUpload   carried out: the same, as the id was given with CreateMultipartUpload
                              not carried out: the upload was there until it was aborted
    DeleteObject              carried out: nothing, if it has a condition; otherwise it needs no proof that there is no
                              object, or that the one that is there was put after the delete began

All else is `Undecided`. UploadPart, CreateMultipartUpload and AbortMultipartUpload may be carried out twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final
from xml.etree import ElementTree

from twisted_storaged.protocol.http1 import Response, UnexpectedResponse
from twisted_storaged.protocol.metadata import WRITE_ID_NAME

CHECKSUM: Final = "x-amz-checksum-crc32c"
#: Seconds that the clocks of one engine's hosts may be apart.
SKEW = 2.0


def new_write_id() -> str:
    """What nobody else can have written: 128 random bits."""
    return secrets.token_hex(16)


def require_success(operation: str, sent: Mapping[str, str], response: Response) -> None:
    """Check that an answer with a status of success holds what S3's documentation says that it holds.

    `sent` are the headers of the request.

    Raises:
        NotAsDocumented: it does not; nobody knows what was done.
    """
    lacks = _REQUIRED.get(operation)
    if response.status < 300 and lacks is not None and (reason := lacks(sent, response)):
        raise UnexpectedResponse(f"{operation}: an answer {response} {reason}")


def is_own(found: Response, sent: Mapping[str, str]) -> bool:
    """Whether an object is the one that was put with these headers: nobody else knows its write id."""
    write_id = sent.get(WRITE_ID_NAME)
    return write_id is not None and found.status == 200 and found.headers.get(WRITE_ID_NAME) == write_id


def was_there_before(found: Response, seconds: float) -> bool:
    """Whether an object was there as it is `seconds` ago, by the engine's own clock.

    Not known of objects that were uploaded in parts: S3 dates those to when the upload was created.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html#SysMetadata
    """
    age = _age(found)
    return age is not None and "-" not in found.headers.get("etag", "-") and age > seconds + SKEW


def was_put_since(found: Response, seconds: float) -> bool:
    """Whether an object was put in the last `seconds`, by the engine's own clock."""
    age = _age(found)
    return age is not None and age + SKEW < seconds


def _age(found: Response) -> float | None:
    """Seconds between when the object was put and when the engine looked at it, to the second."""
    try:
        looked, put = (parsedate_to_datetime(found.headers[name]) for name in ("date", "last-modified"))
        return (looked - put).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _lacks_etag(sent: Mapping[str, str], response: Response) -> str:
    """What an answer to PutObject or UploadPart lacks. S3 tells the checksum of what it stored, where it keeps one.

    The ETag is not compared with the MD5 of the body: that costs more than all the rest of a PUT, and an ETag that
    looks like an MD5 need not be one, where objects are encrypted.
    """
    if not response.headers.get("etag", "").strip('"'):
        return "has no ETag"
    told, checksum = response.headers.get(CHECKSUM), sent.get(CHECKSUM)
    if told and checksum and told != checksum:
        return f"tells the checksum {told}, where {checksum} was sent"
    return ""


def _lacks_upload_id(_: Mapping[str, str], response: Response) -> str:
    """What an answer to CreateMultipartUpload lacks. The root is not compared: rclone calls it something else."""
    root = _root(response)
    return "" if root is not None and text(root, "UploadId") else "has no UploadId"


def _lacks_completion(_: Mapping[str, str], response: Response) -> str:
    """What an answer to CompleteMultipartUpload lacks. It may be an error in spite of its status; Ceph's has no ETag.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
    """
    root = _root(response)
    is_result = root is not None and _name(root) == "CompleteMultipartUploadResult"
    return "" if is_result else "is no CompleteMultipartUploadResult"


def _has_more(_: Mapping[str, str], response: Response) -> str:
    """What an answer to DeleteObject has that it should not."""
    return "is not empty" if response.body.strip() else ""


_REQUIRED: Mapping[str, Callable[[Mapping[str, str], Response], str]] = {
    "AbortMultipartUpload": _has_more,
    "CompleteMultipartUpload": _lacks_completion,
    "CreateMultipartUpload": _lacks_upload_id,
    "DeleteObject": _has_more,
    "PutObject": _lacks_etag,
    "UploadPart": _lacks_etag,
}


def text(root: ElementTree.Element, name: str) -> str:
    """The text of the first child of this name, in whatever namespace; empty where there is none."""
    return next((child.text or "" for child in root if _name(child) == name), "").strip()


def _root(response: Response) -> ElementTree.Element | None:
    try:
        # Blanks may come before it, while S3 is at work.
        return ElementTree.fromstring(response.body.strip())  # noqa: S314 (from our S3, and expat refuses entity bombs)
    except ElementTree.ParseError:
        return None


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
