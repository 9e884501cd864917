"""The configuration: how the keys of a file and the command line become settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor

from tests.daemon import ROOT
from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.s3.probe import CAPABILITIES_BY_SETTING
from twisted_storaged.buckets.s3.session import S3Settings, Upkeep
from twisted_storaged.config import (
    SECTIONS,
    Config,
    LocalSection,
    Overrides,
    PolicySection,
    S3Section,
    StoragedSection,
    endpoint_description,
    is_local,
    load_config,
    reference_table,
)
from twisted_storaged.config_file import ConfigError, Credentials, Duration, Key, describe, read_secrets
from twisted_storaged.routing import Rule

ENVIRON = {"HOME": "/home/me"}

#: A secret as engines generate them.
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

#: A secret that an operator chose, which does not look like one.
PASSWORD = "hunter2"


def load(tmp_path: Path, content: str, secrets: dict[str, Credentials] | None = None, **overrides: object) -> Config:
    path = tmp_path / "lakehouse.toml"
    path.write_text(content)
    return load_config(Overrides(config=path, **overrides), secrets or {}, ENVIRON)  # type: ignore[arg-type]


class WithoutAFileTests:
    """Defaults without a configuration file."""

    def test_embedded_bucket_on_loopback(self) -> None:
        """Without a file, the daemon has an embedded bucket and listens on a loopback address."""
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
        """The data folder is systemd's state directory, or else in the user's data folder."""
        assert load_config(Overrides(), {}, environ).buckets == {"primary": LocalSettings(Path(data))}

    def test_the_command_line_goes_first(self) -> None:
        """Options of the command line take precedence over the environment."""
        config = load_config(Overrides(data=Path("/d"), bind="127.0.0.1:1"), {}, {"STATE_DIRECTORY": "/s"})
        assert config.buckets == {"primary": LocalSettings(Path("/d"))}
        assert config.endpoint == "tcp:1:interface=127.0.0.1"


class UpkeepTests:
    """The settings that all buckets of S3 share."""

    def test_the_journal_is_where_the_data_would_be(self) -> None:
        """By default, the journal is in the data folder, is checked every hour, and requests to S3 have two minutes."""
        upkeep = load_config(Overrides(), {}, ENVIRON).upkeep
        assert upkeep == Upkeep(Path("/home/me/.local/share/storaged"), reap_interval=3600, deadline=120)
        assert load_config(Overrides(data=Path("/d")), {}, ENVIRON).upkeep.state == Path("/d")

    def test_the_file_goes_first(self, tmp_path: Path) -> None:
        """The file can set the folder of the journal, and times in seconds or with a unit."""
        times = 'reap_interval = "1 min"\ndrain = "2 min"\ns3_deadline = 5\nabandoned_after = 9'
        config = load(tmp_path, f'[storaged]\nstate = "/s"\n{times}\n[s3]\nbucket = "b"')
        assert config.upkeep == Upkeep(Path("/s"), reap_interval=60, deadline=5, abandoned_after=9)
        assert config.drain == 120

    def test_retry_after(self, tmp_path: Path) -> None:
        """A refused PUT may be tried again after 5 seconds by default, after others, or after an estimate."""
        assert load(tmp_path, "").retry_after == 5
        assert load(tmp_path, "[storaged]\nretry_after = 9").retry_after == 9
        assert load(tmp_path, "[storaged]\nretry_after = 86400").retry_after == 86400
        assert load(tmp_path, '[storaged]\nretry_after = "auto"').retry_after is None


class FileTests:
    """Settings from a file."""

    def test_storaged(self, tmp_path: Path) -> None:
        """Keys of [storaged] become settings of the daemon."""
        config = load(tmp_path, '[storaged]\nbind = "unix:/run/s"\nput_slots = 9')
        assert (config.endpoint, config.put_slots) == ("unix:/run/s", 9)

    def test_sections_of_others_are_left_alone(self, tmp_path: Path) -> None:
        """Unknown sections are ignored, as several services may share the file."""
        load(tmp_path, "[catalog]\nx = 1\n[[ingest.source]]\ny = 2")

    def test_s3(self, tmp_path: Path) -> None:
        """The section [s3] defines the primary bucket."""
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

    @pytest.mark.parametrize(
        ("line", "access_log"), [("", True), ("false", False), ("true", True), ("'/log'", Path("/log"))]
    )
    def test_access_log(self, tmp_path: Path, line: str, access_log: object) -> None:
        """`access_log` is true by default, and may be false or a file."""
        text = f"access_log = {line}" if line else ""
        assert load(tmp_path, f"[storaged]\n{text}").access_log == access_log

    def test_log_format(self, tmp_path: Path) -> None:
        """The format of a log that was opened before is kept."""
        assert load(tmp_path, "").log_format == "text"
        assert load(tmp_path, "[storaged]\nlog_format = 'json'").log_format == "json"
        assert load(tmp_path, "[storaged]\nlog_format = 'json'", log_format="text").log_format == "text"

    @pytest.mark.parametrize(("line", "verify"), [("", None), ("'auto'", None), ("true", True), ("false", False)])
    def test_verify_reads(self, tmp_path: Path, line: str, verify: bool | None) -> None:
        """`verify_reads` is automatic by default, and may be true or false."""
        text = f"verify_reads = {line}" if line else ""
        settings = load(tmp_path, f'[s3]\nbucket = "b"\n{text}').buckets["primary"]
        assert settings == S3Settings("b", verify_reads=verify)

    def test_what_s3_does_not_say_is_boto3s(self, tmp_path: Path) -> None:
        """Region, credentials and URL style are left to boto3 if [s3] does not set them."""
        assert load(tmp_path, '[s3]\nbucket = "b"').buckets == {"primary": S3Settings("b")}

    def test_secrets_go_before_the_file(self, tmp_path: Path) -> None:
        """Credentials of the secrets file take precedence over the configuration's, for each bucket."""
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
        """A file may define several buckets of both kinds, and rules that assign prefixes to them."""
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
        """Rules set limits for new prefixes, and change those of built-in rules."""
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

    def test_slots_of_a_prefix(self, tmp_path: Path) -> None:
        """A rule can limit the put slots of its keys, and leaves the rest as it is."""
        config = load(tmp_path, '[[policy]]\nprefix = "_vectors/"\nslots = 2')
        assert config.policy.rule_for("_vectors/a") == Rule("_vectors/", 4 << 30, slots=2)
        assert config.policy.rule_for("a").slots is None

    def test_a_primary_bucket_by_its_name(self, tmp_path: Path) -> None:
        """[buckets.primary] defines the primary bucket as [s3] does."""
        text = '[buckets.primary]\nkind = "local"\npath = "/x"'
        assert load(tmp_path, text).buckets == {"primary": LocalSettings(Path("/x"))}


