"""The secrets file."""

from __future__ import annotations

from pathlib import Path

import pytest

from twisted_storaged.secrets import Credentials, read_secrets
from twisted_storaged.tables import ConfigError

GOOD = """
[s3]
access_key_id = "AKIA1"
secret_access_key = "hunter2"
[buckets.archive]
access_key_id = "AKIA2"
secret_access_key = "hunter3"
[other-service]
token = "x"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.toml"
    path.touch(0o600)
    return path


class ReadSecretsTests:
    """Credentials by bucket."""

    def test_primary_and_named_buckets(self, path: Path) -> None:
        """Sections of other services are left alone."""
        path.write_text(GOOD)
        assert read_secrets(path) == {
            "primary": Credentials("AKIA1", "hunter2"),
            "archive": Credentials("AKIA2", "hunter3"),
        }

    def test_the_default_file_may_be_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Credentials may come from elsewhere."""
        monkeypatch.setattr("twisted_storaged.secrets.DEFAULT_SECRETS", tmp_path / "no" / "no.toml")
        assert read_secrets(None) == {}

    def test_the_default_file_is_read(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a name, the file at the default path is used if it exists."""
        path.write_text(GOOD)
        monkeypatch.setattr("twisted_storaged.secrets.DEFAULT_SECRETS", path)
        assert set(read_secrets(None)) == {"primary", "archive"}

    @pytest.mark.parametrize("name", ["no.toml", "no/no.toml"])
    def test_a_named_file_must_exist(self, tmp_path: Path, name: str) -> None:
        """A path that was given and is not there is an error."""
        with pytest.raises(ConfigError, match=r"no.toml: does not exist"):
            read_secrets(tmp_path / name)

    @pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644])
    def test_readable_by_others_is_refused(self, path: Path, mode: int) -> None:
        """Somebody has read it already."""
        path.write_text(GOOD)
        path.chmod(mode)
        with pytest.raises(ConfigError, match=rf"secrets.toml: its mode is {mode:04o}: expected no access for others"):
            read_secrets(path)

    def test_readable_by_its_group_is_fine(self, path: Path) -> None:
        """root:storaged 0640 is how one keeps such a file."""
        path.chmod(0o640)
        assert read_secrets(path) == {}

    def test_unreadable_is_refused(self, tmp_path: Path) -> None:
        """It was meant to be used."""
        path = tmp_path / "folder.toml"
        path.mkdir(0o700)
        with pytest.raises(ConfigError, match=r"folder.toml: cannot be read: Is a directory"):
            read_secrets(path)

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ("[s3", "is not TOML"),
            ("s3 = 1", r"\[s3\] is not shown: expected a table"),
            ("s3 = 'hunter2'", r"\[s3\] is not shown: expected a table"),
            ("[[s3]]\nsecret_access_key = 'hunter2'", r"\[s3\] is not shown: expected a table"),
            ("buckets = ['hunter2']", r"\[buckets\] is not shown: expected a table"),
            ("[buckets]\nx = 'hunter2'", r"\[buckets.x\] is not shown: expected a table"),
            ("[s3]\nsecret_access_key = {hunter2 = 'hunter2'}", r"\[s3\] secret_access_key is not shown"),
            ("[s3]\nsecret_access_key = 'hunter2", r"is not TOML"),
            ("[s3]", r"\[s3\] access_key_id is missing"),
            ("[s3]\naccess_key_id = 'a'", r"\[s3\] secret_access_key is missing"),
            ("[s3]\nsecret_access_key = 'hunter2'", r"\[s3\] access_key_id is missing"),
            ("[s3]\naccess_key = 'a'", r"\[s3\] access_key_id is missing|unknown key 'access_key'"),
            (
                "[s3]\naccess_key_id = 'a'\nsecret_access_key = 7",
                r"\[s3\] secret_access_key is not shown: expected a text",
            ),
            ("[buckets.x]\naccess_key_id = 'a'", r"\[buckets.x\] secret_access_key is missing"),
        ],
    )
    def test_malformed_is_refused(self, path: Path, content: str, error: str) -> None:
        """With the place, and without the secret."""
        path.write_text(content)
        with pytest.raises(ConfigError, match=error) as caught:
            read_secrets(path)
        assert str(path) in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_secrets_are_not_in_reprs(self) -> None:
        """Which end up in logs."""
        assert "hunter2" not in repr(Credentials("AKIA1", "hunter2"))
