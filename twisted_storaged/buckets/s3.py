"""S3Bucket: a bucket of AWS or of any engine that speaks S3.

Objects go through the thin data plane of `twisted_storaged.s3`; boto3 knows the configuration and the credentials, and
makes the rare calls around a multipart upload. What is sent: payloads unsigned (hashing them with SHA-256 costs more
than all the rest together), each with a CRC-32C that engines verify on arrival, in a header rather than a trailer,
which not all engines understand.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from twisted.logger import Logger
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.buckets.buffers import Buffers
from twisted_storaged.buckets.delivery import share_of_memory
from twisted_storaged.buckets.digests import Digesting
from twisted_storaged.buckets.interface import IBucket, IObjectReader
from twisted_storaged.buckets.multipart import Uploader
from twisted_storaged.buckets.objects import NO_OPTIONS, ListPage, ListQuery, ObjectInfo, PutOptions
from twisted_storaged.buckets.s3reader import S3Reader
from twisted_storaged.buckets.s3upload import S3Upload
from twisted_storaged.buckets.share import Share
from twisted_storaged.buckets.threads import Threads
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import BucketError, InvalidKey, ObjectNotFound, StartError
from twisted_storaged.keys import MAX_KEY_BYTES
from twisted_storaged.s3.answers import info_of, parse_list, storage_errors
from twisted_storaged.s3.setup import make_data_plane

if TYPE_CHECKING:
    from botocore.client import BaseClient

#: The smallest part that S3 allows, in bytes, and the most parts of one upload.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIN_PART_SIZE = 5 << 20
MAX_PARTS = 10_000
#: Parts of one body in flight, for each of as many as there are slots; one alone may have more. With the part that is
#: being filled and the one that waits, a PUT holds 30 MiB, or 50.
WINDOW = 4
WINDOW_ALONE = 8
#: Threads beside the uploading ones: for the calls that boto3 makes.
SPARE_THREADS = 4
#: Seconds for a connection, or a blocked send; and for the next bytes of an answer.
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60


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

    def __init__(self, name: str, settings: S3Settings, reactor: Any, put_slots: int) -> None:
        self.name = name
        self._settings = settings
        self._reactor = reactor
        self._threads = Threads(reactor, max(put_slots * WINDOW, WINDOW_ALONE) + SPARE_THREADS, f"bucket {name}")
        self._chunks = share_of_memory()
        self._window = Share(put_slots * WINDOW, WINDOW, WINDOW_ALONE)
        self._buffers = Buffers(MIN_PART_SIZE, keep=put_slots * WINDOW)

    def start(self) -> None:
        try:
            self._client, credentials = make_client(self._settings)
            bucket = self._settings.bucket
            self._objects = make_data_plane(self._client, credentials, bucket, self._threads.run, self._reactor)
        except (BotoCoreError, ValueError) as error:
            raise StartError(f"bucket {self.name}: {error}") from error
        self._log.info(
            "bucket {name} is {settings.bucket}/{settings.prefix} at {endpoint}",
            name=self.name,
            settings=self._settings,
            endpoint=self._client.meta.endpoint_url,
        )
        self._objects.start()
        self._threads.start()

    @deferred
    async def stop(self) -> None:
        self._objects.stop()
        await self._threads.stop()
        self._client.close()

    @deferred
    async def put(self, key: str, body: IBodyProducer, max_length: int, options: PutOptions = NO_OPTIONS) -> ObjectInfo:
        longest = max_length if body.length is UNKNOWN_LENGTH else body.length
        address = {"Bucket": self._settings.bucket, "Key": self._s3_key(key)}
        upload = S3Upload(self._objects, self._client, self._threads.run, address, key)
        with storage_errors():
            digesting = Digesting(options, self._threads.run)
            return await Uploader(self._buffers_for(longest), self._window).store(body, upload, digesting)

    @deferred
    async def get(self, key: str) -> IObjectReader:
        s3_key = self._s3_key(key)
        with storage_errors():
            answer, body = await self._objects.get_object(s3_key)
        try:
            info = info_of(answer, key)
        except BucketError:
            body.close()
            raise
        return S3Reader(info, body, self._objects, s3_key, self._chunks)

    @deferred
    async def list(self, query: ListQuery, token: str | None = None) -> ListPage:
        with storage_errors():
            answer = await self._objects.list_objects(self._settings.prefix + query.prefix, token)
            return parse_list(answer, self._settings.prefix)

    @deferred
    async def delete(self, key: str) -> None:
        with suppress(ObjectNotFound), storage_errors():  # S3 itself would not say so, some engines do
            await self._objects.delete_object(self._s3_key(key))

    def _s3_key(self, key: str) -> str:
        s3_key = self._settings.prefix + key
        excess = len(s3_key.encode("utf-8")) - MAX_KEY_BYTES
        if excess > 0:
            longest = len(key.encode("utf-8")) - excess
            raise InvalidKey(f"key too long (>{longest} bytes)")
        return s3_key

    def _buffers_for(self, longest: int) -> Buffers:
        size = part_size(longest)
        return self._buffers if size == self._buffers.size else Buffers(size, keep=0)


def part_size(longest: int) -> int:
    """The size of all parts but the last, in bytes, so that a body of `longest` bytes has no part 10,001."""
    needed = -(-longest // MAX_PARTS)
    whole_mebibytes = -(-needed >> 20) << 20
    return max(MIN_PART_SIZE, whole_mebibytes)


def make_client(settings: S3Settings) -> tuple[BaseClient, Any]:
    """The client that a bucket's threads share (clients are thread-safe, sessions are not), and its credentials.

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
    credentials = session.get_credentials()
    if credentials is None:
        raise ValueError("no credentials: not in the secrets file, not in the configuration, not in boto3's own chain")
    region = session.region_name or "us-east-1"
    client = session.client("s3", endpoint_url=settings.endpoint, region_name=region, config=_client_config(settings))
    return client, credentials


def _client_config(settings: S3Settings) -> Config:
    style = {None: "auto", True: "path", False: "virtual"}[settings.use_path_style]
    return Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard"},
        tcp_keepalive=True,
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style},
    )
