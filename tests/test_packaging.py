"""The distributions, what an install adds, and the files that operators copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import tomli
from packaging.requirements import Requirement

from tests.daemon import ROOT
from twisted_storaged import __version__
from twisted_storaged.config import Overrides, load_config
from twisted_storaged.config_file import read_secrets

#: Everything in a checkout, except for Git's own files.
SOURCES = (
    ".ci",
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "benchmarks",
    "changes",
    "docs",
    "etc",
    "examples",
    "pyproject.toml",
    "setup.py",
    "tests",
    "twisted",
    "twisted_storaged",
)
#: Files and folders that running tests or builds leaves in them.
LEFTOVERS = ("__pycache__", "build", "_build", "dropin.cache")


class Distributions(NamedTuple):
    """What `python -m build` creates, and the files that it was created from."""

    sdist: Path
    wheel: Path
    sources: set[str]

    def sdist_names(self) -> set[str]:
        """The names of the files in the sdist, relative to its one folder."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}

    def wheel_names(self) -> set[str]:
        """The names of the files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The sdist, and the wheel that is built from the sdist; of a copy, as building leaves files behind."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "storaged"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*LEFTOVERS))
        else:
            shutil.copy(ROOT / name, copy / name)
    sources = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    for name in ("benchmarks/build/program", "docs/_build/index.html", "tests/__pycache__/conftest.cpython-311.pyc"):
        (copy / name).parent.mkdir()
        (copy / name).touch()
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(copy)]
    built = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (sdist,), (wheel,) = ((folder / "dist").glob(pattern) for pattern in ("*.tar.gz", "*.whl"))
    return Distributions(sdist, wheel, sources)


class SdistTests:
    """The sdist, from which distributors build."""

    def test_has_all_of_a_checkout(self, distributions: Distributions) -> None:
        """Tests, docs, examples, benchmarks, news fragments and .ci/run are in the sdist, beside the packages."""
        assert distributions.sources - distributions.sdist_names() == set()

    def test_has_nothing_that_was_built(self, distributions: Distributions) -> None:
        """Compiled benchmarks, rendered docs and bytecode stay out of the sdist."""
        names = distributions.sdist_names()
        assert {name for name in names if not set(Path(name).parts).isdisjoint(LEFTOVERS)} == set()


class WheelTests:
    """The wheel, which pip installs."""

    def test_has_the_version(self, distributions: Distributions) -> None:
        """The wheel has the version of the package."""
        assert distributions.wheel.name == f"storaged-{__version__}-py3-none-any.whl"

    def test_has_the_plugin(self, distributions: Distributions) -> None:
        """The wheel has the plugin, without which there is no `twistd storaged`."""
        assert "twisted/plugins/twisted_storaged_plugin.py" in distributions.wheel_names()

    def test_leaves_twisted_alone(self, distributions: Distributions) -> None:
        """The wheel has no __init__.py in twisted/, which would replace Twisted's, and be removed at uninstall."""
        names = [name for name in distributions.wheel_names() if name.startswith("twisted/")]
        assert names == ["twisted/plugins/twisted_storaged_plugin.py"]
        assert not (ROOT / "twisted" / "__init__.py").exists()
        assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists()

    def test_has_every_file(self, distributions: Distributions) -> None:
        """The wheel has all modules of the package, py.typed, and the files of the page."""
        files = {path for path in (ROOT / "twisted_storaged").rglob("*") if path.is_file()}
        expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
        assert {"twisted_storaged/py.typed", "twisted_storaged/api/ops/page.html"} < expected
        assert expected == {name for name in distributions.wheel_names() if name.startswith("twisted_storaged/")}


class Environment:
    """A virtual environment that has the packages of this one, except for storaged, which can be installed into it.

    The packages are links, so that nothing is downloaded. Twisted is a copy, as installing storaged adds files to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
        (site_packages,) = folder.glob("lib/python*/site-packages")
        # twisted/test is half of Twisted, and not needed. The plugin is there if storaged is installed.
        ignored = shutil.ignore_patterns("__pycache__", "test", "dropin.cache", "twisted_storaged_plugin.py")
        for source in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
            for path in source.iterdir():
                if path.name == "twisted":
                    shutil.copytree(path, site_packages / path.name, ignore=ignored)
                elif not path.name.startswith(("__", "storaged-", "twisted_storaged")) and path.suffix != ".pth":
                    (site_packages / path.name).symlink_to(path)

    def pip(self, *arguments: str) -> None:
        """Run this environment's pip on the other one."""
        python = str(self.folder / "bin" / "python")
        subprocess.run([sys.executable, "-m", "pip", "--quiet", "--python", python, *arguments], check=True, timeout=60)

    def output(self, *command: str) -> str:
        """What a command of the environment writes to stdout."""
        path = str(self.folder / "bin" / command[0])
        ended = subprocess.run(
            [path, *command[1:]], cwd=self.folder, env={}, timeout=60, capture_output=True, text=True, check=True
        )
        return ended.stdout

    def twistd_commands(self) -> set[str]:
        """The commands that twistd has plugins for."""
        text = self.output("python", "-c", "from twisted.scripts.twistd import run; run()", "--help")
        return {line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()}


