"""A bucket's threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults

from tests.support import reactor
from twisted_storaged.runtime.concurrency import Threads
from twisted_storaged.runtime.metering import Meters


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

    @pytest_twisted.ensureDeferred
    async def test_metrics(self) -> None:
        """They tell how many threads are busy, how many calls wait, and for how long calls have waited."""
        meters = Meters()
        threads = Threads(reactor, 2, "name", meters)
        threads.start()

        def values() -> list[Any]:
            found = {one.family.name: dict(one.values).get(("name",)) for one in meters.snapshot()}
            return [found[f"storaged_pool_{name}"] for name in ("threads", "threads_busy", "queue", "wait_seconds")]

        assert values() == [2, 0, 0, None]
        go = threading.Event()
        calls = [threads.run(go.wait, 10) for _ in range(5)]
        assert values() == [2, 2, 3, None]
        go.set()
        await gatherResults(calls)
        with pytest.raises(ValueError, match="invalid literal"):
            await threads.run(int, "x")
        assert values()[:3] == [2, 0, 0]
        *counts, seconds = values()[3]
        assert sum(counts) == 6
        assert 0 < seconds < 60
        await threads.stop()
