"""`twistd storaged --scrub` and `--backup`, as an operator runs them."""

from __future__ import annotations

import http.client
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.buckets.local.embedded import flip
from tests.daemon import ROOT, TWISTD, Daemon

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def scrub(folder: Path, data: Path, *options: str) -> tuple[int, str]:
    """Run `--scrub`, or other `options`; returns the exit status and the output."""
    command = [str(TWISTD), "-n", "storaged", *(options or ["--scrub"]), "--data", str(data)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, check=False, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert not (folder / "twistd.pid").exists()
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.returncode, ended.stdout


def ask(
    daemon: Daemon, method: str, key: str, body: bytes | None = None, headers: Mapping[str, str] = NO_HEADERS
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    try:
        connection.request(method, f"/storage/{method.lower()}/{key}", body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class ScrubTests:
    """`--scrub`, beside a running daemon and without one."""

    def test_says_what_is_damaged(self, tmp_path: Path) -> None:
        """A damaged object makes the scrub end with status 1; a GET of it breaks off, and other objects are served."""
        with Daemon(tmp_path) as daemon:
            bodies = {"a": b"a" * 10, "b": b"b" * 200_000, "c": b"c" * 300_000}
            for key, body in bodies.items():
                assert ask(daemon, "PUT", key, body)[0] == 200
            status, said = scrub(tmp_path, daemon.data)
            assert (status, "3 objects with 500010 bytes are sound" in said) == (0, True)
            (path,) = [path for path in daemon.data.glob("objects/*/*") if path.stat().st_size == 200_000]
            path.write_bytes(b"b" * 199_999 + b"x")
            status, said = scrub(tmp_path, daemon.data)
            assert (status, "'b'" in said, "1 damaged" in said) == (1, True, True)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                ask(daemon, "GET", "b")
            assert "'b'" in daemon.log
            assert ask(daemon, "GET", "a") == (200, bodies["a"])
            assert ask(daemon, "GET", "c") == (200, bodies["c"])
            assert daemon.stop() == 0
        assert scrub(tmp_path, daemon.data)[0] == 1

    def test_a_range_over_a_flipped_byte(self, tmp_path: Path) -> None:
        """A range whose blocks have a wrong byte breaks off; ranges of other blocks are served."""
        with Daemon(tmp_path) as daemon:
            body = os.urandom(3_000_000)
            assert ask(daemon, "PUT", "a", body)[0] == 200
            (path,) = daemon.data.glob("objects/*/*")
            flip(path, 1_500_000)
            for wanted in ("1499000-1501000", "1500000-1500000", "1400000-1400009", "0-", "1000000-2000000"):
                with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                    ask(daemon, "GET", "a", headers={"Range": f"bytes={wanted}"})
            assert ask(daemon, "GET", "a", headers={"Range": "bytes=0-99999"}) == (206, body[:100_000])
            assert ask(daemon, "GET", "a", headers={"Range": "bytes=-99999"}) == (206, body[-99_999:])

    def test_where_there_is_nothing(self, tmp_path: Path) -> None:
        """A scrub of a folder that does not exist ends with status 1, without a traceback."""
        assert scrub(tmp_path, tmp_path / "none")[0] == 1


class BackupTests:
    """`--backup` beside a running daemon."""

    def test_a_copy_is_a_data_folder(self, tmp_path: Path) -> None:
        """A daemon on the copy serves the objects of the original; a second backup to the same folder is refused."""
        with Daemon(tmp_path) as daemon:
            for key, body in (("small", b"x"), ("large", b"x" * 200_000)):
                assert ask(daemon, "PUT", key, body)[0] == 200
            assert scrub(tmp_path, daemon.data, "--backup", str(tmp_path / "second" / "data"))[0] == 0
            status, said = scrub(tmp_path, daemon.data, "--backup", str(tmp_path / "second" / "data"))
            assert status == 1
            assert "exists" in said
            with Daemon(tmp_path / "second") as second:
                assert ask(second, "GET", "small") == (200, b"x")
                assert ask(second, "GET", "large") == (200, b"x" * 200_000)
        assert scrub(tmp_path, tmp_path / "second" / "data")[0] == 0