class ErrorsTests:
    """Mistakes in a configuration."""

    def test_a_folder_of_two_buckets(self, tmp_path: Path) -> None:
        """Two embedded buckets in one folder are refused, however their paths are written."""
        (tmp_path / "link").symlink_to(tmp_path)
        content = f'''
[buckets.one]
kind = "local"
path = "{tmp_path}/data"
[buckets.two]
kind = "local"
path = "{tmp_path}/link/data"
'''
        with pytest.raises(ConfigError, match=r"the buckets one and two are in the same folder"):
            load(tmp_path, content)

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ("[storaged]\nbnid = 'x'", "[storaged] has an unknown key 'bnid': expected bind, allow_network, "),
            (
                "[storaged]\ns3_deadline = '2 mins'",
                "[storaged] s3_deadline is '2 mins': expected a time such as ",
            ),
            ('[storaged]\nstate = "a\\u0000"', "[storaged] state is 'a\\x00': expected a non-empty path"),
            ("[storaged]\nput_slots = 0", "[storaged] put_slots is 0: expected a positive integer"),
            ("[storaged]\nstate = 3", "[storaged] state is 3: expected a non-empty path"),
            ("[storaged]\nreap_interval = 0", "[storaged] reap_interval is 0: expected a time such as "),
            ("[storaged]\ns3_deadline = 1.5", "[storaged] s3_deadline is 1.5: expected a time such as "),
            ("[storaged]\nallow_network = 'yes'", "[storaged] allow_network is 'yes': expected true or false"),
            ("[storaged]\naccess_log = 1", "[storaged] access_log is 1: expected true, false or a non-empty path"),
            ("[storaged]\naccess_log = ''", "[storaged] access_log is '': expected true, false or a non-empty path"),
            ("[storaged]\nlog_format = 'xml'", '[storaged] log_format is \'xml\': expected "json" or "text"'),
            ("storaged = 3", "[storaged] is 3: expected a table"),
            ("[s3]", "[s3] bucket is missing: expected a non-empty string"),
            ("[s3]\nbucket = ''", "[s3] bucket is '': expected a non-empty string"),
            ("[s3]\nbucket = 'b'\nendpoint = 's3.example'", "[s3] endpoint is 's3.example': expected a URL that"),
            ("[s3]\nbucket = 'b'\nuse_path_style = 1", "[s3] use_path_style is 1: expected true or false"),
            (
                "[s3]\nbucket = 'b'\nconditional_writes = 'some'",
                '[s3] conditional_writes is \'some\': expected "all", "auto", "none" or "put_object"',
            ),
            ("[s3]\nbucket = 'b'\nget_resumes = -1", "[s3] get_resumes is -1: expected a non-negative integer"),
            ("[s3]\nbucket = 'b'\nverify_reads = 'no'", "[s3] verify_reads is 'no': expected \"auto\", true or false"),
            ("[s3]\nbucket = 'b'\naccess_key_id = 'x'", "[s3] secret_access_key is missing"),
            ("[s3]\nbuckett = 'b'", "[s3] has an unknown key 'buckett': expected kind, bucket, "),
            ("[s3]\nregion = 1\nbuckett = 'b'", "[s3] has an unknown key 'buckett': expected kind, bucket, "),
            ("[s3]\nbucket = 'b'\nbuckett = 'x'", "[s3] has an unknown key 'buckett': expected kind, bucket, "),
            ("[s3]\nbucket = 'b'\n[buckets.primary]\nbucket = 'c'", "[s3] and [buckets.primary] are both there"),
            ("[buckets.x]\nkind = 'gcs'", '[buckets.x] kind is \'gcs\': expected "local" or "s3"'),
            ("[buckets.x]\nkind = 'local'", "[buckets.x] path is missing"),
            (
                "[buckets.x]\nkind = 'local'\npath = '/p'\nregion = 'r'",
                "[buckets.x] has an unknown key 'region': expected kind or path",
            ),
            ("[buckets]\nx = 1", "[buckets.x] is 1: expected a table"),
            ("[policy]\nprefix = 'a'", "policy is a table: expected [[policy]] sections"),
            ("s3 = 'hunter2'", "[s3] is a string: expected a table"),
            ("[[s3]]\nsecret_access_key = 'hunter2'", "[s3] is an array: expected a table"),
            ("[buckets]\nx = 'hunter2'", "[buckets.x] is a string: expected a table"),
            ("[s3]\nbucket = {secret_access_key = 'hunter2'}", "[s3] bucket is a table: expected a non-empty string"),
            ("[s3]\nbucket = 'b'\nendpoint = 'http://me:hunter2@s3.example'", "[s3] endpoint is not shown: expected"),
            ("[s3]\nbucket = 'b'\nendpoint = 'ftp://me:hunter2@s3.example'", "[s3] endpoint is not shown: expected"),
            ("[[policy]]\nmax_put = 1", "[[policy]] prefix is missing"),
            ("[[policy]]\nprefix = 'a'\nmax_put = '1 GB'", "[[policy]] max_put is '1 GB': expected a size such as"),
            (
                "[[policy]]\nprefix = 'a'\nbucket = 'nope'",
                "[[policy]] bucket is 'nope': expected the name of a bucket: primary",
            ),
            (
                "[[policy]]\nprefix = 'a'\nmax = 1",
                "[[policy]] has an unknown key 'max': expected prefix, max_put, ",
            ),
            ("[[policy]]\nprefix = 'a'\n[[policy]]\nprefix = 'a'", "[[policy]] prefix is 'a' twice"),
            ("[[policy]]\nprefix = 'a'\nslots = 5", "[[policy]] slots is 5: expected at most put_slots, which is 4"),
            ("[[policy]]\nprefix = 'a'\nslots = 0", "[[policy]] slots is 0: expected a positive integer"),
            ("[storaged]\nretry_after = 'now'", "[storaged] retry_after is 'now': expected "),
            ("[storaged]\nretry_after = 0", "[storaged] retry_after is 0: expected "),
            (
                "[storaged]\nretry_after = 86401",
                '[storaged] retry_after is 86401: expected "auto" or a positive integer of at most 86400 (seconds)',
            ),
            ("[storaged]\nbind = '0.0.0.0:80'", "[storaged] bind is '0.0.0.0:80': expected a loopback address"),
            ("[storaged]\nbind = ':80'", "[storaged] bind is ':80': expected a loopback address"),
        ],
    )
    def test_names_the_place(self, tmp_path: Path, content: str, error: str) -> None:
        """An error names the file, the section, the key, its value, and what was expected."""
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, content)
        assert str(caught.value).startswith(f"{tmp_path}/lakehouse.toml: {error}")
        assert "hunter2" not in str(caught.value)

    def test_a_network_address_on_the_command_line(self) -> None:
        """A --bind to which other hosts can connect is refused."""
        with pytest.raises(ConfigError, match=r"--bind is '0.0.0.0:1': .*allow_network = true"):
            load_config(Overrides(bind="0.0.0.0:1"), {}, ENVIRON)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", True),
            ("status_page = false", False),
            ("allow_network = true", False),
            ("allow_network = true\nstatus_page = true", False),
        ],
    )
    def test_status_page(self, tmp_path: Path, text: str, expected: bool) -> None:
        """There is a page, unless it is turned off or other hosts may connect."""
        assert load(tmp_path, f"[storaged]\n{text}").status_page is expected

    def test_a_network_address_that_is_allowed(self, tmp_path: Path) -> None:
        """`allow_network = true` allows such an address."""
        config = load(tmp_path, "[storaged]\nbind = '0.0.0.0:80'\nallow_network = true")
        assert config.endpoint == "tcp:80:interface=0.0.0.0"

    def test_data_beside_another_primary(self, tmp_path: Path) -> None:
        """--data is refused if the file defines the primary bucket."""
        with pytest.raises(ConfigError, match="--data is '/d': expected none"):
            load(tmp_path, '[s3]\nbucket = "b"', data=Path("/d"))


