"""The log file of twistd: when there is one, its bound, and its mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path
from signal import SIG_DFL, SIGUSR1, getsignal, signal
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogLevel
from twisted.python.usage import UsageError
from twisted.scripts._twistd_unix import ServerOptions, UnixAppLogger

from twisted_storaged.runtime.log_file import RotatedFile, file_observer
from twisted_storaged.runtime.log_format import as_text
from twisted_storaged.runtime.log_pipe import LogWriter


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests run in a folder of their own, and the process keeps its handler of SIGUSR1."""
    monkeypatch.chdir(tmp_path)
    kept = getsignal(SIGUSR1)
    signal(SIGUSR1, SIG_DFL)
    yield
    signal(SIGUSR1, kept)


def parsed(*options: str) -> Any:
    """A command line of twistd for storaged."""
    twistd = ServerOptions()
    twistd.parseOptions([*options, "storaged"])
    return twistd


def observer(*options: str, **bounds: int) -> ILogObserver | None:
    """What writes the log that a command line of twistd asks for, in text."""
    return file_observer(parsed(*options), LogWriter(as_text), **bounds)


def own_observer() -> ILogObserver | None:
    """A factory that an operator names with --logger."""
    return None


def write(log: ILogObserver | None, count: int) -> None:
    """Write lines of about a hundred bytes."""
    assert log is not None
    for number in range(count):
        log({"log_format": "{n:90}", "n": number, "log_level": LogLevel.info, "log_time": 0.0})


def mode(name: str) -> int:
    """The permissions of a file."""
    return Path(name).stat().st_mode & 0o777


class CommandLineTests:
    """The log that a command line of `twistd storaged` asks for."""

    @pytest.mark.parametrize("options", [["--syslog"], ["--syslog", "--logfile", "x"], ["--logfile", "-"]])
    def test_goes_to_no_file(self, options: list[str]) -> None:
        """Syslog is left to twistd, and so is what it refuses."""
        assert parsed(*options)["logger"]() is None
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize("options", [["--nodaemon"], ["--nodaemon", "--logfile", "-"]])
    def test_goes_to_standard_output(self, options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
        """In the foreground, it goes to the standard output."""
        with capfd.disabled():
            assert parsed(*options)["logger"]() is not None
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "name"),
        [([], "twistd.log"), (["--logfile", "my.log"], "my.log"), (["-n", "-l", "my.log"], "my.log")],
    )
    def test_goes_to_a_file(self, options: list[str], name: str) -> None:
        """A daemon in the background, or with --logfile, writes a file that twistd opens with our observer."""
        logger: Any = UnixAppLogger(parsed(*options))
        write(logger._observerFactory(), 1)
        assert [path.name for path in Path().iterdir()] == [name]

    def test_of_the_operator(self) -> None:
        """--logger is left alone, also if it cannot be imported."""
        assert parsed("--logger", f"{__name__}.own_observer")["logger"] is own_observer
        with pytest.raises(UsageError, match="could not be imported"):
            parsed("--logger", "no_such_module.observer")


class LogFileTests:
    """The file."""

    def test_is_bounded(self) -> None:
        """Only so many rotated files are kept, each of so many bytes and one line at most; older ones are removed."""
        for number in (3, 4, 17):
            Path(f"twistd.log.{number}").touch()
        write(observer(rotate_at=1000, rotated_files=3), 100)
        names = ["twistd.log", "twistd.log.1", "twistd.log.2", "twistd.log.3"]
        assert sorted(path.name for path in Path().iterdir()) == names
        assert all(1000 <= Path(name).stat().st_size < 1200 for name in names[1:])
        assert " 99\n" in Path(names[0]).read_text() + Path(names[1]).read_text()

    @pytest.mark.parametrize(("options", "expected"), [([], 0o600), (["--umask", "027"], 0o640)])
    def test_is_private(self, options: list[str], expected: int) -> None:
        """A new file has mode 0600, or that of twistd's --umask, and so has the one after a rotation."""
        write(observer(*options, rotate_at=100), 2)
        assert [mode("twistd.log"), mode("twistd.log.1")] == [expected, expected]

    def test_keeps_the_mode_of_an_operator(self) -> None:
        """A file that exists keeps its mode, and the one after a rotation gets it."""
        path = Path("twistd.log")
        path.touch()
        path.chmod(0o644)
        write(observer(rotate_at=100), 2)
        assert [mode("twistd.log"), mode("twistd.log.1")] == [0o644, 0o644]

    def test_that_is_no_file(self) -> None:
        """What is no regular file, such as a device, is not renamed."""
        Path("device").symlink_to("/dev/null")
        write(observer("-l", "device", rotate_at=100), 5)
        assert [path.name for path in Path().iterdir()] == ["device"]
        assert getsignal(SIGUSR1) == SIG_DFL

    def test_sigusr1_of_an_operator(self) -> None:
        """A handler that is there already is kept, as twistd keeps it; otherwise SIGUSR1 rotates."""
        observer()
        rotate = getsignal(SIGUSR1)
        assert callable(rotate)
        observer()
        assert getsignal(SIGUSR1) is rotate


class RotatedFileTests:
    """The file when something is in the way."""

    def test_a_folder_that_cannot_be_written_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file gets longer."""
        file = RotatedFile(Path("x"), 0o600, 10, 3)

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "rename", refuse)
        assert [file.write(b"0123456789") for _ in range(3)] == [10, 10, 10]
        assert Path("x").read_bytes() == b"0123456789" * 3

    def test_a_full_disk_while_it_is_rotated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The renamed file is written to until a new one can be made; nothing is renamed twice."""
        file = RotatedFile(Path("x"), 0o600, 10, 3)
        file.write(b"0123456789")
        is_full = True
        really_open = os.open

        def full(path: Path, flags: int, mode: int) -> int:
            if is_full:
                raise OSError(ENOSPC, "No space left on device")
            return really_open(path, flags, mode)

        monkeypatch.setattr(os, "open", full)
        assert (file.write(b"a"), file.write(b"b")) == (1, 1)
        is_full = False
        file.write(b"c")
        assert {path.name: path.read_bytes() for path in Path().iterdir()} == {"x": b"c", "x.1": b"0123456789ab"}

    def test_other_files(self) -> None:
        """What is no rotated file of it is left alone."""
        names = ["x.01", "x.0", "x.a", "x.1.gz", "xx.1", "y.1"]
        for name in names:
            Path(name).touch()
        file = RotatedFile(Path("x"), 0o600, 1, 1)
        file.rotate()
        file.rotate()
        assert sorted(path.name for path in Path().iterdir()) == sorted(["x", "x.1", *names])
