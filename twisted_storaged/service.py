"""The one service: its buckets open, then it listens, and when it stops it drains. In that order, and back."""

from __future__ import annotations

import gc
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged import __version__
from twisted_storaged.admission import PutSlots
from twisted_storaged.buckets.registry import Registry
from twisted_storaged.deferreds import deferred
from twisted_storaged.errors import StartError
from twisted_storaged.heap import HeapTrimmer
from twisted_storaged.web.site import StorageSite

#: Seconds that requests under way have to end by themselves when the daemon stops; and, after that, the uploads
#: behind those that were dropped to abort, and the buckets to close.
DRAIN_SECONDS = 5
CLOSE_SECONDS = 5


class StorageService(Service):
    """storaged, as twistd runs it."""

    name = "storaged"
    _log = Logger()

    def __init__(self, endpoint: str, site: StorageSite, registry: Registry, slots: PutSlots, reactor: Any) -> None:
        self._endpoint = endpoint
        self._site = site
        self._registry = registry
        self._slots = slots
        self._reactor = reactor
        self._ports: list[IListeningPort] = []
        self._trimmer = HeapTrimmer(reactor)

    def startService(self) -> None:
        """Open the buckets and listen; the reactor does not run yet, so this may block.

        Raises:
            StartError: a bucket cannot be opened, or the port is taken.
        """
        # What is here from the start stays to the end: looking at it again and again is what makes collections slow.
        self._reactor.callWhenRunning(gc.freeze)
        self._reactor.callWhenRunning(self._trimmer.start)
        try:
            self._registry.start()
            self._listen()
        except StartError as error:
            # In the background, twistd tells its parent no more than the first hundred bytes.
            self._log.critical("{error}", error=error)
            raise
        # Not before: `running` says that there is something to close.
        super().startService()

    def _listen(self) -> None:
        failures: list[Failure] = []
        try:
            endpoint = serverFromString(self._reactor, self._endpoint)
            endpoint.listen(self._site).addCallbacks(self._listening, failures.append)
        # A RuntimeError: the description ends in a backslash.
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise StartError(f"cannot listen on {self._endpoint}: {error}") from error
        if failures:
            raise StartError(f"cannot listen on {self._endpoint}: {failures[0].value}")

    def _listening(self, port: IListeningPort) -> None:
        self._ports.append(port)
        self._log.info("storaged {version} listens on {address}", version=__version__, address=_shown(port.getHost()))

    @deferred
    async def stopService(self) -> None:
        """Listen no more, let requests end for a while, drop the rest, wait for their uploads, close the buckets."""
        super().stopService()
        self._trimmer.stop()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        await self._within(DRAIN_SECONDS, self._site.drain())
        self._site.abort()
        await self._within(CLOSE_SECONDS, self._slots.when_idle())
        await self._within(CLOSE_SECONDS, self._registry.stop())
        self._log.info("storaged has stopped")

    async def _within(self, seconds: float, done: Deferred[Any]) -> None:
        def late(failure: Failure) -> None:
            self._log.warn("gave up waiting: {failure.value}", failure=failure)

        await done.addTimeout(seconds, self._reactor).addErrback(late)


def _shown(address: IAddress) -> str:
    if isinstance(address, IPv4Address | IPv6Address):
        return f"{address.host}:{address.port}"
    return str(address)
