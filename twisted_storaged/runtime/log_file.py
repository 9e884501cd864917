"""The log file of `twistd`: its size is bounded, and it is private to the user of the daemon.

twistd writes one in the background, and with `--logfile`. Its own is rotated as well, but all rotated files are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from signal import SIGUSR1, getsignal, signal
from typing import Any

from twisted.logger import ILogObserver, textFileLogObserver
from twisted.python.logfile import LogFile

from twisted_storaged.runtime.log_pipe import standard_output

#: Bytes at which the log file is rotated.
ROTATE_AT = 10_000_000
#: How many rotated files are kept: `twistd.log.1` is the latest, and `twistd.log.10` the oldest.
ROTATED_FILES = 10
#: The log file of a daemon in the background without `--logfile`.
DEFAULT_NAME = "twistd.log"


def bound_log_file(twistd: Any) -> None:
    """Bound the log file for which a command line of twistd will ask, while that is being parsed.

    `twistd` is its `ServerOptions`. A log that goes elsewhere stays as it is: to `--logger`, syslog or stdout.
    """
    post_options = twistd.postOptions

    def post_options_and_bound() -> None:
        # Not before: twistd takes what it finds there for the name of a factory, and imports it.
        post_options()
        if twistd["logger"] is None:
            twistd["logger"] = partial(file_observer, twistd)

    twistd.postOptions = post_options_and_bound


def file_observer(
    twistd: Mapping[str, Any], rotate_at: int = ROTATE_AT, rotated_files: int = ROTATED_FILES
) -> ILogObserver | None:
    """Open the log for which a command line of twistd asks; None where twistd is to do that.

    SIGUSR1 rotates it, as it does with twistd's own. Beside it, older rotated files than the last `rotated_files` are
    removed when it is rotated.
    """
    name = twistd["logfile"]
    if twistd["syslog"]:
        return None
    if twistd["nodaemon"] and name in (None, "", "-"):
        return textFileLogObserver(standard_output())
    if name == "-":
        # twistd refuses that.
        return None
    path = Path(name or DEFAULT_NAME).absolute()
    # A device, such as /dev/null, must not be renamed.
    is_rotated = path.is_file() or not path.exists()
    log_file = LogFile(
        path.name,
        str(path.parent),
        rotateLength=rotate_at if is_rotated else None,
        # A file that exists keeps its mode, and the rotated ones get it.
        defaultMode=None if path.exists() else _mode(twistd["umask"]),
        maxRotatedFiles=rotated_files,
    )
    if is_rotated and not getsignal(SIGUSR1):

        def rotate(*_: object) -> None:
            from twisted.internet import reactor  # noqa: PLC0415 (at module level, it would install another one)

            reactor.callFromThread(log_file.rotate)  # type: ignore[attr-defined]

        signal(SIGUSR1, rotate)
    return textFileLogObserver(log_file)  # type: ignore[arg-type]


def _mode(umask: int | None) -> int:
    # twistd opens the log before it sets its umask, so that the umask of the shell would apply.
    return 0o666 & ~(0o077 if umask is None else umask)
