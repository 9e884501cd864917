"""What `twistd storaged` runs: its command line, and the signals that end it. `assembly` makes the service."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.python import usage

from twisted_storaged import __version__
from twisted_storaged.config_file import DEFAULT_SECRETS
from twisted_storaged.runtime.process import StopSignals
from twisted_storaged.runtime.twisted_internals import install, warn_of_wall_clock


class Options(usage.Options):
    """The command line."""

    synopsis = "[options]"
    longdesc = "Stores and serves objects over plain HTTP: in a folder of this machine, or in S3."
    optParameters: ClassVar = [
        ["config", "c", None, "TOML file to go by; without one, objects are kept in the data folder."],
        ["secrets", "s", None, f"TOML file with the credentials [default: {DEFAULT_SECRETS}, if it exists]."],
        ["data", "d", None, "Folder of the embedded bucket [default: $STATE_DIRECTORY, else $XDG_DATA_HOME/storaged]."],
        ["backup", None, None, "Copy the embedded bucket to this new folder, beside a daemon that serves it, and end."],
        ["bind", "b", None, "host:port or Twisted endpoint to listen on [default: 127.0.0.1:3211]."],
    ]

    optFlags: ClassVar = [
        ["scrub", None, "Read and verify all that embedded buckets hold, report, and end; with status 1 on damage."],
        ["repair-checksums", None, "With --scrub: give sound objects of older versions the checksums they lack."],
    ]

    def parseArgs(self) -> None:
        """Take no arguments beside the options."""

    def opt_version(self) -> None:
        """Display storaged's version and exit."""
        sys.stdout.write(f"storaged {__version__}\n")
        sys.exit(0)

    def postOptions(self) -> None:
        """Refuse what makes no sense alone."""
        if self["repair-checksums"] and not self["scrub"]:
            raise usage.UsageError("--repair-checksums goes with --scrub")


def makeService(options: Mapping[str, Any], reactor: Any = None, environ: Mapping[str, str] = os.environ) -> Service:
    """The service that the command line asks for. Nothing is opened yet, and nothing listens.

    Raises:
        ConfigError: the command line, the configuration or the secrets cannot be gone by.
        StartError: there is nothing to scrub.
    """
    if reactor is not None:
        return _assembled(options, reactor, environ)
    install()
    from twisted.internet import reactor  # noqa: PLC0415 (who imports it at the top installs it)

    if options["scrub"] or options["backup"]:
        return _assembled(options, reactor, environ)
    signals = StopSignals(reactor)
    signals.install()
    signals.service = _assembled(options, reactor, environ)
    warn_of_wall_clock(reactor)
    return signals.service


def _assembled(options: Mapping[str, Any], reactor: Any, environ: Mapping[str, str]) -> Service:
    from twisted_storaged.service import make_service  # noqa: PLC0415 (importing boto3 and all else takes long)

    return make_service(options, reactor, environ)
