"""The timer of a connection: one that is kept, and set anew when due, where Twisted makes one for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall
from twisted.protocols.policies import TimeoutMixin

if TYPE_CHECKING:
    from twisted_storaged.web.site import StorageSite


class KeptTimer(TimeoutMixin):
    """Calls `timeoutConnection` when nothing has happened for `timeOut` seconds."""

    site: StorageSite
    timeOut: float | None  # type: ignore[assignment]
    _timer: IDelayedCall | None = None
    _deadline = 0.0

    def setTimeout(self, period: float | None) -> float | None:
        """Begin to wait for `period` seconds, or, for None, do so no more; returns what it was before."""
        before, self.timeOut = self.timeOut, period
        self.resetTimeout()
        if period is not None and self._timer is None:
            self._timer = self.callLater(period, self._timer_is_due)
        return before

    def resetTimeout(self) -> None:
        """Something has happened."""
        if self.timeOut is not None:
            self._deadline = self.site.reactor.seconds() + self.timeOut

    def _timer_is_due(self) -> None:
        self._timer = None
        if self.timeOut is None:
            return
        left = self._deadline - self.site.reactor.seconds()
        if left > 0:
            self._timer = self.callLater(left, self._timer_is_due)
        else:
            self.timeoutConnection()

    def cancel_timer(self) -> None:
        """The connection is closed."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
