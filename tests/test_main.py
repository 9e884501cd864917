"""The command line of `storaged`. tests/integration/test_serve.py runs the daemon."""

from __future__ import annotations

import pytest

from twisted_storaged import __main__, __version__, tap


class OptionsTests:
    """The command line, up to the subcommand."""

    @pytest.mark.parametrize("arguments", [["--version"], ["serve", "--version"]])
    def test_version(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """`storaged --version` and `storaged serve --version` print storaged's version, not Twisted's."""
        with pytest.raises(SystemExit) as ended:
            __main__.main(arguments)
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"storaged {__version__}\n"

    def test_help_lists_the_subcommands(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`storaged --help` prints a line for each subcommand, and ends with status 0."""
        with pytest.raises(SystemExit) as ended:
            __main__.main(["--help"])
        assert ended.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "Usage: storaged"
        assert {line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line} == set(__main__.COMMANDS)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ([], "expected one of the commands: serve, status"),
            (["store"], "Unknown command: store"),
            (["serve", "--unknown"], "option --unknown not recognized"),
            (["serve", "--repair-checksums"], "--repair-checksums goes with --scrub"),
            (["serve", "--scrub", "--backup", "x"], "--scrub and --backup are two commands: give one of them"),
            (["status", "--scrub"], "--scrub and --status are two commands: give one of them"),
            (["serve", "extra"], "Wrong number of arguments."),
        ],
    )
    def test_usage_errors(self, arguments: list[str], error: str) -> None:
        """A command line that cannot be understood ends the process with status 1 and one line on stderr."""
        # A SystemExit with a string prints it on stderr and exits with status 1.
        with pytest.raises(SystemExit) as ended:
            __main__.main(arguments)
        assert ended.value.code == f"storaged: {error} (see storaged --help)"

    def test_options_go_to_the_subcommand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A subcommand gets its parsed options, and what it returns is the exit status."""
        seen: list[tap.Options] = []

        def run(options: tap.Options) -> int:
            seen.append(options)
            return 3

        monkeypatch.setitem(__main__.COMMANDS, "serve", __main__.COMMANDS["serve"]._replace(run=run))
        assert __main__.main(["serve", "--data", "folder"]) == 3
        assert [options["data"] for options in seen] == ["folder"]
