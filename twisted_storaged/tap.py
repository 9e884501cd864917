"""The command line of `twistd storaged`, and the entry point that makes its service.

`service`, which assembles the daemon, is imported only after the signal handlers are installed: the import takes most
of a start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.python import usage

from twisted_storaged import __version__
from twisted_storaged.config_file import DEFAULT_SECRETS, ConfigError, read_toml
from twisted_storaged.preparation import sources_of
from twisted_storaged.runtime.log_file import bound_log_file
from twisted_storaged.runtime.log_format import FORMATS
from twisted_storaged.runtime.log_pipe import LogWriter
from twisted_storaged.runtime.process import StopSignals, disable_core_dumps, raise_file_limit
from twisted_storaged.runtime.systemd import ListenSocket, ServiceManager, listen_sockets
from twisted_storaged.runtime.twisted_internals import install, warn_of_wall_clock

#: The options that do something else than to run the daemon.
ACTIONS = ("check", "explain", "scrub", "backup", "status")


class Options(usage.Options):
    """The options of the command line."""

    synopsis = "[options]"
    longdesc = "Stores and serves objects over plain HTTP: in a folder of this machine, or in S3."
    optParameters: ClassVar = [
        ["config", "c", None, "TOML file with the settings; without one, objects are kept in the data folder."],
        ["secrets", "s", None, f"TOML file with the credentials [default: {DEFAULT_SECRETS}, if it exists]."],
        ["data", "d", None, "Folder of the embedded bucket [default: $STATE_DIRECTORY, else $XDG_DATA_HOME/storaged]."],
        ["backup", None, None, "Copy the embedded bucket to this new folder, beside a daemon that serves it, and end."],
        ["explain", None, None, "Print which rule, limit, put slots and bucket this key meets, and end."],
        ["bind", "b", None, "host:port or Twisted endpoint to listen on [default: 127.0.0.1:3211]."],
    ]

    optFlags: ClassVar = [
        ["check", None, "Print the effective configuration, ask each bucket, and end; with status 1 if one fails."],
        ["status", None, "Print what is under way in the daemon that runs with the same configuration, and end."],
        ["scrub", None, "Read and verify all that embedded buckets hold, report, and end; with status 1 on damage."],
        ["repair-checksums", None, "With --scrub: give sound objects of older versions the checksums they lack."],
    ]

    def parseArgs(self) -> None:
        """Accept no arguments other than options."""
        # Twisted passes it the arguments that are left: with any, the call is a TypeError, which becomes a UsageError.

    def opt_version(self) -> None:
        """Display storaged's version and exit."""
        sys.stdout.write(f"storaged {__version__}\n")
        sys.exit(0)

    def postOptions(self) -> None:
        """Refuse options that do not go together, and decide how to log: as `log_format` and `log`."""
        given = [f"--{command}" for command in ACTIONS if is_given(self, command)]
        if len(given) > 1:
            raise usage.UsageError(f"{' and '.join(given)} are two commands: give one of them")
        if self["repair-checksums"] and not self["scrub"]:
            raise usage.UsageError("--repair-checksums goes with --scrub")
        self["log_format"] = "json" if as_written(self["config"], "log_format") == "json" else "text"
        self["log"] = LogWriter(FORMATS[self["log_format"]])
        # Only twistd has this option; the parent may also be the command line of `storaged`.
        if self.parent is not None and "logger" in self.parent:
            bound_log_file(self.parent, self["log"])


def is_given(options: Mapping[str, Any], name: str) -> bool:
    """Whether an option stands on the command line, be its value empty."""
    return options[name] not in (None, 0)


def makeService(options: Mapping[str, Any], reactor: Any = None, environ: Mapping[str, str] = os.environ) -> Service:
    """Make the service that the command line asks for. Nothing is opened yet, and nothing listens.

    Without a `reactor`, the one of the process is installed. If it is to run the daemon, signals are handled and the
    limits of the process are set from now on.

    Raises:
        ConfigError: the command line, the configuration or the secrets are invalid.
        StartError: there is no bucket to scrub or to back up, the key to explain is not valid, or no daemon answers.
        WorkEnded: `--check`, `--explain` or `--status` have printed what they found.
    """
    is_daemon = not any(is_given(options, command) for command in ACTIONS)
    signals = None
    sockets: Sequence[ListenSocket] = ()
    if reactor is None:
        if is_daemon:
            sockets = listen_sockets(os.environ)
        install()
        from twisted.internet import reactor  # noqa: PLC0415 (an import at module level would install another one)

        # Commands block the process before the reactor runs: there, signals keep their default effect.
        if is_daemon:
            signals = StopSignals(reactor)
            signals.install()
            # Before a credential is read.
            disable_core_dumps()
            raise_file_limit()
    service: Any
    if is_daemon and as_written(options["config"], "workers") not in (None, 1):
        from twisted_storaged.supervisor import Supervisor  # noqa: PLC0415 (only a daemon with workers needs it)

        service = Supervisor(sources_of(options), sockets, ServiceManager(environ), reactor, log=options["log"])
    else:
        from twisted_storaged.service import make_service  # noqa: PLC0415 (see the docstring of this module)

        service = make_service(options, reactor, environ, sockets)
    if signals is not None:
        signals.service = service
        warn_of_wall_clock(reactor)
    made: Service = service
    return made


def as_written(config: str | None, key: str) -> object:
    """Return a key of `[storaged]` as it stands in a configuration file; None if that has none, or cannot be read.

    If it is wrong, that is an error later on.
    """
    try:
        section = read_toml(Path(config)).get("storaged") if config else None
    except ConfigError:
        section = None
    return section.get(key) if isinstance(section, dict) else None
