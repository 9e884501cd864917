"""Preparing the settings and the embedded buckets for processes that are about to use them, in a process of its own.

That process runs the installed version of storaged, which may be newer than this one, and keeps this one free of
buckets. What it has read is handed on as it was: a worker that is started later has the same settings, even if the
files have changed since.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import MsgspecError, Struct
from msgspec.json import decode, encode
from msgspec.structs import replace
from twisted.logger import Logger

from twisted_storaged.errors import StartError
from twisted_storaged.runtime.log_format import LogFormat
from twisted_storaged.runtime.log_pipe import log_again
from twisted_storaged.runtime.messages import receive, socket_pair
from twisted_storaged.runtime.systemd import ListenSocket, check_local

#: The module that is the program of a worker, and of the preparation.
PROGRAM = "twisted_storaged.worker"
#: Variables that are for this process only.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_log = Logger()


class Sources(Struct, frozen=True, kw_only=True):
    """Where the settings are: as on the command line.

    Attributes:
        config: the configuration file.
        secrets: the secrets file.
        data: the folder of the embedded bucket.
        bind: the endpoint, which overrides that of the configuration.
        log_format: that of the log of the process that was started, which it keeps; None for the configuration's.
    """

    config: str | None
    secrets: str | None
    data: str | None
    bind: str | None
    log_format: LogFormat | None = None


def sources_of(options: Mapping[str, Any]) -> Sources:
    """Return where the settings are, by a parsed command line."""
    return Sources(**{name: options[name] for name in ("config", "secrets", "data", "bind", "log_format")})


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """What a worker is given on its command line. Numbers are descriptors that it inherits.

    Attributes:
        sources: where the settings are.
        control: the socket to the supervisor.
        slots: the file of the put slots.
        report: the file for its report.
        page_key: the file with the key of the page's tokens.
        locks: the locks of the folders of embedded buckets, by the paths of these.
    """

    sources: Sources
    control: int
    slots: int
    report: int
    page_key: int
    locks: dict[str, int]


class Prepared(Struct, frozen=True, kw_only=True):
    """What the preparation of a start has found; descriptors come with it.

    Attributes:
        endpoint: the Twisted endpoint description to listen on.
        local_only: whether the daemon must not be reached from other hosts.
        workers: how many there are to be.
        drain: seconds that requests under way have to complete when a worker stops.
        folders: the folders of all embedded buckets.
        locks: those of them that were prepared, in the order of the descriptors of their locks.
        primary: the kind of the primary bucket: "local" or "s3".
        error: why it has failed; the other attributes mean nothing then.
    """

    endpoint: str = ""
    local_only: bool = True
    workers: int = 1
    drain: float = 0.0
    folders: list[str] = []
    locks: list[str] = []
    primary: str = ""
    error: str | None = None


class Settings:
    """Settings that were prepared, with copies of the files in memory.

    Attributes:
        found: what the preparation has found.
        locks: the descriptors of the locks of the folders of embedded buckets, by the paths of these.
    """

    def __init__(self, sources: Sources, found: Prepared, descriptors: Sequence[int]) -> None:
        self.found = found
        self._sources = sources
        self.config, self.secrets, *locks = descriptors
        self.locks = dict(zip(found.locks, locks, strict=True))

    @property
    def sources(self) -> Sources:
        """The sources, with the copies in place of the files, for a process that inherits these descriptors."""
        return with_copies(self._sources, self.config, self.secrets)

    def close_copies(self) -> None:
        """Close the copies of the files."""
        os.close(self.config)
        os.close(self.secrets)

    def close(self) -> None:
        """Close all descriptors."""
        self.close_copies()
        self.unlock()

    def unlock(self) -> None:
        """Close the locks of the folders, which unlocks them, unless other processes have them, too."""
        for lock in self.locks.values():
            os.close(lock)
        self.locks.clear()


def with_copies(sources: Sources, config: int, secrets: int) -> Sources:
    """Return `sources` with descriptors of copies in place of the files, for a process that inherits these."""
    return replace(sources, config=f"/proc/self/fd/{config}", secrets=f"/proc/self/fd/{secrets}")


def prepare(sources: Sources, inherited: Sequence[int] = (), held: Sequence[str] = ()) -> Settings:
    """Read the settings, and make embedded buckets ready to be opened by workers, in a process of its own. Blocking.

    `held` are the folders of embedded buckets that are in use, and need no preparation. `inherited` are descriptors
    that `sources` refers to.

    Raises:
        StartError: the settings are invalid, a bucket cannot be used, or the process cannot be run.
    """
    try:
        return _prepare(sources, inherited, held)
    except (OSError, MsgspecError) as error:
        raise StartError(f"the settings cannot be read by a process of their own: {error}") from error


def _prepare(sources: Sources, inherited: Sequence[int], held: Sequence[str]) -> Settings:
    ours, theirs = socket_pair()
    with ours, open(os.memfd_create("log"), "w+b") as log:
        with theirs:
            command = [*program("prepare"), str(theirs.fileno()), *held, encode(sources).decode()]
            process = subprocess.Popen(  # noqa: S603 (our own program)
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno(), *inherited],
                env=environment(),
            )
        with process:
            try:
                data, descriptors = receive(ours)
            except OSError:
                data, descriptors = b"", []
        log.seek(0)
        log_again(log.read().splitlines(), "the preparation")
    found = decode(data, type=Prepared) if data else Prepared(error=f"its preparation ended with {process.returncode}")
    if found.error is None and len(descriptors) != 2 + len(found.locks):
        # The kernel drops those beyond the limit.
        for descriptor in descriptors:
            os.close(descriptor)
        found = Prepared(error="too few files can be open: raise the limit, see LimitNOFILE=")
    if found.error is not None:
        raise StartError(found.error)
    return Settings(sources, found, descriptors)


def check_replacement(settings: Settings, endpoint: str, primary: str, sockets: Sequence[ListenSocket]) -> None:
    """Check that processes with these settings may replace those with this endpoint and this kind of primary bucket.

    They listen on the same `sockets`. If they may not, the settings are closed.

    Raises:
        StartError: they may not.
    """
    try:
        if settings.found.primary != primary:
            raise StartError(
                f"the kind of the primary bucket has changed from {primary} to {settings.found.primary}: restart the "
                "daemon for this"
            )
        if settings.found.local_only:
            check_local(sockets)
    except StartError:
        settings.close()
        raise
    if settings.found.endpoint != endpoint:
        _log.warn("the address to listen on has changed: this takes effect when the daemon is restarted")


def program(command: str) -> list[str]:
    """Return the command line of a process that this one starts, up to the arguments of `command`."""
    # -P: in the working folder, anybody may have left a module that Python would import instead of ours.
    return [sys.executable, "-P", "-m", PROGRAM, command]


def environment() -> dict[str, str]:
    """Return the environment of a process that this one starts."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # At last where this process has found the package: it may run from a source tree that is not installed.
    paths = [*filter(None, [inherited.get("PYTHONPATH")]), str(Path(__file__).parent.parent)]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}
