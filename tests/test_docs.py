"""The README and docs/: code blocks run, and files and modules that pages name exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from twisted.python import usage

from tests.daemon import ROOT, Daemon
from tests.test_architecture import FLOORS
from twisted_storaged import tap
from twisted_storaged.__main__ import Options
from twisted_storaged.config import Overrides, load_config, reference_table
from twisted_storaged.config_file import read_secrets

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
REPOSITORY = "https://github.com/storaged/storaged"
#: The URL of the daemon in the pages.
URL = "http://127.0.0.1:3211"

#: Languages of blocks that are run, and of blocks that are only shown; the others are parsed.
RUN = {"bash", "python"}
SHOWN = {"text", "{toctree}"}
LANGUAGES = {"console", "toml", *RUN, *SHOWN}

_FENCED = re.compile(r"^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in these languages, or in all."""
    found = [Block(*match.group("language", "text")) for match in _FENCED.finditer(page.read_text("utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def name(page: Path) -> str:
    """The name of a page, for the ids of tests."""
    return page.name


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on an embedded bucket, for all blocks."""
    with Daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


def run(found: Sequence[Block], daemon: Daemon, folder: Path) -> None:
    """Run shell and Python blocks, one after the other in this folder, against a daemon; each must succeed."""
    environ = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    for block in found:
        text = block.text.replace(URL, daemon.url)
        command = ["bash", "-euc", text] if block.language == "bash" else [sys.executable, "-c", text]
        ended = subprocess.run(
            command, cwd=folder, env=environ, timeout=120, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{block.text}\n{ended.stdout}{ended.stderr}"


def needs_duckdb(block: Block) -> bool:
    """Whether a block makes, stores or queries the Parquet file of the DuckDB examples."""
    return "flights.parquet" in block.text


class BlocksTests:
    """Code blocks do what they show."""

    @pytest.mark.full
    @pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed: apt-get install curl")
    @pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, *RUN)], ids=name)
    def test_runs(self, page: Path, daemon: Daemon, tmp_path: Path) -> None:
        """The shell and Python blocks of a page succeed; `tests/integration/test_docs.py` has those for DuckDB."""
        run([block for block in blocks(page, *RUN) if not needs_duckdb(block)], daemon, tmp_path)

    @pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name)
    def test_configurations_are_valid(self, page: Path, tmp_path: Path) -> None:
        """The loader of the configuration accepts TOML blocks; that of the secrets, those whose comment says so."""
        path = tmp_path / "block.toml"
        path.touch(0o600)
        for block in blocks(page, "toml"):
            path.write_text(block.text, "utf-8")
            if block.text.startswith("# secrets"):
                assert read_secrets(path)
            else:
                load_config(Overrides(config=path), {}, {})

    @pytest.mark.parametrize("page", PAGES, ids=name)
    def test_files_exist(self, page: Path) -> None:
        """The Python files that a page names exist, in the repository, the package or the benchmarks."""
        named = set(re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`", page.read_text("utf-8")))
        folders = [ROOT, ROOT / "twisted_storaged", ROOT / "benchmarks"]
        assert {path for path in named if not any((folder / path).exists() for folder in folders)} == set()

    @pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=name)
    def test_command_lines_are_valid(self, page: Path) -> None:
        """The options that a console block gives to storaged exist; files that it names in the repository do, too."""
        for command in commands(page):
            parse(command)
            for word in command:
                _, found, path = word.partition("/share/storaged/")
                assert not found or (ROOT / "etc" / path).exists()

    def test_command_lines_are_checked(self) -> None:
        """A command with an option that storaged does not have is found."""
        for line in ("twistd -n storaged --dta x", "storaged serve --scrubb", "storaged server"):
            with pytest.raises((usage.UsageError, SystemExit)):
                parse(shlex.split(line))

    @pytest.mark.parametrize("page", PAGES, ids=name)
    def test_languages_are_known(self, page: Path) -> None:
        """Each block has a language that says what these tests do with it."""
        assert {block.language for block in blocks(page)} <= LANGUAGES


class ReadmeTests:
    """The README is one page, and renders the same elsewhere."""

    def test_is_one_page(self) -> None:
        """It has at most 120 lines."""
        assert len(README.read_text("utf-8").splitlines()) <= 120

    def test_links_are_absolute(self) -> None:
        """Its links and images work on PyPI, and those into the repository name files that exist."""
        targets = _LINK.findall(README.read_text("utf-8"))
        assert [target for target in targets if not target.startswith("https://")] == []
        ours = [target.removeprefix(REPOSITORY) for target in targets if target.startswith(REPOSITORY)]
        assert ours
        assert [path for path in ours if not exists(path)] == []


class DocsTests:
    """What the pages in docs/ say about the repository is true."""

    @pytest.mark.parametrize("page", PAGES, ids=name)
    def test_named_files_exist(self, page: Path) -> None:
        """Tests, benchmarks, examples and other files that a page names, or links to, are there."""
        text = page.read_text("utf-8")
        named = re.findall(r"`((?:tests|benchmarks|examples|etc|twisted_storaged)/[\w./-]*)`", text)
        linked = [target.removeprefix(REPOSITORY) for target in _LINK.findall(text) if target.startswith(REPOSITORY)]
        assert [path for path in named if not (ROOT / path).exists()] == []
        assert [path for path in linked if not exists(path)] == []

    def test_each_promise_has_a_test(self) -> None:
        """Each row of the promises names a file of tests or checks."""
        rows = [
            line for line in (ROOT / "docs" / "promises.md").read_text("utf-8").splitlines() if line.startswith("| ")
        ]
        promises = [row for row in rows if not row.startswith("| promise |")]
        assert promises
        assert [row for row in promises if not re.search(r"`(tests|twisted_storaged/conformance)/", row)] == []

    def test_named_modules_exist(self) -> None:
        """The modules that the tour of the architecture names are in the package."""
        text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
        named = {
            path for path in re.findall(r"[a-z_0-9/]+\.py\b", text) if not path.startswith(("tests/", "benchmarks/"))
        }
        assert named
        assert [path for path in sorted(named) if not (ROOT / "twisted_storaged" / path).is_file()] == []

    def test_floors_are_those_of_the_code(self) -> None:
        """The tour shows the floors that `test_architecture` enforces, from the top."""
        drawing = blocks(ROOT / "docs" / "architecture.md", "text")[0].text
        parts = {part for floor in FLOORS for part in floor.split()}
        drawn = [[word for word in line[:42].split() if word in parts] for line in drawing.splitlines()]
        assert [set(line) for line in drawn] == [set(floor.split()) for floor in reversed(FLOORS)]

    def test_reference_of_the_configuration(self) -> None:
        """The tables of the configuration page are what `python -m twisted_storaged.config` prints."""
        text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
        table = text.partition("<!-- reference: begin -->\n")[2].partition("<!-- reference: end -->")[0]
        assert table.strip() == reference_table().strip()

    def test_messages_name_pages_that_exist(self) -> None:
        """A page that a message or a comment in etc/ points to is there, and so is the heading that it quotes."""
        sources = [*(ROOT / "twisted_storaged").rglob("*.py"), *(ROOT / "etc").iterdir()]
        text = "\n".join(path.read_text("utf-8") for path in sources)
        pages = {page: (ROOT / page) for page in re.findall(r"\bdocs/\w+\.md", text)}
        assert pages
        assert "README.md" not in text
        assert [page for page, path in pages.items() if not path.is_file()] == []
        for heading, page in re.findall(r"'([^'\n]+)' in (docs/\w+\.md)", text):
            assert f"# {heading}\n" in pages[page].read_text("utf-8")

    def test_ci_builds_them_with_warnings_as_errors(self) -> None:
        """`.ci/run` renders the pages, and a broken link or an unlisted page fails it."""
        assert "venv/bin/sphinx-build -q -W docs docs/_build" in (ROOT / ".ci" / "run").read_text("utf-8")


def exists(path: str) -> bool:
    """Whether a path of the repository's site names an existing file, or none at all."""
    match = re.fullmatch(r"/(?:blob|raw|tree)/main/([^#]+)(?:#.*)?", path)
    return match is None or (ROOT / match[1]).exists()


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of a page's console blocks, as words; without brackets and ellipses of a synopsis."""
    for block in blocks(page, "console"):
        for line in block.text.splitlines():
            assert line.startswith("$ "), f"{line!r} is not a command"
            for command in line[2:].split(" && "):
                yield shlex.split(re.sub(r"\[the same options\]|[\[\]]", "", command))


def parse(command: list[str]) -> None:
    """Parse a command line with storaged's own parser; ignore other programs. Raises UsageError or SystemExit."""
    program = Path(command[0]).name
    if program == "storaged":
        Options().parseOptions(command[1:])
    elif program == "twistd" and "storaged" in command:
        tap.Options().parseOptions(command[command.index("storaged") + 1 :])
