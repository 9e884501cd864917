"""The log file of `twistd`: its size is bounded, and it is private to the user of the daemon.

twistd writes one in the background, and with `--logfile`. Its own is rotated as well, but all rotated files are kept,
and it is not written to again once a disk was full while it was rotated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGUSR1, getsignal, signal
from threading import RLock
from typing import Any

from twisted.logger import ILogObserver

from twisted_storaged.runtime.log_pipe import LogWriter, open_standard_output

#: Bytes at which the log file is rotated.
ROTATE_AT = 10_000_000
#: How many rotated files are kept: `twistd.log.1` is the latest, and `twistd.log.10` the oldest.
ROTATED_FILES = 10
#: The log file of a daemon in the background without `--logfile`.
DEFAULT_NAME = "twistd.log"


def bound_log_file(twistd: Any, log: LogWriter) -> None:
    """Let `log` write the log for which a command line of twistd will ask, while that is being parsed.

    `twistd` is its `ServerOptions`. A log that goes elsewhere stays as it is: to `--logger` or syslog.
    """
    post_options = twistd.postOptions

    def post_options_and_bound() -> None:
        # Not before: twistd takes what it finds there for the name of a factory, and imports it.
        post_options()
        if twistd["logger"] is None:
            twistd["logger"] = partial(file_observer, twistd, log)

    twistd.postOptions = post_options_and_bound


def file_observer(
    twistd: Mapping[str, Any], log: LogWriter, rotate_at: int = ROTATE_AT, rotated_files: int = ROTATED_FILES
) -> ILogObserver | None:
    """Let a log go where a command line of twistd wants it; None where twistd is to do that.

    SIGUSR1 rotates its file, as it does with twistd's own. Beside it, older rotated files than the last
    `rotated_files` are removed when it is rotated.
    """
    name = twistd["logfile"]
    if twistd["syslog"]:
        return None
    if twistd["nodaemon"] and name in (None, "", "-"):
        return open_standard_output(log, os.environ)
    if name == "-":
        # twistd refuses that.
        return None
    path = Path(name or DEFAULT_NAME).absolute()
    # A device, such as /dev/null, must not be renamed.
    is_rotated = path.is_file() or not path.exists()
    # twistd opens the log before it sets its umask, so that the umask of the shell would apply.
    mode = 0o666 & ~(0o077 if twistd["umask"] is None else twistd["umask"])
    log_file = RotatedFile(path, mode, rotate_at if is_rotated else None, rotated_files)
    if is_rotated and not getsignal(SIGUSR1):

        def rotate(*_: object) -> None:
            from twisted.internet import reactor  # noqa: PLC0415 (at module level, it would install another one)

            reactor.callFromThread(log_file.rotate)  # type: ignore[attr-defined]

        signal(SIGUSR1, rotate)
    return log.open(log_file.write)


class RotatedFile:
    """A file that is appended to. When it is long, it is renamed, and begun anew; the latest renamed ones are kept."""

    def __init__(self, path: Path, mode: int, rotate_at: int | None, rotated_files: int) -> None:
        """Open the file, with this mode if it does not exist; `rotate_at` is the length, in bytes. Raises OSError."""
        self._path = path
        # A file that exists keeps its mode, and the rotated ones get it.
        self._mode = path.stat().st_mode & 0o7777 if path.exists() else mode
        self._rotate_at = rotate_at
        self._rotated_files = rotated_files
        self._lock = RLock()
        self._file = self._open()

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes, or some of them; returns how many. Raises OSError."""
        with self._lock:
            if self._rotate_at is not None and os.fstat(self._file).st_size >= self._rotate_at:
                # Where that is impossible, the file gets longer.
                with suppress(OSError):
                    self.rotate()
            return os.write(self._file, data)

    def rotate(self) -> None:
        """Rename the file, and begin it anew. Raises OSError; then the old one is still written to."""
        with self._lock:
            # Not if it was renamed before, and could not be begun anew.
            if self._path.exists():
                self._rename()
            new = self._open()
            os.close(self._file)
            self._file = new

    def _rename(self) -> None:
        rotated = re.compile(rf"{re.escape(self._path.name)}\.([1-9][0-9]{{0,8}})")
        matches = map(rotated.fullmatch, os.listdir(self._path.parent))
        for number in sorted((int(match[1]) for match in matches if match), reverse=True):
            path = self._numbered(number)
            if number >= self._rotated_files:
                path.unlink()
            else:
                path.rename(self._numbered(number + 1))
        self._path.rename(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> int:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, self._mode)
        # The umask is not asked.
        with suppress(OSError):
            os.fchmod(file, self._mode)
        return file
