"""S3Bucket: a bucket of AWS or of any engine that speaks S3, through boto3 in a thread pool of its own.

What is sent: payloads unsigned (hashing them with SHA-256 costs more than all the rest together), each with a CRC-32
that engines verify on arrival, in a header rather than a trailer, which not all engines understand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.buffers import Buffers
from twisted_storaged.buckets.delivery import Deliveries, ObjectReader
from twisted_storaged.buckets.interface import IBucket, IObjectReader, ListPage, ObjectInfo
from twisted_storaged.buckets.multipart import InThreads, Uploader
from twisted_storaged.buckets.s3upload import S3Upload
from twisted_storaged.buckets.threads import Threads
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import BucketError, InvalidKey, ObjectNotFound, StartError
from twisted_storaged.keys import MAX_KEY_BYTES

if TYPE_CHECKING:
    from botocore.client import BaseClient

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: The smallest part that S3 allows, in bytes, and the most parts of one upload.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIN_PART_SIZE = 5 << 20
MAX_PARTS = 10_000
#: Parts of one body in flight. With the one being filled and the one that waits, a PUT holds 30 MiB.
WINDOW = 4
#: Threads beside the uploading ones: for GETs, lists and deletes.
READERS = 8
#: Seconds for a connection, or a blocked send; and for the next bytes of an answer.
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60

_NOT_FOUND = {"NoSuchKey", "404", "NotFound"}


@dataclass(frozen=True)
class S3Settings:
    """Where an S3 bucket is. None leaves a choice to boto3: its environment, files, and credential chain."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    use_path_style: bool | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)


@implementer(IBucket)
class S3Bucket:
    """A bucket that S3 keeps; its objects are those under `settings.prefix`, which clients do not see."""

    _log = Logger()

    def __init__(self, name: str, settings: S3Settings, reactor: IReactorFromThreads, put_slots: int) -> None:
        self.name = name
        self._settings = settings
        self._threads = Threads(reactor, put_slots * WINDOW + READERS, f"bucket {name}")
        self._deliveries = Deliveries(self._run)
        self._buffers = Buffers(MIN_PART_SIZE, keep=put_slots * WINDOW)

    def start(self) -> None:
        try:
            self._client = make_client(self._settings)
        except (BotoCoreError, ValueError) as error:
            raise StartError(f"bucket {self.name}: {error}") from error
        self._log.info(
            "bucket {name} is {settings.bucket}/{settings.prefix} at {endpoint}",
            name=self.name,
            settings=self._settings,
            endpoint=self._client.meta.endpoint_url,
        )
        self._threads.start()

    @deferred
    async def stop(self) -> None:
        await self._threads.stop()
        self._client.close()

    @deferred
    async def put(self, key: str, body: IBodyProducer, max_length: int) -> ObjectInfo:
        longest = max_length if body.length is UNKNOWN_LENGTH else body.length
        upload = S3Upload(self._client, self._address(key), key)
        return await Uploader(self._buffers_for(longest), WINDOW).store(body, InThreads(upload, self._run))

    @deferred
    async def get(self, key: str) -> IObjectReader:
        answer = await self._run(self._client.get_object, **self._address(key))
        info = ObjectInfo(key, answer["ContentLength"], _etag(answer), answer["LastModified"].timestamp())
        return ObjectReader(info, answer["Body"], self._deliveries)

    @deferred
    async def list(self, prefix: str, token: str | None = None) -> ListPage:
        more = {} if token is None else {"ContinuationToken": token}
        where = {"Bucket": self._settings.bucket, "Prefix": self._settings.prefix + prefix}
        page = await self._run(self._client.list_objects_v2, **where, **more)
        objects = [self._listed(item) for item in page.get("Contents", [])]
        return ListPage(objects, page.get("NextContinuationToken"))

    @deferred
    async def delete(self, key: str) -> None:
        with suppress(ObjectNotFound):  # S3 itself would not say so, some engines do
            await self._run(self._client.delete_object, **self._address(key))

    def _address(self, key: str) -> dict[str, str]:
        s3_key = self._settings.prefix + key
        excess = len(s3_key.encode("utf-8")) - MAX_KEY_BYTES
        if excess > 0:
            longest = len(key.encode("utf-8")) - excess
            raise InvalidKey(f"key too long (>{longest} bytes)")
        return {"Bucket": self._settings.bucket, "Key": s3_key}

    def _listed(self, item: Mapping[str, Any]) -> ObjectInfo:
        key = item["Key"].removeprefix(self._settings.prefix)
        return ObjectInfo(key, item["Size"], _etag(item), item["LastModified"].timestamp())

    def _buffers_for(self, longest: int) -> Buffers:
        size = part_size(longest)
        return self._buffers if size == self._buffers.size else Buffers(size, keep=0)

    @deferred
    async def _run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await self._threads.run(call, *args, **kwargs)
        except ClientError as error:
            if error.response["Error"]["Code"] in _NOT_FOUND:
                raise ObjectNotFound(str(error)) from error
            raise BucketError(str(error)) from error
        except (BotoCoreError, OSError, RuntimeError) as error:  # botocore's word for credentials that stay expired
            raise BucketError(f"{type(error).__name__}: {error}") from error


def part_size(longest: int) -> int:
    """The size of all parts but the last, in bytes, so that a body of `longest` bytes has no part 10,001."""
    needed = -(-longest // MAX_PARTS)
    whole_mebibytes = -(-needed >> 20) << 20
    return max(MIN_PART_SIZE, whole_mebibytes)


def make_client(settings: S3Settings) -> BaseClient:
    """The client that a bucket's threads share (clients are thread-safe, sessions are not).

    Raises:
        ValueError: there are no credentials anywhere.
        BotoCoreError: boto3 cannot make sense of the settings.
    """
    session = boto3.session.Session(
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        region_name=settings.region,
    )
    # Found here, they are the client's too, and refresh themselves there for as long as it lives.
    if session.get_credentials() is None:
        raise ValueError("no credentials: not in the secrets file, not in the configuration, not in boto3's own chain")
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=settings.endpoint, region_name=region, config=_client_config(settings))


def _client_config(settings: S3Settings) -> Config:
    style = {None: "auto", True: "path", False: "virtual"}[settings.use_path_style]
    return Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard"},
        # More than there can be threads and open GETs: beyond it, connections are not kept.
        max_pool_connections=256,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style, "payload_signing_enabled": False},
    )


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')
