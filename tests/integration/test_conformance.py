"""The conformance kit: storaged passes all checks, and a wrong server fails the checks of what it does wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import ROOT, Daemon
from tests.engines import free_ports
from tests.integration import wrong_server
from tests.integration.test_daemon import ask

#: Time limit of the kit in seconds. The stall of a body takes a minute.
LIMIT = 400


class Table:
    """The table that the kit printed about a server, and the exit status."""

    def __init__(self, url: str, *options: str) -> None:
        command = [sys.executable, "-m", "twisted_storaged.conformance", url, *options]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert ended.stderr == ""
        *self.rows, self.summary = ended.stdout.splitlines()
        self.status = ended.returncode

    def failed(self) -> list[str]:
        """The rows of failed checks, without the word FAIL."""
        return [row[6:] for row in self.rows if not row.startswith("ok ")]


@pytest.fixture(scope="module")
def wrong() -> Iterator[Table]:
    """The table of the wrong server."""
    process = subprocess.Popen([sys.executable, wrong_server.__file__], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        yield Table(url, f"--cap={wrong_server.CAP}", f"--vectors-cap={wrong_server.CAP}", "--stall=1")
    finally:
        process.kill()
        process.wait()


class ConformanceTests:
    """`python -m twisted_storaged.conformance URL`."""

    @pytest.mark.full
    def test_storaged_conforms(self, tmp_path: Path) -> None:
        """The daemon passes every check, and the kit leaves no object behind."""
        with Daemon(tmp_path) as daemon:
            table = Table(daemon.url)
            assert (table.failed(), table.status, table.summary) == ([], 0, "none failed")
            assert len(table.rows) > 50
            assert ask(daemon, "GET", "/storage/list") == (200, b'{"prefix":"","objects":[]}')
        assert list((daemon.data / "objects").glob("*/*")) == []

    @pytest.mark.parametrize(
        "check",
        [
            "A key is its path, percent-decoded once",
            "PUT refuses invalid keys",
            "Keys are listed in the order of their bytes",
            "DELETE is 204, also when there was nothing",
            "Another method is 405",
            "A declared length over the cap is 413",
            "A chunked body over the cap is 413",
            "One PUT more than there are slots is 503",
            "An early response is seen",
            "A connection that is closed in mid-body",
            "A chunked body without its last chunk",
            "A body of which no byte comes",
        ],
    )
    def test_a_wrong_server_does_not(self, wrong: Table, check: str) -> None:
        """Each mistake of the wrong server makes a check fail."""
        assert [row for row in wrong.failed() if row.startswith(check)]

    def test_what_is_right_is_ok(self, wrong: Table) -> None:
        """Checks of what the wrong server does right pass, and the exit status is 1."""
        assert wrong.status == 1
        assert wrong.summary == f"{len(wrong.failed())} failed"
        right = [row[6:] for row in wrong.rows if row.startswith("ok ")]
        assert [row for row in right if row.startswith("Only keys with the prefix are listed")]
        assert [row for row in right if row.startswith("An empty object is there")]
        assert [row for row in right if row.startswith("A list has all keys")]

    def test_nobody_is_there(self) -> None:
        """Without a server, every check fails with the reason, and the exit status is 1."""
        table = Table(f"http://127.0.0.1:{free_ports(1)}")
        assert table.status == 1
        assert len(table.failed()) == len(table.rows)
        assert all("Connection refused" in row for row in table.rows)
