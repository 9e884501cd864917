"""Reading TOML into typed settings, and the secrets file."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from twisted_storaged.config_file import (
    ConfigError,
    Credential,
    Credentials,
    Duration,
    FilePath,
    Key,
    NonNegative,
    Positive,
    Seconds,
    Section,
    Size,
    Text,
    describe,
    read_secrets,
    read_toml,
    shown_name,
    shown_value,
)

FILE = Path("x.toml")
SOME = Meta(description="Something.")

TIME = f"{Duration.expected} (seconds)"

#: A secret as engines generate them, which tests put in wrong places.
SECRET = "wJalrXUtnFEMI7MDENGbPxRfiCYEXAMPLEKEY"


class Everything(Struct, frozen=True, kw_only=True):
    """A section with a key of each type."""

    size: Annotated[Size | None, SOME, Meta(extra={"unit": "bytes", "unset": "none"})] = None
    number: Annotated[NonNegative, SOME] = 0
    count: Annotated[Positive, SOME] = 1
    wait: Annotated[Seconds, SOME] = Duration(60)
    flag: Annotated[bool, SOME] = False
    word: Annotated[Literal["auto", "none"], SOME] = "auto"
    flag_or_word: Annotated[Literal["auto"] | bool, SOME] = "auto"
    text: Annotated[Text | None, SOME, Meta(extra={"unset": "the host's"})] = None
    any_text: Annotated[str, SOME] = ""
    path: Annotated[FilePath, SOME] = "/"
    credential: Annotated[Credential | None, SOME, Meta(extra={"unset": "none"})] = None


class Needed(Struct, frozen=True, kw_only=True):
    """A section with a key that must be there, and one that need not."""

    bucket: Annotated[Text, Meta(description="Where it is.")]
    region: Annotated[Text, Meta(description="Where that is.")] = "here"


def read(key: str, written: object) -> Any:
    return getattr(Section({key: written}, FILE, "[x]").read(Everything), key)


class TypesTests:
    """What the value of a key may be."""

    @pytest.mark.parametrize(
        ("written", "size"),
        [
            ("256 MiB", 256 << 20),
            ("4 GiB", 4 << 30),
            ("4GiB", 4 << 30),
            ("1 TiB", 1 << 40),
            ("10 KiB", 10 << 10),
            ("7 B", 7),
            (0, 0),
            (123, 123),
        ],
    )
    def test_sizes(self, written: object, size: int) -> None:
        """A size is read with its unit, or in bytes."""
        assert read("size", written) == size

    @pytest.mark.parametrize(
        "written", ["256 MB", "256", "", "-1 MiB", "1.5 GiB", "MiB", "9" * 5000 + " B", -1, 1.5, True, [], {}]
    )
    def test_sizes_in_other_units_are_refused(self, written: object) -> None:
        """A unit that could mean two things is refused, as is a size without a unit in a string."""
        with pytest.raises(ConfigError, match=r"size is .*: expected a size such as \"256 MiB\" \(units: B, KiB,"):
            read("size", written)

    @given(
        st.integers(0, 1 << 30), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]), st.sampled_from(["", " ", "  "])
    )
    def test_units_are_powers_of_1024(self, number: int, unit: str, space: str) -> None:
        """A size with its unit is read as it is meant."""
        power = ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
        assert read("size", f"{number}{space}{unit}") == number * 1024**power

    @pytest.mark.parametrize(
        ("key", "written"),
        [
            ("number", 0),
            ("number", 7),
            ("count", 1),
            ("count", 10**30),
            ("flag", True),
            ("word", "none"),
            ("flag_or_word", "auto"),
            ("flag_or_word", False),
            ("text", "a"),
            ("any_text", ""),
            ("path", "/a b"),
            ("credential", "hunter2"),
        ],
    )
    def test_values_are_taken_as_they_are(self, key: str, written: object) -> None:
        """A value of the right type is not changed."""
        assert read(key, written) == written

    @pytest.mark.parametrize(
        ("key", "written", "error"),
        [
            ("number", -1, "is -1: expected a non-negative integer"),
            ("number", 1.5, "is 1.5: expected a non-negative integer"),
            ("number", 1.0, "is 1.0: expected a non-negative integer"),
            ("number", "1", "is '1': expected a non-negative integer"),
            ("number", True, "is true: expected a non-negative integer"),
            ("count", 0, "is 0: expected a positive integer"),
            ("count", "4", "is '4': expected a positive integer"),
            ("count", True, "is true: expected a positive integer"),
            ("count", -(1 << 10000), "is a large integer: expected a positive integer"),
            ("count", float("nan"), "is nan: expected a positive integer"),
            ("wait", 0, f"is 0: expected {TIME}"),
            ("wait", "0 s", f"is '0 s': expected {TIME}"),
            ("wait", "60 sec", f"is '60 sec': expected {TIME}"),
            ("wait", "1.5 h", f"is '1.5 h': expected {TIME}"),
            ("wait", "9" * 10 + " s", f"is '9999999999 s': expected {TIME}"),
            ("wait", True, f"is true: expected {TIME}"),
            ("flag", "true", "is 'true': expected true or false"),
            ("flag", 1, "is 1: expected true or false"),
            ("word", "", 'is \'\': expected "auto" or "none"'),
            ("word", "all", 'is \'all\': expected "auto" or "none"'),
            ("word", 1, 'is 1: expected "auto" or "none"'),
            ("word", ["auto"], 'is an array: expected "auto" or "none"'),
            ("flag_or_word", "no", "is 'no': expected \"auto\", true or false"),
            ("flag_or_word", 0, 'is 0: expected "auto", true or false'),
            ("text", "", "is '': expected a non-empty string"),
            ("text", 1, "is 1: expected a non-empty string"),
            ("text", {}, "is a table: expected a non-empty string"),
            ("text", datetime.date(2026, 1, 1), "is a date or time: expected a non-empty string"),
            ("any_text", 1, "is 1: expected a string"),
            ("path", "", "is '': expected a non-empty path"),
            ("path", "a\0b", r"is 'a\x00b': expected a non-empty path"),
        ],
    )
    def test_values_of_other_types_are_refused(self, key: str, written: object, error: str) -> None:
        """Nothing is converted; the error says what stood there and what was expected."""
        with pytest.raises(ConfigError) as caught:
            read(key, written)
        assert str(caught.value) == f"x.toml: [x] {key} {error}"

    @pytest.mark.parametrize("written", ["", 1, [], True])
    def test_credentials_are_strings(self, written: object) -> None:
        """A credential must be a non-empty string."""
        with pytest.raises(ConfigError, match="expected a non-empty string"):
            read("credential", written)


class SectionTests:
    """One table of a file."""

    def test_error_names_file_section_key_value_and_expectation(self) -> None:
        """An error about a value says all that is needed to correct it."""
        with pytest.raises(ConfigError) as caught:
            Section({"count": "four"}, FILE, "[storaged]").read(Everything)
        assert str(caught.value) == "x.toml: [storaged] count is 'four': expected a positive integer"

    def test_missing(self) -> None:
        """A missing key has its default, or is an error."""
        assert Section({"bucket": "b"}, FILE, "[s3]").read(Needed) == Needed(bucket="b", region="here")
        with pytest.raises(ConfigError, match=r"^x.toml: \[s3\] bucket is missing: expected a non-empty string$"):
            Section({}, FILE, "[s3]").read(Needed)

    def test_unknown_keys(self) -> None:
        """A misspelt key is an error that lists the known keys."""
        with pytest.raises(ConfigError) as caught:
            Section({"regoin": 4}, FILE, "[s3]").read(Needed)
        assert str(caught.value) == "x.toml: [s3] has an unknown key 'regoin': expected bucket or region"

    @given(st.permutations([("bukcet", "b"), ("region", 1)]))
    def test_misspelt_keys_are_reported_before_all_else(self, items: list[tuple[str, object]]) -> None:
        """A misspelt key is named as unknown, not as missing, and before a value of the wrong type."""
        with pytest.raises(ConfigError, match="unknown key 'bukcet'"):
            Section(dict(items), FILE, "[s3]").read(Needed)

    def test_settings_are_frozen(self) -> None:
        """Settings cannot be changed once they are read."""
        settings = Section({"bucket": "b"}, FILE, "[s3]").read(Needed)
        with pytest.raises(AttributeError):
            settings.bucket = "c"  # type: ignore[misc]

    def test_one_key_ahead_of_the_others(self) -> None:
        """A key that decides about the others can be read alone."""
        assert Section({"word": "none", "x": 1}, FILE, "[x]").read_key(Everything, "word") == "none"
        assert Section({"x": 1}, FILE, "[x]").read_key(Everything, "word") == "auto"

    def test_not_a_table(self) -> None:
        """A value in the place of a section is an error."""
        with pytest.raises(ConfigError, match=r"x.toml: \[storaged\] is 1: expected a table"):
            Section(1, FILE, "[storaged]")

    @pytest.mark.parametrize(
        ("key", "section"), [("a", "[b.a]"), ("a b", "[b.'a b']"), ("a\nb", r"[b.'a\nb']"), (SECRET, "[b.not shown]")]
    )
    def test_subsections(self, key: str, section: str) -> None:
        """Tables in a table are sections with names of their own, on one line of an error."""
        ((name, found),) = Section({key: {}}, FILE, "[b]").sections()
        assert (name, found.name) == (key, section)

    def test_a_value_of_the_wrong_type_is_not_the_context_of_the_error(self) -> None:
        """An error does not carry msgspec's, which repeats the value."""
        with pytest.raises(ConfigError) as caught:
            Section({"word": SECRET}, FILE, "[x]").read(Everything)
        assert caught.value.__context__ is None


