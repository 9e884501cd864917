"""Server-sent events: what the page shows, each second, to all that are open.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import OK
from zope.interface import implementer

from twisted_storaged.api.responses import NOT_CACHED
from twisted_storaged.errors import TooManyPages
from twisted_storaged.runtime.concurrency import deferred
from twisted_storaged.runtime.metering import Counter, Meters
from twisted_storaged.runtime.write_buffer import has_unsent
from twisted_storaged.server.request import StreamingRequest

#: Seconds between two events.
EVERY = 1.0
#: Pages that one process keeps up to date.
MOST_PAGES = 100
#: Events in a row that a client does not read, until its connection is cut.
MOST_SKIPPED = 60

_log = Logger()


@implementer(IPushProducer)
class _Stream:
    """The events of one page. While its transport is full, they are skipped: the next one says all."""

    def __init__(self, request: StreamingRequest, skipped: Counter) -> None:
        self.request = request
        self._all_skipped = skipped
        self.ended: Deferred[None] = Deferred()
        self._full = False
        self._skipped = 0

    def send(self, event: bytes) -> None:
        if not self._full:
            self.request.write(event)
            return
        self._skipped += 1
        self._all_skipped.add(1)
        if self._skipped >= MOST_SKIPPED:
            self.request.cut("the client does not read")

    def stop(self) -> None:
        """End soon, also if the client does not read: the last events need not arrive."""
        if has_unsent(self.request.channel.transport):
            self.request.cut("storaged stops")
        self.end()

    def end(self) -> None:
        if not self.ended.called:
            self.ended.callback(None)

    def pauseProducing(self) -> None:
        """Skip events."""
        self._full = True

    def resumeProducing(self) -> None:
        """Send them again."""
        self._full = False
        self._skipped = 0

    def stopProducing(self) -> None:
        """End, as the client is gone."""
        self.end()


class EventStreams:
    """The streams of all open pages. An event is made once for all of them, and none while there are none."""

    def __init__(
        self, make: Callable[[], Deferred[bytes]], meters: Meters, reactor: IReactorTime, most: int = MOST_PAGES
    ) -> None:
        """`make` returns the data of an event, in one line."""
        self._make = make
        self._most = most
        self._streams: set[_Stream] = set()
        self._reactor = reactor
        self._runs = False
        meters.gauge("storaged_pages_open", "Pages that get events.").watch(lambda: len(self._streams))
        self._skipped = meters.counter(
            "storaged_page_events_skipped", "Events that were not sent, as the client did not read the ones before."
        )

    async def serve(self, request: StreamingRequest) -> None:
        """Send events until the client goes, or the daemon stops.

        Raises:
            TooManyPages: so many are open already.
        """
        if len(self._streams) >= self._most:
            raise TooManyPages(f"{self._most} pages are open")
        request.start_response(OK, [(b"Content-Type", b"text/event-stream"), NOT_CACHED])
        if request.method == b"HEAD":
            return
        stream = _Stream(request, self._skipped)
        self._streams.add(stream)
        request.registerProducer(stream, True)
        if not self._runs:
            self._run().addErrback(self._fail)
        await stream.ended
        self._streams.discard(stream)
        request.unregisterProducer()
        request.body_ended()

    @deferred
    async def _run(self) -> None:
        self._runs = True
        while self._streams:
            event = b"data: %b\n\n" % await self._make()
            for stream in list(self._streams):
                # A stream would hold up the end of the daemon; the page asks again, and gets the next one.
                if stream.request.gone:
                    stream.end()
                elif stream.request.channel.site.draining:
                    stream.stop()
                else:
                    stream.send(event)
            await deferLater(self._reactor, EVERY)
        self._runs = False

    def _fail(self, failure: Failure) -> None:
        self._runs = False
        _log.failure("open pages are not kept up to date", failure=failure)
        for stream in list(self._streams):
            stream.end()
