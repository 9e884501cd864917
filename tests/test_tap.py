"""makeService, whole: from options to a service that listens, on an endpoint without a port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from twisted_storaged import __version__, tap
from twisted_storaged import service as assembly
from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.s3.session import S3Settings
from twisted_storaged.errors import StartError
from twisted_storaged.service import ScrubService


def options(*arguments: str) -> tap.Options:
    parsed = tap.Options()
    parsed.parseOptions(arguments)
    return parsed


@pytest.fixture(autouse=True)
def _no_default_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has at the default path is not this test's."""
    monkeypatch.setattr("twisted_storaged.config_file.DEFAULT_SECRETS", tmp_path / "default.toml")


class PluginTests:
    """What twistd finds."""

    def test_storaged_is_a_command(self) -> None:
        """By this name, and these two functions."""
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

    def test_an_argument_too_many(self) -> None:
        """A word that is no option is a usage error."""
        with pytest.raises(UsageError):
            options("extra")

    def test_the_default_secrets_file_is_the_go_daemons(self) -> None:
        """The help text of --secrets names the path that the Go daemon reads."""
        (told,) = (row[3] for row in tap.Options.optParameters if row[0] == "secrets")
        assert "/etc/lakehouse/secrets-go.toml" in str(told)


class MakeServiceTests:
    """The service."""

    def test_secrets_that_were_named_must_exist(self, tmp_path: Path) -> None:
        """A misspelt --secrets ends the start, instead of a daemon without its credentials."""
        wanted = options("--data", str(tmp_path / "data"), "--secrets", str(tmp_path / "misspelt.toml"))
        with pytest.raises(StartError, match=r"misspelt.toml: does not exist"):
            tap.makeService(wanted, MemoryReactorClock(), {})

    def test_the_default_secrets_need_not_exist(self, tmp_path: Path) -> None:
        """Credentials may come from the config or from boto3's chain."""
        tap.makeService(options("--data", str(tmp_path / "data")), MemoryReactorClock(), {})

    def test_listens_when_started(self, tmp_path: Path) -> None:
        """And not before; nothing is made on the disk before either."""
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
        """Any Twisted endpoint will do."""
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
    def test_an_endpoint_that_is_none(self, tmp_path: Path, bind: str, error: str) -> None:
        """Is refused in one line."""
        reactor: Any = MemoryReactorClock()
        service = tap.makeService(options("--data", str(tmp_path), "--bind", bind), reactor, {})
        with pytest.raises(StartError, match=error):
            service.startService()

    def test_buckets_are_made_of_their_kind(self, tmp_path: Path) -> None:
        """Several at once."""
        config = tmp_path / "lakehouse.toml"
        config.write_text('[s3]\nbucket = "b"\n[buckets.fast]\nkind = "local"\npath = "/x"\n')
        seen: list[tuple[str, object]] = []

        class Registry:
            def __init__(self, buckets: Any) -> None:
                seen.extend(
                    (bucket.name, bucket._settings if hasattr(bucket, "_settings") else bucket._path)
                    for bucket in buckets
                )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assembly, "Registry", Registry)
            tap.makeService(options("--config", str(config)), MemoryReactorClock(), {})
        assert dict(seen) == {"primary": S3Settings("b"), "fast": LocalSettings(Path("/x")).path}


class ScrubTests:
    """`--scrub`."""

    def test_is_a_service_of_its_own(self, tmp_path: Path) -> None:
        """Which opens nothing before it is started, and never listens."""
        data = tmp_path / "data"
        reactor: Any = MemoryReactorClock()
        service = tap.makeService(options("--scrub", "--data", str(data)), reactor, {})
        assert isinstance(service, ScrubService)
        with pytest.raises(StartError, match=f"{data} cannot be scrubbed"):
            service.startService()
        assert reactor.tcpServers == []

    def test_is_for_every_embedded_bucket(self, tmp_path: Path) -> None:
        """And for no other."""
        config = tmp_path / "lakehouse.toml"
        config.write_text('[s3]\nbucket = "b"\n[buckets.fast]\nkind = "local"\npath = "/x"\n')
        service: Any = tap.makeService(options("--scrub", "--config", str(config)), MemoryReactorClock(), {})
        assert service._folders == {"fast": Path("/x")}

    def test_without_an_embedded_bucket(self, tmp_path: Path) -> None:
        """Says so, instead of finding nothing wrong."""
        config = tmp_path / "lakehouse.toml"
        config.write_text('[s3]\nbucket = "b"\n')
        with pytest.raises(StartError, match="no embedded bucket"):
            tap.makeService(options("--scrub", "--config", str(config)), MemoryReactorClock(), {})