class ShownValueTests:
    """Values in errors."""

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("s3.eu-central-1.example.org", "'s3.eu-central-1.example.org'"),
            ("https//s3.example.org:9000", "'https//s3.example.org:9000'"),
            ("a\nb", r"'a\nb'"),
            (12, "12"),
            (1.5, "1.5"),
            (True, "true"),
            ("anextraordinarilylongname", "'anextraordinarilylongname'"),
        ],
    )
    def test_shown(self, value: object, shown: str) -> None:
        """Strings, numbers and flags are repeated, on one line."""
        assert shown_value(value) == shown

    @pytest.mark.parametrize(
        "value",
        [
            SECRET,
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "0555b35654ad1656d804",
            "key = 0555b35654ad1656d804",
            "0123456789abcdef" * 4,
            "http://me:hunter2@s3.example",
            1234567890123456,
        ],
    )
    def test_not_shown(self, value: object) -> None:
        """What may be a credential, or have one in it, is not repeated."""
        assert shown_value(value) == "not shown"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (["hunter2"], "an array"),
            ({"hunter2": "hunter2"}, "a table"),
            (datetime.time(1), "a date or time"),
            (1 << 70, "a large integer"),
        ],
    )
    def test_types_only(self, value: object, shown: str) -> None:
        """Of a value that can hold others, only the type is told."""
        assert shown_value(value) == shown

    def test_strings_in_the_place_of_a_table(self) -> None:
        """A string can be asked to be kept back."""
        assert shown_value("hunter2", strings=False) == "a string"

    @given(st.text() | st.integers() | st.floats() | st.lists(st.text()) | st.dates() | st.binary())
    def test_one_line(self, value: object) -> None:
        """Whatever the value, it takes one line."""
        assert len(shown_value(value).splitlines()) == 1
        assert len(shown_name(str(value)).splitlines()) == 1


