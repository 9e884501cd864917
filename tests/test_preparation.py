"""Preparing settings and buckets, by the process that does it."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.json import encode
from twisted.logger import LogLevel

from tests.buckets.local.embedded import logged
from twisted_storaged.errors import StartError
from twisted_storaged.preparation import (
    Prepared,
    Settings,
    Sources,
    check_replacement,
    environment,
    prepare,
    sources_of,
    with_copies,
)
from twisted_storaged.runtime.systemd import ListenSocket

CONFIG = """
[storaged]
bind = "127.0.0.1:7"
workers = 3
drain = "7 s"

[buckets.primary]
kind = "local"
path = "{folder}/primary"
"""


def sources(folder: Path, config: str | None = CONFIG, **changes: Any) -> Sources:
    """The sources of a configuration in a folder, with empty secrets."""
    secrets = folder / "secrets.toml"
    secrets.touch(0o600)
    path = folder / "storaged.toml"
    if config is not None:
        path.write_text(config.format(folder=folder))
    return Sources(**{"config": str(path), "secrets": str(secrets), "data": None, "bind": None, **changes})


@contextmanager
def prepared(sources: Sources, **arguments: Any) -> Iterator[Settings]:
    settings = prepare(sources, **arguments)
    try:
        yield settings
    finally:
        settings.close()


class PrepareTests:
    """What the process finds, and hands on."""

    def test_settings(self, tmp_path: Path) -> None:
        """It tells what a supervisor needs, and the bucket is locked until the descriptor is closed."""
        with prepared(sources(tmp_path)) as settings:
            assert settings.found == Prepared(
                endpoint="tcp:7:interface=127.0.0.1",
                workers=3,
                drain=7.0,
                folders=[f"{tmp_path}/primary"],
                locks=[f"{tmp_path}/primary"],
                primary="local",
            )
            with pytest.raises(StartError, match="is in use by another storaged"):
                prepare(sources(tmp_path))
        with prepared(sources(tmp_path)):
            pass

    def test_copies(self, tmp_path: Path) -> None:
        """The copies are what was read, whatever becomes of the files, and their reader prepares the same again."""
        where = sources(tmp_path)
        with prepared(where) as settings:
            Path(str(where.config)).write_text("changed")
            Path(str(where.secrets)).unlink()
            settings.unlock()
            with prepared(settings.sources, inherited=[settings.config, settings.secrets]) as again:
                assert again.found == settings.found

    def test_held(self, tmp_path: Path) -> None:
        """Buckets that are in use are left alone, and others are prepared."""
        other = '[buckets.other]\nkind = "local"\npath = "{folder}/other"\n'
        with (
            prepared(sources(tmp_path)) as first,
            prepared(sources(tmp_path, CONFIG + other), held=list(first.locks)) as second,
        ):
            assert second.found.locks == [f"{tmp_path}/other"]

    def test_s3(self, tmp_path: Path) -> None:
        """A bucket in S3 is not asked for anything."""
        config = '[s3]\nbucket = "b"\nendpoint = "http://127.0.0.1:9"\n'
        with prepared(sources(tmp_path, config)) as settings:
            assert (settings.found.primary, settings.locks) == ("s3", {})

    def test_without_files(self, tmp_path: Path) -> None:
        """Neither a configuration nor secrets need to exist; the options of the command line have effect."""
        where = Sources(config=None, secrets=None, data=str(tmp_path / "data"), bind="127.0.0.2:9")
        with prepared(where) as settings:
            assert settings.found.endpoint == "tcp:9:interface=127.0.0.2"
            assert list(settings.locks) == [str(tmp_path / "data")]


class RefusedTests:
    """Settings that cannot be used."""

    def refused(self, sources: Sources, **arguments: Any) -> str:
        with pytest.raises(StartError) as caught:
            prepare(sources, **arguments)
        return str(caught.value)

    def test_a_mistake(self, tmp_path: Path) -> None:
        """The error names the file, and not its copy."""
        where = sources(tmp_path, "[storaged]\nworkers = 'two'\n")
        assert self.refused(where).startswith(f"{where.config}: [storaged] workers is 'two': expected ")

    def test_a_file_that_vanished(self, tmp_path: Path) -> None:
        """A file that does not exist is named, with the reason."""
        where = sources(tmp_path, config=None)
        assert self.refused(where) == f"{where.config}: cannot be read: No such file or directory"

    def test_secrets_of_others(self, tmp_path: Path) -> None:
        """Secrets that others can read are refused: the copy has the mode of the file."""
        where = sources(tmp_path)
        Path(str(where.secrets)).chmod(0o644)
        assert self.refused(where).startswith(f"{where.secrets}: ")

    def test_a_folder_that_cannot_be_used(self, tmp_path: Path) -> None:
        """A bucket that cannot be opened is named, and the others are unlocked again."""
        (tmp_path / "file").touch()
        config = CONFIG + '[buckets.other]\nkind = "local"\npath = "{folder}/file"\n'
        assert "bucket other" in self.refused(sources(tmp_path, config))
        with prepared(sources(tmp_path)):
            pass

    def test_no_python(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """That the interpreter cannot be run is no more than an error."""
        monkeypatch.setattr(sys, "executable", "/none")
        assert self.refused(sources(tmp_path)).startswith("the settings cannot be read by a process of their own: ")

    def test_a_program_that_cannot_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the installed program cannot start, which may be newer, its output is in the log."""
        (tmp_path / "twisted_storaged").mkdir()
        (tmp_path / "twisted_storaged" / "__init__.py").write_text("raise ImportError('half of it is installed')")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with logged(LogLevel.info) as lines:
            assert self.refused(sources(tmp_path)) == "its preparation ended with 1"
        assert lines[-1] == "the preparation: ImportError: half of it is installed"

    @pytest.mark.parametrize("answer", ["{", '{"locks": 1}', "[]"])
    def test_a_program_that_answers_otherwise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
    ) -> None:
        """A newer program may answer something else: that is no more than an error."""
        (tmp_path / "twisted_storaged").mkdir()
        (tmp_path / "twisted_storaged" / "__init__.py").touch()
        code = f"import socket, sys\nsocket.socket(fileno=int(sys.argv[2])).send({answer.encode()!r})\n"
        (tmp_path / "twisted_storaged" / "worker.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert self.refused(sources(tmp_path)).startswith("the settings cannot be read by a process of their own: ")

    def test_too_few_files(self, tmp_path: Path) -> None:
        """If not all descriptors can be received, none stays open, and the error says why."""
        buckets = "".join(f'[buckets.b{n}]\nkind = "local"\npath = "{{folder}}/{n}"\n' for n in range(8))
        where = sources(tmp_path, CONFIG + buckets)
        before = {int(name) for name in os.listdir("/proc/self/fd")}
        free = [number for number in range(max(before) + 20) if number not in before]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Enough to start the process.
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[9], hard))
        try:
            error = self.refused(where)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert error == "too few files can be open: raise the limit, see LimitNOFILE="
        assert len(os.listdir("/proc/self/fd")) <= len(before)


