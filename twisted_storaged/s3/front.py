"""The consumer of a GET, as the answers that it is made of see it: one after the other writes to it."""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer

from twisted_storaged.s3.relay import TakeFrom

if TYPE_CHECKING:
    from twisted_storaged.buckets.budget import Portion

#: So many bytes are timed, and so many per second are not slow.
PROBE = 4 << 20
FAST = 150e6


@implementer(IConsumer, IPushProducer)
class Front:
    """What is delivered is counted, timed, and cut off at `end`, if that is set. The consumer sees one producer.

    Attributes:
        delivered: how many bytes have gone to the consumer.
        end: after how many bytes to stop the producer of now; None: never.
        gone: whether the consumer wants no more.
        portion: where what a consumer that is full has not sent yet is counted; None for nowhere.
    """

    def __init__(self, consumer: IConsumer, clock: Any, slow: Callable[[], None] | None) -> None:
        """Deliver to `consumer`; where that is slow, and not because of the consumer, `slow` is told, once."""
        self._consumer = consumer
        self._clock = clock
        self._slow = slow
        self._producer: Any = None
        self._started = self._paused_at = float(clock.seconds())
        self._paused = 0.0
        self._full = False
        self.delivered = 0
        self.end: int | None = None
        self.gone = False
        self.portion: Portion | None = None
        self._writing = 0

    def open(self) -> None:
        """Be the consumer's producer."""
        self._consumer.registerProducer(self, True)

    def close(self) -> None:
        """Be it no more, and keep nothing."""
        self._consumer.unregisterProducer()
        self._producer = self._slow = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        if self.gone:
            self._producer.stopProducing()
        elif self._full:
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if self.gone:
            return
        if self.end is not None and self.delivered + len(data) >= self.end:
            data = data[: self.end - self.delivered]
        self._writing = len(data)
        if self._full:
            self._hold()
        self._consumer.write(data)
        self._writing = 0
        self._count(len(data))

    def take_from(self, source: socket, count: int) -> int | None:
        """The same, if the consumer can, with bytes that it takes from `source` itself; see `relay.TakeFrom`."""
        take_from: TakeFrom | None = getattr(self._consumer, "take_from", None)
        if take_from is None or self.gone:
            return None
        taken = take_from(source, count if self.end is None else min(count, self.end - self.delivered))
        self._count(taken or 0)
        return taken

    def _count(self, taken: int) -> None:
        self.delivered += taken
        if self.delivered == self.end:
            self._producer.stopProducing()
        elif self._slow is not None and self.delivered >= PROBE:
            self._judge()

    def pauseProducing(self) -> None:
        self._full = True
        self._hold()
        self._paused_at = self._clock.seconds()
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._full = False
        if self.portion is not None:
            self.portion.release_all()
        self._paused += self._clock.seconds() - self._paused_at
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        self.gone = True
        if self._producer is not None:
            self._producer.stopProducing()

    def _hold(self) -> None:
        """The consumer is full: what is being written stays with it for a while."""
        if self.portion is not None:
            self.portion.hold(self._writing)

    def _judge(self) -> None:
        slow, self._slow = self._slow, None
        waited = self._clock.seconds() - self._started - self._paused
        if slow is not None and self.delivered < FAST * waited:
            slow()
