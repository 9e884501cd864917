"""S3Bucket: a bucket of AWS or of any other engine with S3's API.

All requests are made by `client`; boto3 only provides endpoint and credentials. Payloads are not signed, since hashing
them with SHA-256 costs more than everything else together. Each has a CRC-32C that engines verify on arrival, in a
header, as not all engines understand trailers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from twisted_storaged.buckets.s3.client import FIRST_READ_SIZE, MultipartUploads
from twisted_storaged.buckets.s3.context import S3Context
from twisted_storaged.buckets.s3.journal import Journal
from twisted_storaged.buckets.s3.meters import S3Meters
from twisted_storaged.buckets.s3.probe import CAPABILITIES_BY_SETTING, ConditionalSupport, Probe, new_probe_key
from twisted_storaged.buckets.s3.reader import READS, Body, ReadSettings, S3Reader
from twisted_storaged.buckets.s3.reaper import Reaper
from twisted_storaged.buckets.s3.responses import (
    RequestFailed,
    Retries,
    info_of,
    opened,
    size_from_response,
    storage_errors,
)
from twisted_storaged.buckets.s3.session import S3Settings, Upkeep, connect
from twisted_storaged.buckets.s3.verification import Verifier
from twisted_storaged.buckets.s3.writer import NO_CAPABILITIES, Capabilities, S3Upload, condition_headers
from twisted_storaged.buckets.upload import BodyDigests, Uploader
from twisted_storaged.errors import BucketTimedOut, InvalidKey, ObjectNotFound, RangeNotSatisfiable, StartError
from twisted_storaged.interfaces import IBucket, IObjectReader, IRequestBody
from twisted_storaged.model import (
    MAX_KEY_BYTES,
    NO_OPTIONS,
    ByteRange,
    Condition,
    ListPage,
    ListQuery,
    ObjectInfo,
    PutOptions,
)
from twisted_storaged.protocol.checksums import CHECKSUM_MODE
from twisted_storaged.protocol.http1 import Response
from twisted_storaged.protocol.s3_xml import list_parameters, parse_list, sorted_after
from twisted_storaged.runtime.buffers import MIN_READ, BufferPool, FairShare, part_buffers
from twisted_storaged.runtime.concurrency import Threads, deferred
from twisted_storaged.runtime.metering import Meters

#: The smallest part that S3 allows, in bytes, and the most parts of one upload.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIN_PART_SIZE = 5 << 20
MAX_PARTS = 10_000
#: Parts of one body in flight if all put slots are taken, and if there is only one PUT. With the part that is being
#: filled and the one that waits, a PUT holds 30 to 50 MiB.
WINDOW = 4
WINDOW_ALONE = 8
#: Threads in addition to the uploading ones: for hashing, the journal, and refreshing credentials.
SPARE_THREADS = 4
#: Seconds that S3 has to answer a check; and what it is asked for.
CHECK_SECONDS = 3.0
ONE_KEY = ListQuery(page_limit=1, limit=1)


@implementer(IBucket)
class S3Bucket:
    """The objects under `settings.prefix` of a bucket in S3; clients do not see the prefix."""

    _log = Logger()

    def __init__(  # noqa: PLR0913 (what it shares with others)
        self,
        name: str,
        settings: S3Settings,
        reactor: Any,
        put_slots: int,
        upkeep: Upkeep,
        meters: Meters | None = None,
    ) -> None:
        """Create the bucket, unopened. What it does is counted in `meters`; by default, in its own."""
        self.name = name
        self._settings = settings
        self._reactor = reactor
        self._upkeep = upkeep
        meters = meters or Meters()
        self._meters = S3Meters(meters, name)
        self._journal = Journal(upkeep.state)
        threads = max(put_slots * WINDOW, WINDOW_ALONE) + SPARE_THREADS
        self._threads = Threads(reactor, threads, f"bucket {name}", meters)
        self._window = FairShare(put_slots * WINDOW, WINDOW, WINDOW_ALONE)
        buffers = part_buffers(MIN_PART_SIZE, keep=put_slots * WINDOW)
        buffers.watch(meters, "put")
        self._uploader = Uploader(buffers, self._window)
        self._conditions = ConditionalSupport(CAPABILITIES_BY_SETTING[settings.conditional_writes], self._probe)

    def start(self) -> None:
        try:
            retries = Retries(self._reactor, self._upkeep.deadline, self._meters)
            self._objects, where = connect(self._settings, self._threads.run, retries)
        except ValueError as error:
            raise StartError(f"bucket {self.name}: {error}") from error
        self._journal.open()
        uploads = MultipartUploads(self._objects)
        self._context = S3Context(self._objects, uploads, self._threads.run, self._journal, where, self._meters)
        self._reading = ReadSettings(
            self._objects, self._upkeep.delivering, self._settings.get_resumes, self._upkeep.ahead, self._meters
        )
        self._log.info("bucket {name} is {where}/{prefix}", name=self.name, where=where, prefix=self._settings.prefix)
        verify = self._settings.verify_reads
        self._verifier = None if verify is False else Verifier(verify is True, self._objects)
        self._objects.start()
        for pool in self._objects.pools:
            self._meters.watch(pool)
        self._threads.start()
        self._reaper = Reaper(self._context, self._upkeep.abandoned_after)
        self._reaper.start(self._reactor, self._upkeep.reap_interval)

    @deferred
    async def stop(self) -> None:
        # First, so that the reaper and the threads do not wait for responses that may never come.
        self._objects.stop()
        await self._reaper.stop()
        await self._threads.stop()
        self.close()

    def ping(self) -> Deferred[None]:
        return self._threads.ping()

    @deferred
    async def check(self) -> None:
        ends = self._reactor.seconds() + CHECK_SECONDS
        # Large parts are sent by threads.
        await self._threads.ping().addTimeout(CHECK_SECONDS, self._reactor, _no_thread)
        prefix, left = self._settings.prefix, max(0.0, ends - self._reactor.seconds())
        # As a write, since the only thing that can be missing is the bucket.
        with storage_errors(writes=True):
            parse_list(await self._objects.list_once(list_parameters(ONE_KEY, None, prefix), left), ONE_KEY, prefix)

    def close(self) -> None:
        self._journal.close()

    async def put(self, key: str, body: IRequestBody, max_length: int, options: PutOptions = NO_OPTIONS) -> ObjectInfo:
        s3_key = self._s3_key(key)
        uploader = self._uploader_for(max_length if body.declared is None else body.declared)
        condition, capabilities = options.condition, NO_CAPABILITIES
        if condition is not None:
            capabilities = await self._conditions.require(condition, *_operations(body.declared, uploader.buffers.size))
        with storage_errors(writes=True, conditional=condition is not None):
            upload = S3Upload(self._context, s3_key, key, options, capabilities)
            upload.part_size = uploader.buffers.size
            digesting = BodyDigests(options, self._threads.run)
            return await uploader.store(body, upload, digesting)

    async def head(self, key: str) -> ObjectInfo:
        with storage_errors():
            return info_of(await self._objects.head_object(self._s3_key(key)), key)

    async def get(self, key: str, wanted: ByteRange | None = None) -> IObjectReader:
        s3_key = self._s3_key(key)
        try:
            return await self._open(s3_key, key, wanted)
        except RangeNotSatisfiable as error:
            # Some engines refuse a range that begins within the object and ends after it.
            start, end = wanted.within(error.size) if wanted is not None else (0, 0)
            return await self._open(s3_key, key, ByteRange(start, end - 1))

    async def _open(self, s3_key: str, key: str, wanted: ByteRange | None) -> S3Reader:
        headers: Mapping[str, str] = {} if wanted is None else {"range": str(wanted)}
        verifier = self._verifier if wanted is None else None  # the checksum of a whole object says nothing of a range
        if verifier is not None:
            headers = CHECKSUM_MODE
        with storage_errors():
            try:
                response, body = await self._first_read(s3_key, headers)
            except RequestFailed as error:
                if error.response.status != 416:
                    raise
                size = size_from_response(error.response)
                # Not every engine tells the size in a 416.
                raise RangeNotSatisfiable((await self.head(key)).size if size is None else size) from error
        try:
            reader = S3Reader(s3_key, *opened(response, key, wanted), body, self._reading)
            if verifier is not None:
                await verifier.verify(reader, response, s3_key)
            return reader
        except BaseException:
            body.close()
            raise

    async def _first_read(self, s3_key: str, headers: Mapping[str, str]) -> tuple[Response, Body]:
        """Open an object; the first read is limited to the memory that is free."""
        portion = self._reading.delivering.join(READS)
        try:
            first = max(MIN_READ, min(FIRST_READ_SIZE, portion.next_size()))
            return await self._objects.get_object(s3_key, headers, first)
        finally:
            portion.leave()

    async def list(self, query: ListQuery, token: str | None = None) -> ListPage:
        prefix = self._settings.prefix
        with storage_errors():
            response = await self._objects.list_objects(list_parameters(query, token, prefix))
            page = parse_list(response, query, prefix)
        if not self._settings.lists_in_order:
            page = replace(page, ordered=False)
        return page if query.after is None else sorted_after(page, query.after)

    async def delete(self, key: str, condition: Condition | None = None) -> None:
        s3_key = self._s3_key(key)
        if condition is not None:
            await self._conditions.require(condition, "DeleteObject")
            with storage_errors(writes=True, conditional=True):
                await self._objects.delete_object(s3_key, condition_headers(condition))
            return
        # S3 deletes nothing without an error, but other engines answer 404.
        with suppress(ObjectNotFound), storage_errors():
            await self._objects.delete_object(s3_key)

    @deferred
    async def _probe(self) -> Capabilities:
        key = new_probe_key(self._settings.prefix)
        capabilities = await Probe(self._context, key).capabilities()
        self._log.info(
            "bucket {name} checks and writes in one step: {capabilities}",
            name=self.name,
            capabilities=", ".join(sorted(map(str, capabilities))) or "nothing",
        )
        return capabilities

    def _s3_key(self, key: str) -> str:
        s3_key = self._settings.prefix + key
        excess = len(s3_key.encode("utf-8")) - MAX_KEY_BYTES
        if excess > 0:
            longest = len(key.encode("utf-8")) - excess
            raise InvalidKey(f"key too long (>{longest} bytes)")
        return s3_key

    def _uploader_for(self, longest: int) -> Uploader:
        size = part_size(longest)
        # Bodies that may have more than 48 GiB are rare, so that no memory of their larger parts is kept.
        return self._uploader if size == MIN_PART_SIZE else Uploader(BufferPool(size, keep=0), self._window)


def _no_thread(_: object, seconds: float) -> NoReturn:
    raise BucketTimedOut(f"no thread of the bucket was free within {seconds:g} s")


def _operations(length: int | None, part: int) -> Sequence[str]:
    """The operations that may write a body of `length` bytes, if known, in parts of `part` bytes."""
    if length is None:
        return "PutObject", "CompleteMultipartUpload"
    return ("PutObject",) if length <= part else ("CompleteMultipartUpload",)


def part_size(longest: int) -> int:
    """Bytes of all parts but the last, so that a body of `longest` bytes has at most 10,000 parts."""
    needed = -(-longest // MAX_PARTS)
    whole_mebibytes = -(-needed >> 20) << 20
    return max(MIN_PART_SIZE, whole_mebibytes)