class SourcesTests:
    """Where the settings are."""

    def test_of_a_command_line(self) -> None:
        """They are options of the command line."""
        options = {"config": "a", "secrets": "b", "data": "c", "bind": "d", "log_format": "json", "check": 0}
        found = sources_of(options)
        assert found == Sources(config="a", secrets="b", data="c", bind="d", log_format="json")
        assert with_copies(found, 7, 8) == Sources(
            config="/proc/self/fd/7", secrets="/proc/self/fd/8", data="c", bind="d", log_format="json"
        )
        assert b'"config":"a"' in encode(found)

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the service manager tells this process is not for its children."""
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "KEPT"):
            monkeypatch.setenv(name, "1")
        assert {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "KEPT"} & set(environment()) == {"KEPT"}


class ReplacementTests:
    """Whether processes with new settings may replace others."""

    def settings(self, **found: Any) -> Settings:
        sources = Sources(config=None, secrets=None, data=None, bind=None)
        return Settings(sources, Prepared(**found), [os.memfd_create("test"), os.memfd_create("test")])

    def test_the_same(self) -> None:
        """With the same address and kind of bucket, nothing is logged."""
        settings = self.settings(endpoint="tcp:1", primary="s3")
        with logged(LogLevel.warn) as lines:
            check_replacement(settings, "tcp:1", "s3", [])
        assert lines == []
        settings.close()

    def test_another_kind(self) -> None:
        """Another kind of primary bucket is refused, and the settings are closed."""
        settings = self.settings(endpoint="tcp:1", primary="s3")
        with pytest.raises(StartError, match="has changed from local to s3: restart"):
            check_replacement(settings, "tcp:1", "local", [])
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            os.fstat(settings.config)
        assert caught.value.errno == errno.EBADF

    @pytest.mark.parametrize("local_only", [True, False])
    def test_sockets_for_other_hosts(self, local_only: bool) -> None:
        """Sockets that other hosts can reach are refused unless the new settings allow them."""
        settings = self.settings(endpoint="tcp:1", primary="s3", local_only=local_only)
        with socket.create_server(("0.0.0.0", 0)) as listening:
            sockets = [ListenSocket("http", listening.fileno())]
            if local_only:
                with pytest.raises(StartError, match="the socket http listens on"):
                    check_replacement(settings, "tcp:1", "s3", sockets)
            else:
                check_replacement(settings, "tcp:1", "s3", sockets)
                settings.close()
