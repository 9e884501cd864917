"""The command `storaged`, also `python -m twisted_storaged`: its subcommands, and the function that runs each.

`serve` runs the service of `tap` in the foreground, without twistd.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from twisted.application.app import startApplication
from twisted.application.service import Application
from twisted.logger import globalLogBeginner
from twisted.python import usage

from twisted_storaged import tap
from twisted_storaged.runtime.log_pipe import open_standard_output


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        options: parses what follows the name of the subcommand.
        run: does the work, given the parsed options, and returns the exit status.
        description: one line for `storaged --help`.
    """

    options: Callable[[], usage.Options]
    run: Callable[[Any], int]
    description: str


def serve(options: tap.Options) -> int:
    """Run the daemon in the foreground until a signal stops it, as `twistd --nodaemon --pidfile= storaged` does.

    Raises:
        StartError: the daemon cannot start with these options.
        WorkEnded: the options ask for something else, such as a scrub, which is done.
    """
    application = Application("storaged")
    tap.makeService(options).setServiceParent(application)
    from twisted.internet import reactor  # noqa: PLC0415 (makeService has installed it)

    # stderr is not redirected, so that a StartError prints its one line there.
    globalLogBeginner.beginLoggingTo([open_standard_output(options["log"], os.environ)], redirectStandardIO=False)
    # If `save` were true, Twisted would write the application to a file when it stops.
    startApplication(application, save=False)
    reactor.run()
    return 0


class StatusOptions(tap.Options):
    """The options of `storaged status`: those of the daemon that is asked."""

    longdesc = "Prints what is under way in the daemon that runs with the same configuration."

    def postOptions(self) -> None:
        """Ask for `--status`, so that no other command is accepted."""
        self["status"] = 1
        super().postOptions()


COMMANDS = {
    "serve": Command(tap.Options, serve, "Run the daemon in the foreground, until SIGTERM or SIGINT."),
    "status": Command(StatusOptions, serve, "Print what is under way in the daemon, as `serve --status` does."),
}


class Options(usage.Options):
    """The command line of `storaged`, up to and including the name of the subcommand."""

    synopsis = "Usage: storaged"
    longdesc = tap.Options.longdesc + " `storaged COMMAND --help` lists the options of a command."
    subCommands: ClassVar = [(name, None, command.options, command.description) for name, command in COMMANDS.items()]
    opt_version = tap.Options.opt_version

    def parseArgs(self) -> None:
        """Refuse a command line without a subcommand."""
        raise usage.UsageError(f"expected one of the commands: {', '.join(COMMANDS)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that the command line (by default the process's own) names; returns the exit status."""
    options = Options()
    try:
        options.parseOptions(arguments)
    except usage.UsageError as error:
        sys.exit(f"storaged: {error} (see storaged --help)")
    # Without a subcommand, `parseArgs` has raised.
    assert options.subCommand is not None
    return COMMANDS[options.subCommand].run(options.subOptions)


if __name__ == "__main__":
    sys.exit(main())