class DescribeTests:
    """The reference of keys."""

    def test_keys(self) -> None:
        """Each key is described by its values, unit, default and explanation."""
        assert describe(Needed) == [
            Key("bucket", "a non-empty string", "", "required", False, "Where it is."),
            Key("region", "a non-empty string", "", '"here"', True, "Where that is."),
        ]
        keys = {key.name: key for key in describe(Everything)}
        assert keys["wait"] == Key("wait", Duration.expected, "seconds", "60", True, "Something.")
        assert keys["text"] == Key("text", "a non-empty string", "", "the host's", False, "Something.")
        assert keys["flag"].default == "false"

    def test_explanations_are_needed(self) -> None:
        """A key without an explanation cannot be defined unnoticed."""

        class Unexplained(Struct):
            x: Text

        with pytest.raises(AssertionError, match="x has no description"):
            describe(Unexplained)


class ReadTomlTests:
    """A TOML file."""

    def test_missing_file(self, tmp_path: Path) -> None:
        """A file that does not exist is named."""
        with pytest.raises(ConfigError, match=r"no.toml: cannot be read: No such file"):
            read_toml(tmp_path / "no.toml")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"[storaged", "Expected ']' at the end of a table declaration (at line 1, column 10)"),
            (b"a = 1\nb = ", "Invalid value (at line 2, column 5)"),
            (b"a = 1\na = 2", "Cannot overwrite a value (at line 2, column 6)"),
            (b"\xff\xfe", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
            (b"a = " + b"9" * 5000, "Exceeds the limit (4300 digits) for integer string conversion"),
            (b"a = " + b"[" * 500, "TOML inline arrays/tables are nested more than the allowed"),
        ],
    )
    def test_no_toml(self, tmp_path: Path, content: bytes, problem: str) -> None:
        """An error says where a file is not TOML, and does not carry its text."""
        path = tmp_path / "bad.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_toml(path)
        assert str(caught.value).startswith(f"{path}: is not TOML: {problem}")
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("text", ["x = {KEY = 1, KEY = 2}", "[KEY]\n[KEY]", "[a.KEY]\nx = 1\n[a]\nKEY.y = 2"])
    def test_keys_that_may_be_credentials_are_not_shown(self, tmp_path: Path, text: str) -> None:
        """The messages of the parser that name a key are left out if the key looks like a credential."""
        path = tmp_path / "bad.toml"
        path.write_text(text.replace("KEY", SECRET))
        with pytest.raises(ConfigError, match=r"is not TOML: at line .*, column") as caught:
            read_toml(path)
        assert SECRET not in str(caught.value)


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
    """The secrets file."""

    def test_primary_and_named_buckets(self, path: Path) -> None:
        """Credentials are read by bucket; sections of other services are left alone."""
        path.write_text(GOOD)
        assert read_secrets(path) == {
            "primary": Credentials("AKIA1", "hunter2"),
            "archive": Credentials("AKIA2", "hunter3"),
        }

    def test_the_default_file_may_be_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a default file there are no credentials: they may come from elsewhere."""
        monkeypatch.setattr("twisted_storaged.config_file.DEFAULT_SECRETS", tmp_path / "no" / "no.toml")
        assert read_secrets(None) == {}

    def test_the_default_file_is_read(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a name, the file at the default path is used if it exists."""
        path.write_text(GOOD)
        monkeypatch.setattr("twisted_storaged.config_file.DEFAULT_SECRETS", path)
        assert set(read_secrets(None)) == {"primary", "archive"}

    @pytest.mark.parametrize("name", ["no.toml", "no/no.toml"])
    def test_a_named_file_must_exist(self, tmp_path: Path, name: str) -> None:
        """A path that was given and is not there is an error."""
        with pytest.raises(ConfigError, match=r"no.toml: does not exist"):
            read_secrets(tmp_path / name)

    @pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644])
    def test_readable_by_others_is_refused(self, path: Path, mode: int) -> None:
        """A secrets file that other users have access to is an error."""
        path.write_text(GOOD)
        path.chmod(mode)
        with pytest.raises(ConfigError, match=rf"secrets.toml: its mode is {mode:04o}: expected no access for others"):
            read_secrets(path)

    def test_readable_by_its_group_is_fine(self, path: Path) -> None:
        """A secrets file may be readable by a group: root:storaged 0640 is usual."""
        path.chmod(0o640)
        assert read_secrets(path) == {}

    def test_unreadable_is_refused(self, tmp_path: Path) -> None:
        """A secrets file that cannot be read is an error."""
        path = tmp_path / "folder.toml"
        path.mkdir(0o700)
        with pytest.raises(ConfigError, match=r"folder.toml: cannot be read: Is a directory"):
            read_secrets(path)

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ("[s3", "is not TOML: at line 1, column 4"),
            ("s3 = 1", r"\[s3\] is not shown: expected a table"),
            ("s3 = 'hunter2'", r"\[s3\] is not shown: expected a table"),
            ("[[s3]]\nsecret_access_key = 'hunter2'", r"\[s3\] is not shown: expected a table"),
            ("buckets = ['hunter2']", r"\[buckets\] is not shown: expected a table"),
            ("[buckets]\nx = 'hunter2'", r"\[buckets.x\] is not shown: expected a table"),
            ("[s3]\nsecret_access_key = {hunter2 = 'hunter2'}", r"\[s3\] secret_access_key is not shown"),
            ("[s3.secret_access_key]\nhunter2 = 1", r"\[s3\] secret_access_key is not shown"),
            ("[s3]\nhunter2 = 'a'", r"\[s3\] has an unknown key \(not shown\): expected access_key_id or secret_acc"),
            ("[s3]\nsecretAccessKey = 'hunter2'", r"\[s3\] has an unknown key 'secretAccessKey': expected access"),
            ("[s3]\nACCESS-KEY-ID = 'hunter2'", r"\[s3\] has an unknown key 'ACCESS-KEY-ID': expected access"),
            ("[s3]\nsecret_access_key = 'hunter2", r"is not TOML: at line 2, column 29"),
            ("[s3]\nx = {hunter2 = 1, hunter2 = 2}", r"is not TOML: at line 2, column"),
            ("[s3]", r"\[s3\] access_key_id is missing: expected a non-empty string"),
            ("[s3]\naccess_key_id = 'a'", r"\[s3\] secret_access_key is missing: expected it beside access_key_id"),
            ("[s3]\nsecret_access_key = 'hunter2'", r"\[s3\] access_key_id is missing: expected it beside secret"),
            ("[s3]\naccess_key = 'a'", r"\[s3\] has an unknown key 'access_key': expected access_key_id or secret_acc"),
            (
                "[s3]\naccess_key_id = 'a'\nsecret_access_key = 7",
                r"\[s3\] secret_access_key is not shown: expected a non-empty string",
            ),
            (
                "[s3]\naccess_key_id = ''\nsecret_access_key = 'hunter2'",
                r"\[s3\] access_key_id is not shown: expected a non-empty string",
            ),
            ("[buckets.x]\naccess_key_id = 'a'", r"\[buckets.x\] secret_access_key is missing"),
        ],
    )
    def test_malformed_is_refused(self, path: Path, content: str, error: str) -> None:
        """An error names the place in the secrets file, and shows no secret."""
        path.write_text(content)
        with pytest.raises(ConfigError, match=error) as caught:
            read_secrets(path)
        assert str(path) in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_secrets_are_not_in_reprs(self, path: Path) -> None:
        """Credentials do not show their secret in a repr(), which may end up in a log."""
        assert "hunter2" not in repr(Credentials("AKIA1", "hunter2"))
        path.write_text(GOOD)
        assert "AKIA" not in repr(read_secrets(path))
