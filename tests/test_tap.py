"""makeService: from options to a service that is started, on a reactor in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from tests.daemon import ROOT
from twisted_storaged import __version__, tap
from twisted_storaged import service as assembly
from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.index_writes import IndexWriter
from twisted_storaged.buckets.s3.session import S3Settings
from twisted_storaged.errors import StartError, WorkEnded
from twisted_storaged.service import MaintenanceService


def options(*arguments: str) -> tap.Options:
    parsed = tap.Options()
    parsed.parseOptions(arguments)
    return parsed


@pytest.fixture(autouse=True)
def _no_default_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from reading the secrets that this machine may have at the default path."""
    monkeypatch.setattr("twisted_storaged.config_file.DEFAULT_SECRETS", tmp_path / "default.toml")


class PluginTests:
    """The plugin that twistd finds."""

    def test_storaged_is_a_command(self) -> None:
        """The plugin gives twistd a command `storaged`, with the Options and the makeService of `tap`."""
        (maker,) = (plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "storaged")
        assert maker.options is tap.Options
        assert maker.makeService is tap.makeService


class OptionsTests:
    """The command line."""

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`twistd storaged --version` prints storaged's version, not Twisted's, and ends with status 0."""
        with pytest.raises(SystemExit) as ended:
            options("--version")
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"storaged {__version__}\n"

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ('[storaged]\nlog_format = "json"', "json"),
            ('[storaged]\nlog_format = "text"', "text"),
            ("[storaged]", "text"),
            ("storaged = 5", "text"),
            ("[storaged]\nlog_format = ['json']", "text"),
            ("no TOML", "text"),
        ],
    )
    def test_log_format(self, tmp_path: Path, content: str, expected: str) -> None:
        """The log is opened before the settings are read: a file that is wrong, which is told later, gives text."""
        config = tmp_path / "storaged.toml"
        config.write_text(content)
        assert options("--config", str(config))["log_format"] == expected

    def test_an_argument_too_many(self) -> None:
        """A word that is no option is a usage error."""
        with pytest.raises(UsageError):
            options("extra")

    def test_the_default_secrets_file_is_the_go_daemons(self) -> None:
        """The help text of --secrets names the path that the Go daemon reads."""
        (told,) = (row[3] for row in tap.Options.optParameters if row[0] == "secrets")
        assert "/etc/lakehouse/secrets-go.toml" in str(told)


class MakeServiceTests:
    """The service that makeService returns for the daemon."""

    def test_secrets_that_were_named_must_exist(self, tmp_path: Path) -> None:
        """A --secrets file that does not exist is a StartError."""
        wanted = options("--data", str(tmp_path / "data"), "--secrets", str(tmp_path / "misspelt.toml"))
        with pytest.raises(StartError, match=r"misspelt.toml: does not exist"):
            tap.makeService(wanted, MemoryReactorClock(), {})

    def test_the_default_secrets_need_not_exist(self, tmp_path: Path) -> None:
        """A daemon starts without a secrets file at the default path."""
        tap.makeService(options("--data", str(tmp_path / "data")), MemoryReactorClock(), {})

    def test_listens_when_started(self, tmp_path: Path) -> None:
        """The service listens and creates files when it is started, not when it is made."""
        reactor: Any = MemoryReactorClock()
        data = tmp_path / "data"
        service = tap.makeService(options("--data", str(data), "--bind", "127.0.0.1:7"), reactor, {})
        assert reactor.tcpServers == []
        assert not data.exists()
        service.startService()
        (server,) = reactor.tcpServers
        assert (server[0], server[3]) == (7, "127.0.0.1")
        assert (data / "index.sqlite").exists()

    def test_unix_socket(self, tmp_path: Path) -> None:
        """--bind takes the description of a unix socket."""
        reactor: Any = MemoryReactorClock()
        tap.makeService(options("--data", str(tmp_path), "--bind", "unix:/run/s.sock"), reactor, {}).startService()
        assert reactor.unixServers[0][0] == "/run/s.sock"

    @pytest.mark.parametrize(
        ("bind", "error"),
        [
            ("tcp:x:interface=127.0.0.1", "cannot listen on tcp:x:interface=127.0.0.1"),
            ("ssl:1:privateKey=/none.pem:interface=127.0.0.1", "cannot listen on ssl:1"),
        ],
    )
    def test_an_invalid_endpoint(self, tmp_path: Path, bind: str, error: str) -> None:
        """An endpoint that cannot be listened on is a StartError when the service starts."""
        reactor: Any = MemoryReactorClock()
        service = tap.makeService(options("--data", str(tmp_path), "--bind", bind), reactor, {})
        with pytest.raises(StartError, match=error):
            service.startService()

    def test_kinds_of_buckets(self, tmp_path: Path) -> None:
        """A configuration with an S3 bucket and an embedded one makes a bucket of each kind, with its settings."""
        config = tmp_path / "lakehouse.toml"
        config.write_text('[s3]\nbucket = "b"\n[buckets.fast]\nkind = "local"\npath = "/x"\n')
        seen: list[tuple[str, object]] = []

        class Registry:
            buckets = ()

            def __init__(self, buckets: Any) -> None:
                seen.extend(
                    (bucket.name, bucket._settings if hasattr(bucket, "_settings") else bucket._path)
                    for bucket in buckets
                )

            def ping(self) -> None:
                pass

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assembly, "Registry", Registry)
            tap.makeService(options("--config", str(config)), MemoryReactorClock(), {})
        assert dict(seen) == {"primary": S3Settings("b"), "fast": LocalSettings(Path("/x")).path}


class CommandTests:
    """Options that print something instead of running the daemon."""

    def test_check(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--check` prints the effective configuration, and ends with status 0, or 1 if a bucket cannot be used."""
        for folder, status in ((tmp_path / "new", 0), (tmp_path / "file", 1)):
            (tmp_path / "file").touch()
            with pytest.raises(WorkEnded) as ended:
                tap.makeService(options("--check", "--data", str(folder)), MemoryReactorClock(), {})
            assert ended.value.code == status
            assert f'path = "{folder}"\n' in capsys.readouterr().out
        assert not (tmp_path / "new").exists()

    def test_explain(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--explain` prints what a key meets, and ends with status 0."""
        with pytest.raises(WorkEnded) as ended:
            tap.makeService(options("--explain", "_vectors/x", "--data", str(tmp_path)), MemoryReactorClock(), {})
        assert ended.value.code == 0
        assert "rule: the one for the prefix '_vectors/'" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("option", "error"), [("--explain", "is not a valid key: empty key"), ("--backup", "exists: a backup is made")]
    )
    def test_an_empty_value(self, tmp_path: Path, option: str, error: str) -> None:
        """A command with an empty value is refused, and does not start the daemon."""
        data = tmp_path / "data"
        DataFolder(data).close()
        IndexWriter(data / "index.sqlite").close()
        with pytest.raises(StartError, match=error):
            tap.makeService(options(option, "", "--data", str(data)), MemoryReactorClock(), {}).startService()


class ScrubTests:
    """The service that makeService returns for `--scrub`."""

    def test_is_a_service_of_its_own(self, tmp_path: Path) -> None:
        """`--scrub` makes a MaintenanceService, which opens nothing before it is started, and never listens."""
        data = tmp_path / "data"
        reactor: Any = MemoryReactorClock()
        service = tap.makeService(options("--scrub", "--data", str(data)), reactor, {})
        assert isinstance(service, MaintenanceService)
        with pytest.raises(StartError, match=f"{data} cannot be scrubbed"):
            service.startService()
        assert reactor.tcpServers == []

    def test_is_for_every_embedded_bucket(self, tmp_path: Path) -> None:
        """`--scrub` is for the embedded buckets of a configuration, and for no others."""
        config = tmp_path / "lakehouse.toml"
        config.write_text('[s3]\nbucket = "b"\n[buckets.fast]\nkind = "local"\npath = "/x"\n')
        service: Any = tap.makeService(options("--scrub", "--config", str(config)), MemoryReactorClock(), {})
        assert service._folders == {"fast": Path("/x")}

    def test_without_an_embedded_bucket(self, tmp_path: Path) -> None:
        """`--scrub` with a configuration that has no embedded bucket is a StartError."""
        config = tmp_path / "lakehouse.toml"
        config.write_text('[s3]\nbucket = "b"\n')
        with pytest.raises(StartError, match="no embedded bucket"):
            tap.makeService(options("--scrub", "--config", str(config)), MemoryReactorClock(), {})


def test_leaves_the_sockets_of_socket_activation() -> None:
    """Before the sockets that systemd passes are read, nothing imports what takes them: Twisted's endpoints."""
    code = "import sys, twisted_storaged.tap; sys.exit('twisted.internet.endpoints' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
