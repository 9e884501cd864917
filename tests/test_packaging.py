"""What is installed, and what is in the files that operators copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.daemon import ROOT
from twisted_storaged.config import Overrides, load_config
from twisted_storaged.config_file import read_secrets

PACKAGED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "twisted", "twisted_storaged")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in the wheel, built from a copy: building leaves traces."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder / "dist"),
        str(folder),
    ]
    subprocess.run(command, check=True, timeout=300)
    (built,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(built).namelist()


class WheelTests:
    """What pip installs."""

    def test_has_the_plugin(self, wheel: list[str]) -> None:
        """Without it there is no `twistd storaged`."""
        assert "twisted/plugins/twisted_storaged_plugin.py" in wheel

    def test_leaves_twisted_alone(self, wheel: list[str]) -> None:
        """An __init__.py of ours would overwrite Twisted's at install, and remove it at uninstall."""
        assert [name for name in wheel if name.startswith("twisted/")] == ["twisted/plugins/twisted_storaged_plugin.py"]
        assert not (ROOT / "twisted" / "__init__.py").exists()
        assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists()

    def test_has_every_module(self, wheel: list[str]) -> None:
        """And the mark that it is typed."""
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / "twisted_storaged").rglob("*.py")}
        assert modules | {"twisted_storaged/py.typed"} == {
            name for name in wheel if name.startswith("twisted_storaged/")
        }


class ExamplesOfFilesTests:
    """etc/."""

    def test_the_configuration_is_one(self) -> None:
        """As it stands."""
        config = load_config(Overrides(config=ROOT / "etc" / "storaged.toml"), {}, {})
        assert set(config.buckets) == {"primary", "fast", "archive"}
        assert config.policy.rule_for("staging/x").bucket == "fast"

    def test_what_is_commented_out_is_known(self, tmp_path: Path) -> None:
        """And is the default, where it says so."""
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
        """Once they are where others cannot read them."""
        path = tmp_path / "secrets.toml"
        path.write_text((ROOT / "etc" / "secrets.toml").read_text("utf-8"), "utf-8")
        path.chmod(0o600)
        assert set(read_secrets(path)) == {"primary", "archive"}

    def test_the_unit_runs_what_there_is(self) -> None:
        """With options that exist."""
        unit = (ROOT / "etc" / "storaged.service").read_text("utf-8")
        command = unit.partition("ExecStart=")[2].replace("\\\n", "").splitlines()[0]
        assert "twistd --nodaemon --pidfile= storaged " in command
        assert {word for word in command.split(" storaged ")[1].split() if word.startswith("--")} <= {
            "--config",
            "--secrets",
        }


class ReadmeTests:
    """What a newcomer copies."""

    def test_says_how_to_run_and_to_test_in_one_line_each(self) -> None:
        """`.ci/run` runs the second as it stands."""
        lines = (ROOT / "README.md").read_text("utf-8").splitlines()
        assert sum(line.startswith("    python3 -m venv venv && ") for line in lines) == 2
