"""A bucket's threads."""

from __future__ import annotations

import threading

import pytest
import pytest_twisted

from tests.support import reactor
from twisted_storaged.runtime.concurrency import Threads


class ThreadsTests:
    """Blocking calls."""

    @pytest_twisted.ensureDeferred
    async def test_calls_are_made_elsewhere(self) -> None:
        """With their arguments; results and errors come back."""
        threads = Threads(reactor, 2, "name")
        threads.start()
        thread = await threads.run(threading.current_thread)
        assert thread is not threading.current_thread()
        assert thread.daemon
        assert await threads.run(int, "7", base=8) == 7
        with pytest.raises(ValueError, match="invalid literal"):
            await threads.run(int, "x")
        await threads.stop()

    @pytest_twisted.ensureDeferred
    async def test_stopping_waits_for_what_is_under_way(self) -> None:
        """Without blocking the reactor."""
        threads = Threads(reactor, 1, "name")
        threads.start()
        go, ended = threading.Event(), []
        call = threads.run(lambda: ended.append(go.wait(10)))
        stopped = threads.stop()
        assert not stopped.called
        go.set()
        await stopped
        await call
        assert ended == [True]
