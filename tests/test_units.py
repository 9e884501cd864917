"""The systemd units in etc/, as they are written; `tests/integration/test_systemd.py` runs them under a systemd."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.daemon import ROOT
from twisted_storaged import tap
from twisted_storaged.__main__ import Options
from twisted_storaged.config import DEFAULT_DRAIN, StoragedSection
from twisted_storaged.config_file import DEFAULT_SECRETS
from twisted_storaged.runtime.systemd import SHORTEST
from twisted_storaged.service import CLOSE_SECONDS

ETC = ROOT / "etc"
SERVICES = ["storaged.service", "storaged-local.service"]
PROGRAM = "/opt/storaged/bin/storaged"


def settings(name: str) -> list[tuple[str, str]]:
    """The assignments of a unit, in order; see systemd.syntax(7)."""
    text = (ETC / name).read_text("utf-8").replace("\\\n", "")
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith(("#", ";", "["))]
    return [(key, value) for key, _, value in pairs]


def setting(name: str, key: str) -> str:
    """The one value of a setting of a unit."""
    (value,) = (value for one, value in settings(name) if one == key)
    return value


class ServicesTests:
    """Both services."""

    @pytest.mark.parametrize("name", SERVICES)
    def test_command_line(self, name: str) -> None:
        """The command line is one that storaged accepts."""
        program, *arguments = shlex.split(setting(name, "ExecStart"))
        assert program == PROGRAM
        options = Options()
        options.parseOptions(arguments)
        assert options.subCommand == "serve"
        assert isinstance(options.subOptions, tap.Options)

    @pytest.mark.parametrize("name", SERVICES)
    def test_times(self, name: str) -> None:
        """The stop may take as long as the daemon needs by default, and the watchdog asks for pings that it sends."""
        assert int(setting(name, "TimeoutStopSec")) >= DEFAULT_DRAIN + 3 * CLOSE_SECONDS
        assert int(setting(name, "WatchdogSec")) > SHORTEST

    def test_differ_in_little(self) -> None:
        """The services have the same limits, except that only that for S3 may reach other hosts, and has secrets."""
        s3, local = (set(settings(name)) for name in SERVICES)
        assert {key for key, _ in s3 - local} == {"ExecStart", "LoadCredential", "Wants", "After"}
        assert local - s3 == {
            ("ExecStart", f"{PROGRAM} serve"),
            ("IPAddressDeny", "any"),
            ("IPAddressAllow", "localhost"),
            ("Alias", "storaged.service"),
        }

    def test_secrets(self) -> None:
        """The service for S3 reads the secrets file where storaged itself looks for it."""
        assert setting("storaged.service", "LoadCredential") == f"secrets.toml:{DEFAULT_SECRETS}"


class SocketTests:
    """The socket."""

    def test_address(self) -> None:
        """The socket has the address at which storaged listens by default."""
        assert setting("storaged.socket", "ListenStream") == StoragedSection().bind

    def test_starts_either_service(self) -> None:
        """The socket starts the service of its name, which is also an alias of the local one."""
        assert "Service" not in dict(settings("storaged.socket"))
        assert setting("storaged-local.service", "Alias") == "storaged.service"


class ReloadTests:
    """The drop-in for systemd 253 and newer."""

    def test_replaces_the_command(self) -> None:
        """The type of service that sends SIGHUP itself replaces the command that does."""
        assert settings("notify-reload.conf") == [("Type", "notify-reload"), ("ExecReload", "")]
        assert [setting(name, "ExecReload") for name in SERVICES] == ["/bin/kill -HUP $MAINPID"] * 2


def analyze(*arguments: str | Path) -> Sequence[str]:
    """The lines that systemd-analyze writes."""
    command = ["systemd-analyze", "--no-pager", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.full
class AnalyzeTests:
    """What systemd-analyze says of the units. It is in the package systemd."""

    @pytest.mark.parametrize("name", SERVICES)
    def test_exposure(self, name: str) -> None:
        """The services score less than 1.5, of 10."""
        # The threshold is in tenths, and is the highest score that is good enough.
        *_, last = analyze("security", "--offline=yes", "--threshold=14", ETC / name)
        assert f"Overall exposure level for {name}" in last

    def test_verify(self, tmp_path: Path) -> None:
        """The service manager has nothing to object to the units."""
        paths = [tmp_path / name for name in (*SERVICES, "storaged.socket")]
        for path in paths:
            # The command must exist.
            path.write_text((ETC / path.name).read_text("utf-8").replace(PROGRAM, sys.executable), "utf-8")
        assert analyze("verify", *paths) == []
