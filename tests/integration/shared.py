"""Worker processes that have one embedded bucket open, for tests: each is told what to do by lines on its input.

`python -m tests.integration.shared FOLDER LOCK` is such a worker: LOCK is the descriptor of the folder's lock.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorFromThreads

from tests.support import BytesBody, Consumer
from twisted_storaged.buckets.local.bucket import LocalBucket, LocalSettings
from twisted_storaged.errors import PreconditionFailed
from twisted_storaged.model import Condition, PutOptions

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60

#: Sizes of objects in the index, and of objects in files.
SMALL, LARGE = 1000, 200_000


def content(version: str, size: int) -> bytes:
    """The content of an object, from which its version can be read."""
    return f"{version}\n".encode().ljust(size, version[-1:].encode())


class Worker:
    """A worker process of a bucket; `with` kills it at the end.

    Attributes:
        told: the events that it has told of, without those that `ask` has returned.
    """

    def __init__(self, folder: Path, lock: int, launcher: Sequence[str] = ()) -> None:
        """Start the process; `launcher` is a command that runs the command which is appended to it."""
        self.told: list[Any] = []
        self._answers: dict[int, Any] = {}
        self._asked = 0
        command = [*launcher, sys.executable, "-m", "tests.integration.shared", str(folder), str(lock)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(lock,)
        )
        Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()

    def ask(self, *command: Any) -> Any:
        """Have it do something; returns the result, or the name of an exception."""
        return self.answer(self.begin(*command))

    def begin(self, *command: Any) -> int:
        """Have it do something; returns the number for `answer`."""
        self._asked += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([self._asked, *command]) + "\n")
        self.process.stdin.flush()
        return self._asked

    def answer(self, number: int) -> Any:
        """Wait for a result."""
        wait_for(lambda: number in self._answers or self.process.poll() is not None)
        wait_for(lambda: number in self._answers, 2)
        return self._answers.pop(number)

    def pause(self) -> None:
        """Send SIGSTOP and wait until all threads have stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        self.process.kill()
        self.process.wait()
        self._reader_ended()

    def stop(self) -> None:
        """Stop it cleanly."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(SECONDS) == 0
        self._reader_ended()

    def _reader_ended(self) -> None:
        wait_for(lambda: self._ended)

    _ended = False

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                number, told = json.loads(line)
                if number:
                    self._answers[number] = told
                else:
                    self.told.append(told)
        self._ended = True


def wait_for(condition: Any, seconds: float = SECONDS) -> None:
    """Wait until a condition holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.01)


class _Commands:
    """What a worker can be asked to do."""

    def __init__(self, bucket: LocalBucket) -> None:
        self._bucket = bucket
        self._is_stopping = False

    async def put(self, key: str, version: str, size: int, condition: str | None = "any") -> str:
        """Put an object; `condition` is "any", or the ETag that it must have, None for no object."""
        options = PutOptions(condition=None if condition == "any" else Condition(condition))
        return (await self._bucket.put(key, BytesBody(content(version, size)), 1 << 30, options)).etag

    async def get(self, key: str) -> str:
        """Read an object; returns its version, or "torn"."""
        consumer = Consumer()
        reader = await self._bucket.get(key)
        await reader.deliver(consumer)
        version = consumer.data.partition(b"\n")[0].decode()
        return version if content(version, len(consumer.data)) == consumer.data else "torn"

    async def race(self, writers: Sequence[str], rounds: int) -> list[tuple[int, str]]:
        """Let writers create one object in each round; returns who has, in which round."""
        won: list[tuple[int, str]] = []

        async def create(round_: int, writer: str) -> None:
            try:
                await self.put(f"race/{round_}", writer, LARGE if round_ % 2 else SMALL, None)
            except PreconditionFailed:
                return
            won.append((round_, writer))

        for round_ in range(rounds):
            await gatherResults([Deferred.fromCoroutine(create(round_, writer)) for writer in writers])
        return won

    async def count(self, key: str, times: int) -> None:
        """Increment a number by conditional PUTs."""
        for _ in range(times):
            while True:
                reader = await self._bucket.get(key)
                consumer = Consumer()
                await reader.deliver(consumer)
                number = int(consumer.data.partition(b"\n")[0]) + 1
                size = LARGE if number % 2 else SMALL
                try:
                    await self.put(key, str(number), size, reader.info.etag)
                except PreconditionFailed:
                    continue
                break

    async def churn(self, prefix: str, keys: int, sizes: Sequence[int]) -> None:
        """Put objects until the process ends, and tell of each that was acknowledged."""

        async def put_all(key: str) -> None:
            version = 0
            while not self._is_stopping:
                version += 1
                await self.put(key, str(version), sizes[version % len(sizes)])
                _tell(0, [key, version])

        await gatherResults([Deferred.fromCoroutine(put_all(f"{prefix}/{number}")) for number in range(keys)])

    async def read_all(self, key: str, seconds: float) -> list[str]:
        """Read one object again and again; returns the versions, and names of exceptions, that were found."""
        end, found = time.monotonic() + seconds, set()
        while time.monotonic() < end:
            try:
                found.add((await self.get(key)).rstrip("0123456789") or "whole")
            except Exception as error:  # noqa: BLE001 (it is reported)
                found.add(type(error).__name__)
        return sorted(found)

    async def stop(self) -> None:
        """Stop the bucket, once nothing is written any more."""
        self._is_stopping = True
        await self._bucket.stop()


def _tell(number: int, what: Any) -> None:
    sys.stdout.write(json.dumps([number, what]) + "\n")
    sys.stdout.flush()


async def _answer(number: int, command: Coroutine[Deferred[Any], Any, Any]) -> None:
    try:
        result = await command
    except Exception as error:  # noqa: BLE001 (all are reported)
        result = type(error).__name__
    _tell(number, result)


def versions(path: Path) -> dict[str, str]:
    """The versions of all objects, as a daemon that is the only process of the bucket reads them; or "torn"."""
    from twisted_storaged.buckets.local.index_reads import open_index_reader  # noqa: PLC0415

    found: dict[str, str] = {}
    with closing(open_index_reader(path / "index.sqlite")) as index:
        for key, _ in index.walk(b"", 1_000_000):
            entry = index.get(key.decode())
            assert entry is not None
            etag = entry.info.etag
            data = entry.content or (path / "objects" / etag[:2] / etag).read_bytes()
            version = data.partition(b"\n")[0].decode()
            found[key.decode()] = version if data == content(version, entry.info.size) else "torn"
    return found


def main(folder: str, lock: str) -> None:
    """Be a worker."""
    from twisted.internet import reactor  # noqa: PLC0415
    from twisted.internet.stdio import StandardIO  # noqa: PLC0415
    from twisted.protocols.basic import LineOnlyReceiver  # noqa: PLC0415

    the_reactor: Any = reactor
    bucket = LocalBucket("local", LocalSettings(Path(folder)), IReactorFromThreads(the_reactor), 4, None, int(lock))
    bucket.start()
    commands = _Commands(bucket)

    class Input(LineOnlyReceiver):
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            number, name, *arguments = json.loads(line)
            Deferred.fromCoroutine(_answer(number, getattr(commands, name)(*arguments)))

    the_reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(commands.stop()))
    StandardIO(Input())
    _tell(0, "ready")
    the_reactor.run()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
