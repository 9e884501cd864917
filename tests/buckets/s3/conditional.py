"""What the tests of conditional writes on a scripted S3 share."""

from __future__ import annotations

from collections.abc import Callable

from tests.engines.scripted import Scripted
from tests.support import BytesBody
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.model import Condition, ObjectInfo, PutOptions

MiB = 1 << 20
#: Bodies of one part, and of several.
SMALL, LARGE = b"small", b"x" * (6 * MiB)
ABSENT = Condition()

#: A scripted endpoint that checks all conditions, and a function that makes a bucket with a setting.
Made = tuple[Scripted, Callable[[str], S3Bucket]]


async def put(bucket: S3Bucket, data: bytes, condition: Condition, chunked: bool = False) -> ObjectInfo:
    """Put an object under a condition."""
    body = BytesBody(data, chunk=MiB, chunked=chunked)
    return await bucket.put("k", body, 1 << 30, PutOptions(condition=condition))