def written(value: object) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(key)} = {written(one)}' for key, one in value.items())}}}"
    return str(value)


def document(values: dict[str, Any]) -> str:
    """A TOML document."""
    return "\n".join(f"{written(key)} = {written(value)}" for key, value in values.items())


CREDENTIAL_KEYS = ["access_key_id", "secret_access_key"]
KNOWN = sorted({key.name for definition in SECTIONS.values() for key in describe(definition)})
SECTION_NAMES = ["storaged", "s3", "buckets"]
SENSIBLE = ["auto", "local", "s3", "none", "http://s3.example", "1 GiB", "127.0.0.1:1", "primary", "/a", 1, 60, True]

SHORT_SECRETS = st.sampled_from([PASSWORD, 48151623])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
scalars = st.sampled_from(SENSIBLE) | texts | st.integers() | st.floats() | st.booleans() | st.dates() | st.datetimes()


def shapes(leaves: st.SearchStrategy[Any], names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A strategy for values with these leaves, and with these names in tables."""
    return st.recursive(
        leaves, lambda some: st.lists(some, max_size=3) | st.dictionaries(names, some, max_size=3), max_leaves=6
    )


def documents(leaves: st.SearchStrategy[Any], names: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """A strategy for documents: sections in their places, or anything else there."""
    values = shapes(leaves, names)
    section = st.dictionaries(names, values, max_size=5)
    places = {
        "storaged": section | values,
        "s3": section | values,
        "buckets": st.dictionaries(names, section | values, max_size=3) | values,
        "policy": st.lists(section | values, max_size=3) | values,
    }
    return st.fixed_dictionaries({}, optional=places)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


def error_of(folder: Path, content: bytes) -> str:
    """The error of a configuration file with this content, or an empty string."""
    path = folder / "x.toml"
    path.write_bytes(content)
    return error_in(lambda: load_config(Overrides(config=path), {}, ENVIRON))


def error_of_secrets(folder: Path, content: bytes) -> str:
    """The error of a secrets file with this content, or an empty string."""
    path = folder / "secrets.toml"
    path.touch(0o600)
    path.write_bytes(content)
    return error_in(lambda: read_secrets(path))


def error_in(reading: Callable[[], object]) -> str:
    """The one line of the error, which has no context that could repeat a value; an empty string without an error."""
    error: ConfigError | None = None
    try:
        reading()
    except ConfigError as caught:
        error = caught
    if error is None:
        return ""
    assert error.__context__ is None
    assert len(str(error).splitlines()) == 1
    return str(error)


class AnyDocumentTests:
    """Files with any content."""

    @given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
    @example(b"x = " + b"[" * 10_000)
    @example(b"x = " + b"9" * 5000)
    @example(b"[storaged]\nput_slots = -0x" + b"f" * 5000)
    @example(b"[[policy]]\nprefix = ''\nmax_put = '" + b"9" * 5000 + b" B'")
    def test_any_bytes_are_sound_or_refused(self, folder: Path, content: bytes) -> None:
        """A file with any bytes is either accepted or refused with an error that names it."""
        for path, error in (("x", error_of(folder, content)), ("secrets", error_of_secrets(folder, content))):
            assert error == "" or error.startswith(f"{folder}/{path}.toml: ")

    @given(documents(scalars, st.sampled_from(KNOWN) | texts))
    def test_any_toml_is_sound_or_refused(self, folder: Path, values: dict[str, Any]) -> None:
        """Values of any type in any place are accepted, or refused with an error that names file and section."""
        content = document(values).encode("utf-8")
        error = error_of(folder, content)
        assert "is not TOML" not in error
        assert error == "" or re.match(rf"{folder}/x.toml: (\[|policy)", error)
        error = error_of_secrets(folder, content)
        assert error == "" or error.startswith(f"{folder}/secrets.toml: [")

    @given(
        documents(
            scalars | st.sampled_from([SECRET, f"key={SECRET}", f"http://{SECRET}"]), st.sampled_from([*KNOWN, SECRET])
        ),
        st.integers(0, 2000),
    )
    def test_a_secret_in_any_place_is_not_shown(self, folder: Path, values: dict[str, Any], cut: int) -> None:
        """The secret of an access key is in no error, wherever it was written, also if the rest is not TOML."""
        content = document(values).encode("utf-8")
        for wrong in (content, content[: cut % (len(content) + 1)], content.replace(b"=", b"==", 1)):
            assert SECRET not in error_of(folder, wrong)
            assert SECRET not in error_of_secrets(folder, wrong)

    @given(
        st.sampled_from([PASSWORD, 48151623, 4815.1623]).flatmap(
            lambda secret: st.tuples(
                st.just(str(secret)),
                st.sampled_from(SECTION_NAMES),
                st.sampled_from([*CREDENTIAL_KEYS, "secret", "password"]),
                shapes(st.just(secret), st.sampled_from(KNOWN)),
            )
        )
    )
    def test_a_value_of_a_credential_is_not_shown(self, folder: Path, place: tuple[str, str, str, Any]) -> None:
        """The value of a key for credentials, or of an unknown one, is in no error, whatever its shape."""
        secret, section, key, value = place
        for values in ({section: {key: value}}, {section: {"bucket": "b", key: value}}, {section: {"x": {key: value}}}):
            content = document(values).encode("utf-8")
            assert secret not in error_of(folder, content).replace(str(folder), "")
            assert secret not in error_of_secrets(folder, content).replace(str(folder), "")

    @given(shapes(st.just(PASSWORD), st.sampled_from(KNOWN)), st.sampled_from(KNOWN))
    def test_what_a_table_or_an_array_holds_is_not_shown(self, folder: Path, value: object, key: str) -> None:
        """What is in a table or an array instead of a value, or stands in the place of a section, is in no error."""
        values: dict[str, Any]
        for held in ([value], {"x": value}):
            for values in (
                {"storaged": {key: held}},
                {"s3": {key: held}},
                {"policy": [{key: held}]},
                {"buckets": {"x": {"kind": "local", key: held}}},
            ):
                assert PASSWORD not in error_of(folder, document(values).encode("utf-8"))
        for placed in (PASSWORD, [value]):
            for values in (
                {"storaged": placed},
                {"s3": placed},
                {"policy": PASSWORD},
                {"policy": [placed]},
                {"buckets": placed},
                {"buckets": {"x": placed}},
            ):
                assert PASSWORD not in error_of(folder, document(values).encode("utf-8"))

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "s3": shapes(SHORT_SECRETS, st.sampled_from([*KNOWN, PASSWORD, "48151623"])),
                "buckets": SHORT_SECRETS
                | st.dictionaries(texts, shapes(SHORT_SECRETS, st.sampled_from([*KNOWN, PASSWORD, "48151623"]))),
            },
        ),
        st.integers(0, 1000),
    )
    def test_nothing_of_the_secrets_file_is_shown(self, folder: Path, values: dict[str, Any], cut: int) -> None:
        """No value of the secrets file is in an error, nor a key that has a digit in it."""
        content = document(values).encode("utf-8")
        for wrong in (content, content[: cut % (len(content) + 1)], content.replace(b"=", b"==", 1)):
            error = error_of_secrets(folder, wrong).replace(str(folder), "")
            assert PASSWORD not in error
            assert "48151623" not in error


class EndpointDescriptionTests:
    """The Twisted endpoint description of `bind`."""

    @pytest.mark.parametrize(
        ("bind", "description"),
        [
            ("127.0.0.1:3211", "tcp:3211:interface=127.0.0.1"),
            ("localhost:80", "tcp:80:interface=localhost"),
            ("[::1]:3211", r"tcp6:3211:interface=\:\:1"),
            (":3211", "tcp:3211"),
            ("tcp:3211", "tcp:3211"),
            ("tcp:3211:interface=127.0.0.1", "tcp:3211:interface=127.0.0.1"),
            ("unix:/run/storaged.sock", "unix:/run/storaged.sock"),
            ("ssl:443:privateKey=k.pem:interface=127.0.0.1", "ssl:443:privateKey=k.pem:interface=127.0.0.1"),
        ],
    )
    def test_host_and_port_or_a_description(self, bind: str, description: str) -> None:
        """`host:port` becomes a description of an endpoint; a description is not changed."""
        assert endpoint_description(bind) == description


class IsLocalTests:
    """Which addresses other hosts cannot reach."""

    @pytest.mark.parametrize(
        "description",
        [
            "tcp:3211:interface=127.0.0.1",
            "tcp:1:127.0.0.1",
            "tcp:1:interface=127.8.9.1",
            "tcp:interface=localhost:port=1",
            r"tcp6:1:interface=\:\:1",
            "unix:/x",
            "unix:address=/x:mode=600",
            "ssl:1:privateKey=a:interface=127.0.0.1",
        ],
    )
    def test_loopback_and_unix_sockets(self, description: str) -> None:
        """Loopback addresses and unix sockets cannot be reached from elsewhere."""
        assert is_local(description)

    @pytest.mark.parametrize(
        "description",
        [
            "tcp:1",
            "tcp:1:interface=0.0.0.0",
            "tcp:1:interface=10.0.0.1",
            "tcp:1:interface=example.org",
            "tcp:1:interface=",
            "tcp:1:",
            "tcp6:1",
            "ssl:1:privateKey=127.0.0.1",
            r"ssl:1:interface=127.0.0.1:privateKey=a\\:interface=0.0.0.0",
            "systemd:domain=INET:index=0",
            "nonsense",
        ],
    )
    def test_all_else_might_be(self, description: str) -> None:
        """An address that other hosts can or may reach is not local."""
        assert not is_local(description)

    @given(
        st.lists(
            st.sampled_from(
                [
                    "interface",
                    "port",
                    "=",
                    ":",
                    "\\",
                    "1",
                    "127.0.0.1",
                    "0.0.0.0",
                    "localhost",
                    "\\:\\:1",
                    "backlog",
                    "",
                ]
            )
        ).map("".join),
        st.sampled_from(["tcp:", "tcp6:", "unix:"]),
    )
    @settings(max_examples=300)
    def test_twisted_reads_it_in_the_same_way(self, rest: str, kind: str) -> None:
        """For any description that is taken to be local, Twisted listens on a loopback address."""
        if not is_local(kind + rest):
            return
        reactor = MemoryReactor()
        try:
            serverFromString(reactor, kind + rest).listen(Factory())
        except (ValueError, TypeError, RuntimeError):  # the service reports that it cannot listen
            return
        for _, _, _, interface in reactor.tcpServers:
            assert interface in ("127.0.0.1", "localhost", "::1")


#: The first section of each kind in etc/storaged.toml.
ANNOTATED: Mapping[str, type[Struct]] = {
    "[storaged]": StoragedSection,
    "[s3]": S3Section,
    "[buckets.fast]": LocalSection,
    "[[policy]]": PolicySection,
}


def annotated_keys() -> Iterator[tuple[str, str, str]]:
    """Section, line and comment of each key in etc/storaged.toml, whether it is commented out or not."""
    section, comment = "", ""
    for line in (ROOT / "etc" / "storaged.toml").read_text("utf-8").splitlines():
        if line.startswith("# "):
            comment += line[1:]
        elif re.match(r"#?\[", line):
            section, comment = line.removeprefix("#"), ""
        else:
            if line:
                yield section, line, comment
            comment = ""


class ReferenceTests:
    """The explanations of keys for the operator are those of their definitions."""

    @pytest.mark.parametrize("section", ANNOTATED)
    def test_annotated_file(self, section: str) -> None:
        """etc/storaged.toml has each key, with its explanation, unit and default."""
        assert set(ANNOTATED.values()) == set(SECTIONS.values())
        found = [(line, comment) for name, line, comment in annotated_keys() if name == section]
        for key in describe(ANNOTATED[section]):
            line, comment = next(pair for pair in found if re.match(rf"#?{key.name} = ", pair[0]))
            assert comment.strip().startswith(key.explanation)
            assert key.unit in comment
            if key.has_default:
                assert line == f"#{key.name} = {key.default}"

    @pytest.mark.parametrize("section", ANNOTATED)
    def test_annotated_file_has_no_other_keys(self, section: str) -> None:
        """etc/storaged.toml has no key that does not exist, commented out or not."""
        names = {key.name for key in describe(ANNOTATED[section])}
        found = {line.lstrip("#").split(" = ")[0] for name, line, _ in annotated_keys() if name == section}
        assert found == names

    def test_table(self) -> None:
        """The table has a line for each key, with its values, unit, default and explanation."""
        lines = reference_table().splitlines()
        assert (
            f"| `reap_interval` | {Duration.expected} | seconds | `3600` | "
            "Time between two rounds of aborting the uploads that killed daemons left in the journal. |"
        ) in lines
        keys: list[Key] = [key for definition in SECTIONS.values() for key in describe(definition)]
        assert sum(line.startswith("| `") for line in lines) == len(keys)
        assert all(line.count("|") == 6 for line in lines if line.startswith("| `"))

    def test_command(self) -> None:
        """`python -m twisted_storaged.config` prints the table."""
        command = [sys.executable, "-m", "twisted_storaged.config"]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60).stdout
        assert printed.decode("utf-8") == reference_table()

    def test_documentation(self) -> None:
        """The configuration page of the documentation has the line of each key."""
        page = ROOT / "docs" / "configuration.md"
        if page.exists():
            lines = page.read_text("utf-8").splitlines()
            assert [
                line for line in reference_table().splitlines() if line.startswith("| `") and line not in lines
            ] == []

    @pytest.mark.parametrize("word", CAPABILITIES_BY_SETTING)
    def test_conditional_writes(self, tmp_path: Path, word: str) -> None:
        """`conditional_writes` takes each word that a bucket of S3 knows."""
        bucket = load(tmp_path, f'[s3]\nbucket = "b"\nconditional_writes = "{word}"').buckets["primary"]
        assert isinstance(bucket, S3Settings)
        assert bucket.conditional_writes == word

    @pytest.mark.parametrize(
        ("text", "settings"),
        [("", LocalSettings(Path("/home/me/.local/share/storaged"))), ('[s3]\nbucket = "b"', S3Settings("b"))],
    )
    def test_defaults_are_those_of_the_settings(self, tmp_path: Path, text: str, settings: object) -> None:
        """A key that is left out has the default that its definition names."""
        assert load(tmp_path, text).buckets["primary"] == settings
