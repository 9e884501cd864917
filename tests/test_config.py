"""The configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from twisted_storaged.buckets.local import LocalSettings
from twisted_storaged.buckets.s3settings import S3Settings, Upkeep
from twisted_storaged.config import Config, Overrides, load_config
from twisted_storaged.secrets import Credentials
from twisted_storaged.tables import ConfigError

ENVIRON = {"HOME": "/home/me"}


def load(tmp_path: Path, content: str, secrets: dict[str, Credentials] | None = None, **overrides: object) -> Config:
    path = tmp_path / "lakehouse.toml"
    path.write_text(content)
    return load_config(Overrides(config=path, **overrides), secrets or {}, ENVIRON)  # type: ignore[arg-type]


class WithoutAFileTests:
    """Nobody configured anything."""

    def test_embedded_bucket_on_loopback(self) -> None:
        """So it is for a first user."""
        config = load_config(Overrides(), {}, ENVIRON)
        assert config.endpoint == "tcp:3211:interface=127.0.0.1"
        assert config.put_slots == 4
        assert config.buckets == {"primary": LocalSettings(Path("/home/me/.local/share/storaged"))}

    @pytest.mark.parametrize(
        ("environ", "data"),
        [
            ({"STATE_DIRECTORY": "/var/lib/storaged", "XDG_DATA_HOME": "/x"}, "/var/lib/storaged"),
            ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
            ({"XDG_DATA_HOME": "/x", "HOME": "/home/me"}, "/x/storaged"),
            ({"XDG_DATA_HOME": "", "HOME": "/home/me"}, "/home/me/.local/share/storaged"),
        ],
    )
    def test_where_the_data_is(self, environ: dict[str, str], data: str) -> None:
        """Systemd's word, else the user's."""
        assert load_config(Overrides(), {}, environ).buckets == {"primary": LocalSettings(Path(data))}

    def test_the_command_line_goes_first(self) -> None:
        """Before the environment."""
        config = load_config(Overrides(data=Path("/d"), bind="127.0.0.1:1"), {}, {"STATE_DIRECTORY": "/s"})
        assert config.buckets == {"primary": LocalSettings(Path("/d"))}
        assert config.endpoint == "tcp:1:interface=127.0.0.1"


class UpkeepTests:
    """The upload journal, and the time that S3 has."""

    def test_the_journal_is_where_the_data_would_be(self) -> None:
        """Looked at every hour; requests have two minutes."""
        upkeep = load_config(Overrides(), {}, ENVIRON).upkeep
        assert upkeep == Upkeep(Path("/home/me/.local/share/storaged"), reap_interval=3600, deadline=120)
        assert load_config(Overrides(data=Path("/d")), {}, ENVIRON).upkeep.state == Path("/d")

    def test_the_file_goes_first(self, tmp_path: Path) -> None:
        """In whole seconds."""
        text = '[storaged]\nstate = "/s"\nreap_interval = 60\ns3_deadline = 5\nabandoned_after = 9\n[s3]\nbucket = "b"'
        assert load(tmp_path, text).upkeep == Upkeep(Path("/s"), reap_interval=60, deadline=5, abandoned_after=9)


class FileTests:
    """A file says so."""

    def test_storaged(self, tmp_path: Path) -> None:
        """Our own section."""
        config = load(tmp_path, '[storaged]\nbind = "unix:/run/s"\nput_slots = 9')
        assert (config.endpoint, config.put_slots) == ("unix:/run/s", 9)

    def test_sections_of_others_are_left_alone(self, tmp_path: Path) -> None:
        """One file for all services of a host."""
        load(tmp_path, "[catalog]\nx = 1\n[[ingest.source]]\ny = 2")

    def test_s3(self, tmp_path: Path) -> None:
        """The primary bucket."""
        config = load(
            tmp_path,
            """
            [s3]
            endpoint = "https://s3.example"
            region = "eu-1"
            bucket = "b"
            prefix = "host1/"
            use_path_style = true
            access_key_id = "id"
            secret_access_key = "hunter2"
            conditional_writes = "put_object"
            get_resumes = 0
            verify_reads = false
            lists_in_order = false
            """,
        )
        s3 = S3Settings(
            "b", "host1/", "https://s3.example", "eu-1", True, "id", "hunter2", "put_object", 0, False, False
        )
        assert config.buckets == {"primary": s3}
        assert "hunter2" not in repr(config)

    @pytest.mark.parametrize(("line", "verify"), [("", None), ("'auto'", None), ("true", True), ("false", False)])
    def test_verify_reads(self, tmp_path: Path, line: str, verify: bool | None) -> None:
        """Whole reads are verified, where it can be done cheaply, unless the file says otherwise."""
        text = f"verify_reads = {line}" if line else ""
        settings = load(tmp_path, f'[s3]\nbucket = "b"\n{text}').buckets["primary"]
        assert settings == S3Settings("b", verify_reads=verify)

    def test_what_s3_does_not_say_is_boto3s(self, tmp_path: Path) -> None:
        """Region, credentials, style."""
        assert load(tmp_path, '[s3]\nbucket = "b"').buckets == {"primary": S3Settings("b")}

    def test_secrets_go_before_the_file(self, tmp_path: Path) -> None:
        """Bucket by bucket."""
        text = """
        [s3]
        bucket = "b"
        access_key_id = "old"
        secret_access_key = "old"
        [buckets.other]
        bucket = "c"
        access_key_id = "kept"
        secret_access_key = "kept"
        """
        config = load(tmp_path, text, {"primary": Credentials("new", "new"), "unused": Credentials("x", "x")})
        primary, other = config.buckets["primary"], config.buckets["other"]
        assert isinstance(primary, S3Settings)
        assert isinstance(other, S3Settings)
        assert (primary.access_key_id, other.access_key_id) == ("new", "kept")

    def test_several_buckets_of_either_kind(self, tmp_path: Path) -> None:
        """And policies that send prefixes to them."""
        config = load(
            tmp_path,
            """
            [buckets.archive]
            bucket = "b"
            [buckets.fast]
            kind = "local"
            path = "/fast"
            [[policy]]
            prefix = "fast/"
            bucket = "fast"
            [[policy]]
            prefix = "_vectors/"
            bucket = "archive"
            """,
        )
        assert set(config.buckets) == {"primary", "archive", "fast"}
        assert config.policy.rule_for("fast/a").bucket == "fast"
        assert config.policy.rule_for("_vectors/a").bucket == "archive"
        assert config.policy.rule_for("_vectors/a").max_put == 4 << 30
        assert config.policy.rule_for("fast/a").max_put == 256 << 20

    def test_caps(self, tmp_path: Path) -> None:
        """New ones, and other ones."""
        config = load(
            tmp_path,
            """
            [[policy]]
            prefix = ""
            max_put = "1 GiB"
            [[policy]]
            prefix = "small/"
            max_put = 10
            """,
        )
        assert [config.policy.rule_for(key).max_put for key in ("a", "small/a", "_vectors/a")] == [1 << 30, 10, 4 << 30]

    def test_a_primary_bucket_by_its_name(self, tmp_path: Path) -> None:
        """[buckets.primary] is another way to say [s3]."""
        text = '[buckets.primary]\nkind = "local"\npath = "/x"'
        assert load(tmp_path, text).buckets == {"primary": LocalSettings(Path("/x"))}


class ErrorsTests:
    """What is refused before anything listens."""

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ("[storaged]\nbnid = 'x'", "[storaged] has an unknown key 'bnid'"),
            ("[storaged]\nput_slots = 0", "[storaged] put_slots is 0: expected a whole number of at least 1"),
            ("[storaged]\nstate = 3", "[storaged] state is 3: expected a text that is not empty"),
            ("[storaged]\nreap_interval = 0", "[storaged] reap_interval is 0: expected a whole number of at least 1"),
            ("[storaged]\ns3_deadline = 1.5", "[storaged] s3_deadline is 1.5: expected a whole number of at least 1"),
            ("[storaged]\nallow_network = 'yes'", "[storaged] allow_network is 'yes': expected true or false"),
            ("storaged = 3", "[storaged] is 3: expected a table"),
            ("[s3]", "[s3] bucket is missing: expected a text that is not empty"),
            ("[s3]\nbucket = ''", "[s3] bucket is '': expected a text that is not empty"),
            ("[s3]\nbucket = 'b'\nendpoint = 's3.example'", "[s3] endpoint is 's3.example': expected a URL that"),
            ("[s3]\nbucket = 'b'\nuse_path_style = 1", "[s3] use_path_style is 1: expected true or false"),
            (
                "[s3]\nbucket = 'b'\nconditional_writes = 'some'",
                '[s3] conditional_writes is \'some\': expected "auto" or "all" or "put_object" or "none"',
            ),
            ("[s3]\nbucket = 'b'\nget_resumes = -1", "[s3] get_resumes is -1: expected a whole number, or 0"),
            ("[s3]\nbucket = 'b'\nverify_reads = 'no'", "[s3] verify_reads is 'no': expected \"auto\", true or false"),
            ("[s3]\nbucket = 'b'\naccess_key_id = 'x'", "[s3] secret_access_key is missing"),
            ("[s3]\nbucket = 'b'\nbuckett = 'x'", "[s3] has an unknown key 'buckett'"),
            ("[s3]\nbucket = 'b'\n[buckets.primary]\nbucket = 'c'", "[s3] and [buckets.primary] are both there"),
            ("[buckets.x]\nkind = 'gcs'", '[buckets.x] kind is \'gcs\': expected "s3" or "local"'),
            ("[buckets.x]\nkind = 'local'", "[buckets.x] path is missing"),
            ("[buckets.x]\nkind = 'local'\npath = '/p'\nregion = 'r'", "[buckets.x] has an unknown key 'region'"),
            ("[buckets]\nx = 1", "[buckets.x] is 1: expected a table"),
            ("[policy]\nprefix = 'a'", "policy is a table: expected [[policy]] sections"),
            ("s3 = 'hunter2'", "[s3] is a string: expected a table"),
            ("[[s3]]\nsecret_access_key = 'hunter2'", "[s3] is an array: expected a table"),
            ("[buckets]\nx = 'hunter2'", "[buckets.x] is a string: expected a table"),
            ("[s3]\nbucket = {secret_access_key = 'hunter2'}", "[s3] bucket is a table: expected a text"),
            ("[s3]\nbucket = 'b'\nendpoint = 'http://me:hunter2@s3.example'", "[s3] endpoint is not shown: expected"),
            ("[s3]\nbucket = 'b'\nendpoint = 'ftp://me:hunter2@s3.example'", "[s3] endpoint is not shown: expected"),
            ("[[policy]]\nmax_put = 1", "[[policy]] prefix is missing"),
            ("[[policy]]\nprefix = 'a'\nmax_put = '1 GB'", "[[policy]] max_put is '1 GB': expected a size such as"),
            (
                "[[policy]]\nprefix = 'a'\nbucket = 'nope'",
                "[[policy]] bucket is 'nope': expected the name of a bucket: primary",
            ),
            ("[[policy]]\nprefix = 'a'\nmax = 1", "[[policy]] has an unknown key 'max'"),
            ("[[policy]]\nprefix = 'a'\n[[policy]]\nprefix = 'a'", "[[policy]] prefix is 'a' twice"),
            ("[storaged]\nbind = '0.0.0.0:80'", "[storaged] bind is '0.0.0.0:80': expected a loopback address"),
            ("[storaged]\nbind = ':80'", "[storaged] bind is ':80': expected a loopback address"),
        ],
    )
    def test_names_the_place(self, tmp_path: Path, content: str, error: str) -> None:
        """File, section, key, what stood there and what was expected."""
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, content)
        assert str(caught.value).startswith(f"{tmp_path}/lakehouse.toml: {error}")
        assert "hunter2" not in str(caught.value)

    def test_a_network_address_on_the_command_line(self) -> None:
        """Is refused as the file's would be."""
        with pytest.raises(ConfigError, match=r"--bind is '0.0.0.0:1': .*allow_network = true"):
            load_config(Overrides(bind="0.0.0.0:1"), {}, ENVIRON)

    def test_a_network_address_that_is_allowed(self, tmp_path: Path) -> None:
        """By whoever says so in as many words."""
        config = load(tmp_path, "[storaged]\nbind = '0.0.0.0:80'\nallow_network = true")
        assert config.endpoint == "tcp:80:interface=0.0.0.0"

    def test_data_beside_another_primary(self, tmp_path: Path) -> None:
        """Two places for one bucket."""
        with pytest.raises(ConfigError, match="--data is '/d': expected none"):
            load(tmp_path, '[s3]\nbucket = "b"', data=Path("/d"))