def texts(folder: Path) -> dict[str, str]:
    """The contents of all files under a folder, by their names relative to it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in files}


class InstallTests:
    """An environment into which the wheel is installed."""

    @pytest.fixture
    def environment(self, tmp_path: Path, distributions: Distributions) -> Environment:
        """The environment, in which pip finds suitable versions of all dependencies."""
        environment = Environment(tmp_path / "environment")
        environment.pip("install", "--no-index", str(distributions.wheel))
        return environment

    def test_all_is_there_and_gone_again(self, environment: Environment) -> None:
        """An install adds the command, the plugin and etc/; an uninstall removes them, and leaves Twisted as it was."""
        assert environment.output("storaged", "--version") == f"storaged {__version__}\n"
        assert environment.output("python", "-m", "twisted_storaged", "--version") == f"storaged {__version__}\n"
        assert {"storaged", "web"} <= environment.twistd_commands()
        share = environment.folder / "share" / "storaged"
        assert texts(share) == texts(ROOT / "etc")
        environment.pip("uninstall", "--yes", "storaged")
        commands = environment.twistd_commands()
        assert "web" in commands
        assert "storaged" not in commands
        assert not (environment.folder / "bin" / "storaged").exists()
        assert not share.exists()


class DependenciesTests:
    """The dependencies in pyproject.toml."""

    PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    @pytest.mark.parametrize("requirement", [*map(Requirement, PROJECT["dependencies"])], ids=lambda it: it.name)
    def test_the_installed_versions_are_allowed(self, requirement: Requirement) -> None:
        """The tests run with versions that the package allows, so that these have been tested."""
        assert version(requirement.name) in requirement.specifier

    def test_twisted_has_an_upper_bound(self) -> None:
        """The next major version of Twisted is not allowed before the tests have passed with it.

        storaged uses private names of Twisted (see runtime/private_names.py), which any version may change.
        """
        (twisted,) = (it for it in map(Requirement, self.PROJECT["dependencies"]) if it.name.lower() == "twisted")
        major = int(version("twisted").partition(".")[0])
        assert version("twisted") in twisted.specifier
        assert f"{major + 1}.0.0" not in twisted.specifier

    def test_dev_has_all_extras(self) -> None:
        """`pip install '.[dev]'` installs what tests, benchmarks, examples and tools need."""
        extras = {
            name: {extra for it in map(Requirement, needs) if it.name == "storaged" for extra in it.extras}
            for name, needs in self.PROJECT["optional-dependencies"].items()
        }
        assert {"dev"} | extras["dev"] | extras["integration"] == set(extras)


class ExamplesOfFilesTests:
    """The files in etc/."""

    def test_the_configuration_is_one(self) -> None:
        """etc/storaged.toml is a valid configuration."""
        config = load_config(Overrides(config=ROOT / "etc" / "storaged.toml"), {}, {})
        assert set(config.buckets) == {"primary", "fast", "archive"}
        assert config.policy.rule_for("staging/x").bucket == "fast"

    def test_what_is_commented_out_is_known(self, tmp_path: Path) -> None:
        """Keys that are commented out in etc/storaged.toml exist, and show their defaults if the file says so."""
        text = (ROOT / "etc" / "storaged.toml").read_text("utf-8")
        path = tmp_path / "all.toml"
        lines = [
            line[1:] if line.startswith("#") and line[1:2] not in (" ", "") else line for line in text.splitlines()
        ]
        path.write_text("\n".join(lines), "utf-8")
        everything = load_config(Overrides(config=path), {}, {})
        defaults = load_config(Overrides(), {}, {})
        assert (everything.endpoint, everything.put_slots) == (defaults.endpoint, defaults.put_slots)
        assert [everything.policy.rule_for(key) for key in ("a", "_vectors/a")] == [
            defaults.policy.rule_for(key) for key in ("a", "_vectors/a")
        ]

    def test_the_secrets_are_some(self, tmp_path: Path) -> None:
        """etc/secrets.toml is a valid secrets file, once others cannot read it."""
        path = tmp_path / "secrets.toml"
        path.write_text((ROOT / "etc" / "secrets.toml").read_text("utf-8"), "utf-8")
        path.chmod(0o600)
        assert set(read_secrets(path)) == {"primary", "archive"}


class ReadmeTests:
    """Commands of the README that a newcomer copies."""

    def test_says_how_to_run_and_to_test_in_one_line_each(self) -> None:
        """The README has one line that runs the daemon and one that runs the tests, which `.ci/run` takes from it."""
        lines = (ROOT / "README.md").read_text("utf-8").splitlines()
        assert sum(line.startswith("    python3 -m venv venv && ") for line in lines) == 2
