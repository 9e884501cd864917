"""The consumer that verifies an object on its way to another, and keeps wrong bytes from coming to a clean end."""

from __future__ import annotations

from twisted.internet.interfaces import IConsumer, IProducer
from zope.interface import implementer

from twisted_storaged.deferreds import Gate
from twisted_storaged.s3.checksums import Verification


@implementer(IConsumer)
class VerifyingConsumer:
    """Passes bytes on to `consumer`; the last ones only if all together are what they should be.

    It has no `take_from` (see `relay`): bytes that are verified have to pass through memory.

    Attributes:
        mismatch: what is wrong with the bytes, once all have come and they are wrong; the last ones were not passed on.
    """

    def __init__(self, consumer: IConsumer, verification: Verification) -> None:
        self._consumer = consumer
        self._verification = verification
        self._held = b""
        self.mismatch: str | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The consumer's producer is the one of now."""
        self._consumer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """It has none."""
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        """Verify the next bytes, and pass them on."""
        self._verification.update(data)
        if not self._verification.left:
            self.mismatch = self._verification.mismatch()
        if self.mismatch is None:
            self._consumer.write(data)
        else:
            self._held = data

    async def release(self) -> None:
        """Pass on the last bytes in spite of the mismatch. Raises ConsumerGone."""
        gate = Gate()
        self._consumer.registerProducer(gate, True)
        try:
            self._consumer.write(self._held)
            await gate.opened()
        finally:
            self._consumer.unregisterProducer()
