"""What a GET from S3 leaves in memory when it has ended: nothing that would have to wait for the garbage collector."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.buckets.conftest import OnScripted
from tests.engines.scripted import Answer
from tests.support import Consumer, reactor
from twisted_storaged.buckets.s3.read_ahead import ReadAhead
from twisted_storaged.buckets.s3.reader import S3Reader
from twisted_storaged.buckets.s3.response_body import ResponseSequence, StreamedBody
from twisted_storaged.errors import BucketUnreachable, DamagedObject
from twisted_storaged.interfaces import IObjectReader
from twisted_storaged.protocol.http1 import ConnectionFailed, Response, ResponseParser
from twisted_storaged.runtime.buffers import ReadReservation
from twisted_storaged.runtime.concurrency import ConsumerGone, forget_frames, run_coroutine
from twisted_storaged.runtime.direct_io import SpliceReader

DATA = bytes(4_000_000)
CLASSES = {
    Consumer,
    ReadAhead,
    ReadReservation,
    SpliceReader,
    Response,
    ResponseParser,
    ResponseSequence,
    S3Reader,
    StreamedBody,
}
SLOW = Answer(do_it_first=True, seconds_per_mib=0.3)


def kept() -> dict[str, int]:
    """How many objects there are of the classes that a GET needs."""
    return {kind.__name__: n for kind, n in Counter(map(type, gc.get_objects())).items() if kind in CLASSES}


@pytest.fixture(autouse=True)
def _without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class KeptTests:
    """Objects that hold buffers, after the ends that a GET can have."""

    async def deliver(self, reader: IObjectReader, consumer: Consumer, leave_after: float | None = None) -> str:
        """Deliver as a request does; returns the name of the error, if there is one."""
        ended: Deferred[str] = Deferred()

        async def handle() -> None:
            await reader.deliver(consumer)

        def failed(failure: Failure) -> None:
            name = type(failure.value).__name__
            forget_frames(failure.value)
            reactor.callLater(0, ended.callback, name)

        run_coroutine(handle(), lambda: reactor.callLater(0, ended.callback, ""), failed)
        if leave_after is not None:
            await deferLater(reactor, leave_after)
            consumer.producer.stopProducing()
        return await ended

    @pytest_twisted.ensureDeferred
    async def test_a_whole_one(self, on_scripted: OnScripted) -> None:
        """The connection is kept for the next request, and nothing else is."""
        endpoint, make = on_scripted
        endpoint.objects["k"], before, bucket = (DATA, "etag"), kept(), make()
        for _ in range(3):
            assert await self.deliver(await bucket.get("k"), Consumer()) == ""
        assert kept() == before

    @pytest_twisted.ensureDeferred
    async def test_one_whose_client_left(self, on_scripted: OnScripted) -> None:
        """In the middle of the body."""
        endpoint, make = on_scripted
        endpoint.objects["k"], before, bucket = (DATA, "etag"), kept(), make()
        endpoint.script = lambda _: SLOW
        for _ in range(3):
            reader = await bucket.get("k")
            assert await self.deliver(reader, Consumer(), leave_after=0.1) == ConsumerGone.__name__
        del reader
        await deferLater(reactor, 0.05)
        assert kept() == before

    @pytest_twisted.ensureDeferred
    async def test_one_that_nobody_reads(self, on_scripted: OnScripted) -> None:
        """Such as that of a request whose client left before the answer of S3."""
        endpoint, make = on_scripted
        endpoint.objects["k"], before, bucket = (DATA, "etag"), kept(), make()
        for _ in range(3):
            (await bucket.get("k")).close()
        await deferLater(reactor, 0.05)
        assert kept() == before

    @pytest_twisted.ensureDeferred
    async def test_one_that_breaks_off(self, on_scripted: OnScripted) -> None:
        """For good, after it has gone on once."""
        endpoint, make = on_scripted
        endpoint.objects["k"], before, bucket = (DATA, "etag"), kept(), make(get_resumes=1)
        endpoint.script = lambda _: Answer(do_it_first=True, cut=1_000_000)
        assert await self.deliver(await bucket.get("k"), Consumer()) == BucketUnreachable.__name__
        await deferLater(reactor, 0.05)
        assert kept() == before


def test_forgetting_frames_reaches_all_causes() -> None:
    """Of an error that was raised from another, that one's frames are let go of, too."""
    try:
        try:
            raise ConnectionFailed("first")
        except ConnectionFailed as error:
            raise DamagedObject("second") from error
    except DamagedObject as error:
        caught = error
    forget_frames(caught)
    assert caught.__traceback__ is None
    assert caught.__cause__ is not None
    assert caught.__cause__.__traceback__ is None
