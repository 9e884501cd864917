"""Reading TOML, and saying what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.tables import (
    ANY_TEXT,
    COUNT,
    FLAG,
    NUMBER,
    SIZE,
    TEXT,
    ConfigError,
    Kind,
    Table,
    one_of,
    read_toml,
)

FILE = Path("x.toml")


class KindsTests:
    """What values may be."""

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
        """With a unit, or in bytes."""
        assert SIZE.read(written) == size

    def test_numbers(self) -> None:
        """From 0 on."""
        assert [NUMBER.read(written) for written in (0, 7)] == [0, 7]
        for written in (-1, 1.5, "1", True):
            with pytest.raises(ValueError, match=r"^$"):
                NUMBER.read(written)

    def test_words(self) -> None:
        """One of a few."""
        kind = one_of("auto", "none")
        assert kind.read("auto") == "auto"
        assert kind.expected == '"auto" or "none"'
        for written in ("", "all", 1):
            with pytest.raises(ValueError, match=r"^$"):
                kind.read(written)

    @pytest.mark.parametrize("written", ["256 MB", "256", "", "-1 MiB", "1.5 GiB", "MiB", -1, 1.5, True, [], None])
    def test_no_sizes(self, written: object) -> None:
        """A unit that could mean two things is none."""
        with pytest.raises(ValueError, match=r"^$"):
            SIZE.read(written)

    @pytest.mark.parametrize(
        ("kind", "value"),
        [(TEXT, ""), (TEXT, 1), (ANY_TEXT, 1), (FLAG, "true"), (FLAG, 1), (COUNT, 0), (COUNT, "4"), (COUNT, True)],
    )
    def test_wrong_types(self, kind: Kind[object], value: object) -> None:
        """Nothing is converted."""
        with pytest.raises(ValueError, match=r"^$"):
            kind.read(value)

    @given(
        st.integers(0, 1 << 30), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]), st.sampled_from(["", " ", "  "])
    )
    def test_a_size_with_its_unit_is_read_as_it_is_meant(self, number: int, unit: str, space: str) -> None:
        """Powers of 1024."""
        power = ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
        assert SIZE.read(f"{number}{space}{unit}") == number * 1024**power


class TableTests:
    """A section."""

    def test_error_names_file_section_key_value_and_expectation(self) -> None:
        """All that is needed to mend it."""
        table = Table({"put_slots": "four"}, FILE, "[storaged]")
        with pytest.raises(ConfigError) as caught:
            table.take("put_slots", COUNT)
        assert str(caught.value) == "x.toml: [storaged] put_slots is 'four': expected a whole number of at least 1"

    def test_a_secret_is_not_shown(self) -> None:
        """Not even a wrong one."""
        table = Table({"secret_access_key": ["hunter2"]}, FILE, "[s3]")
        with pytest.raises(ConfigError) as caught:
            table.take("secret_access_key", TEXT)
        assert "hunter2" not in str(caught.value)

    def test_missing(self) -> None:
        """What must be there, and what need not."""
        table = Table({}, FILE, "[s3]")
        assert table.take("region", TEXT) is None
        assert table.take("region", TEXT, "here") == "here"
        with pytest.raises(ConfigError, match=r"x.toml: \[s3\] bucket is missing: expected a text"):
            table.need("bucket", TEXT)

    def test_unknown_keys(self) -> None:
        """A typing error is not an option that was left out."""
        table = Table({"put_slot": 4}, FILE, "[storaged]")
        with pytest.raises(ConfigError, match=r"x.toml: \[storaged\] has an unknown key 'put_slot'"):
            table.done()

    def test_not_a_table(self) -> None:
        """`storaged = 1`."""
        with pytest.raises(ConfigError, match=r"x.toml: \[storaged\] is 1: expected a table"):
            Table(1, FILE, "[storaged]")


class ReadTomlTests:
    """A file."""

    def test_missing_file(self, tmp_path: Path) -> None:
        """Is named."""
        with pytest.raises(ConfigError, match=r"no.toml: cannot be read: No such file"):
            read_toml(tmp_path / "no.toml")

    @pytest.mark.parametrize("content", [b"[storaged", b"\xff\xfe", b"a = 1\na = 2"])
    def test_no_toml(self, tmp_path: Path, content: bytes) -> None:
        """Says where."""
        path = tmp_path / "bad.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad.toml: is not TOML: "):
            read_toml(path)
