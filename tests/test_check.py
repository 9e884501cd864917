"""`--check` and `--explain`."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import MemoryReactorClock

from tests.conftest import Engines
from twisted_storaged.admission import DEFAULT_RETRY_AFTER
from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.s3.session import S3Settings, Upkeep
from twisted_storaged.check import MASK, check, effective_config, explain
from twisted_storaged.config import BucketSettings, Config, Overrides, is_local, load_config
from twisted_storaged.config_file import CREDENTIAL
from twisted_storaged.errors import StartError
from twisted_storaged.routing import Policy, Rule

#: Text of keys, names and paths, with all that TOML must escape; no NUL, which a path cannot have.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
#: Texts that do not look like a credential, which would be masked.
HARMLESS = TEXTS.filter(lambda text: "@" not in text and not CREDENTIAL.search(text))
OPTIONAL = st.none() | HARMLESS
S3 = st.builds(
    S3Settings,
    bucket=HARMLESS,
    prefix=st.just("") | HARMLESS,
    endpoint=st.none() | st.just("https://s3.example.org"),
    region=OPTIONAL,
    use_path_style=st.none() | st.booleans(),
    conditional_writes=st.sampled_from(["auto", "all", "put_object", "none"]),
    get_resumes=st.integers(0, 9),
    verify_reads=st.none() | st.booleans(),
    lists_in_order=st.booleans(),
)
LOCAL = st.builds(LocalSettings, TEXTS.map(Path))
RULES = st.builds(
    Rule,
    prefix=st.just("") | TEXTS,
    max_put=st.integers(0, 1 << 50),
    bucket=st.just("primary"),
    slots=st.none() | st.integers(1, 3),
)


def config_of(buckets: dict[str, BucketSettings], *rules: Rule, endpoint: str = "tcp:1:interface=127.0.0.1") -> Config:
    allow_network = not is_local(endpoint)
    upkeep = Upkeep(Path("/state"))
    return Config(endpoint, 3, DEFAULT_RETRY_AFTER, Policy(rules), buckets, upkeep, allow_network=allow_network)


def loaded(path: Path, lines: list[str]) -> Config:
    """Load a configuration that was printed."""
    path.write_text("\n".join(lines), "utf-8")
    return load_config(Overrides(config=path), {}, {})


#: The time of the tests of certificates.
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def certificate(days: int) -> bytes:
    """A private key and a certificate in PEM that expires in so many days, and is valid for two years."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    end = NOW + timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = builder.not_valid_before(end - timedelta(days=730)).not_valid_after(end).sign(key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + made.public_bytes(Encoding.PEM)


class EffectiveConfigTests:
    """The effective configuration."""

    @given(st.dictionaries(TEXTS, S3 | LOCAL, max_size=3), S3 | LOCAL, st.lists(RULES, max_size=3), st.integers(1, 99))
    def test_can_be_loaded_again(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        others: dict[str, BucketSettings],
        primary: BucketSettings,
        rules: list[Rule],
        seconds: int,
    ) -> None:
        """What is printed makes the same configuration again."""
        upkeep = Upkeep(Path("/state"), seconds, seconds + 1, seconds + 2)
        config = replace(
            config_of({**others, "primary": primary}, *rules), upkeep=upkeep, drain=seconds + 3, retry_after=None
        )
        again = loaded(tmp_path_factory.getbasetemp() / "again.toml", list(effective_config(config)))
        assert again.policy.rules == config.policy.rules
        assert replace(again, policy=config.policy) == config

    def test_logs(self, tmp_path: Path) -> None:
        """The format of the log and the file for requests are printed."""
        config = replace(
            config_of({"primary": LocalSettings(Path("/d"))}), log_format="json", access_log=Path("/log/access.log")
        )
        again = loaded(tmp_path / "x.toml", list(effective_config(config)))
        assert (again.log_format, again.access_log) == ("json", Path("/log/access.log"))

    def test_an_endpoint_for_other_hosts(self, tmp_path: Path) -> None:
        """A configuration with `allow_network` is printed with it."""
        config = config_of({"primary": LocalSettings(Path("/d"))}, endpoint="tcp:1")
        assert loaded(tmp_path / "x.toml", list(effective_config(config))).endpoint == "tcp:1"

    def test_credentials_are_masked(self) -> None:
        """Neither half of the credentials is printed."""
        settings = S3Settings("b", access_key_id="AKIAHUNTER2", secret_access_key="hunter2")
        lines = "\n".join(effective_config(config_of({"primary": settings})))
        assert "HUNTER2" not in lines.upper()
        assert f'secret_access_key = "{MASK}"' in lines

    SECRET = "wJalrXUtnFEMI7MDENGbPxRfiCYEXAMPLEKEY"

    @pytest.mark.parametrize("field", ["bucket", "prefix", "region", "endpoint"])
    def test_misplaced_credentials_are_masked(self, field: str) -> None:
        """What looks like a credential is not printed, wherever an operator has put it."""
        placed = f"http://127.0.0.1:1/?token={self.SECRET}" if field == "endpoint" else self.SECRET
        changes: dict[str, Any] = {field: placed}
        settings = replace(S3Settings("b", endpoint="http://127.0.0.1:1"), **changes)
        settings = replace(settings, access_key_id="AKIAXX\r\n", secret_access_key="hush\r\nhush")
        config = replace(config_of({"primary": settings}), upkeep=Upkeep(Path("/state"), deadline=1))
        lines = [*check(config, MemoryReactorClock())[0], *explain(config, "k")]
        assert self.SECRET not in "\n".join(lines)
        assert "AKIAXX" not in "\n".join(lines)


class CheckTests:
    """What `--check` finds out."""

    @pytest.mark.parametrize("folder", ["", "new", "new/of a new"])
    def test_a_folder(self, tmp_path: Path, folder: str) -> None:
        """A folder that can be used, or created, is fine, and is not touched."""
        lines, is_well = check(config_of({"primary": LocalSettings(tmp_path / folder)}), MemoryReactorClock())
        assert (lines[-2:], is_well) == (["# endpoint: ok", "# bucket primary: ok"], True)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        """A file in the place of a folder, or of its parent, is reported."""
        (tmp_path / "file").touch()
        buckets: dict[str, BucketSettings] = {
            "primary": LocalSettings(tmp_path / "file"),
            "fast": LocalSettings(tmp_path / "file" / "x"),
        }
        lines, is_well = check(config_of(buckets), MemoryReactorClock())
        assert not is_well
        assert lines[-2:] == [
            f"# bucket primary: {tmp_path}/file is not a folder that can be read and written",
            f"# bucket fast: {tmp_path}/file/x does not exist, and cannot be created in {tmp_path}/file",
        ]

    @pytest.mark.parametrize("path", ["/proc/x/y", "/proc/self", "/sys/x"])
    def test_a_folder_in_which_nothing_can_be_created(self, path: str) -> None:
        """A folder is reported if no file can be created in it, whatever its permissions are."""
        lines, is_well = check(config_of({"primary": LocalSettings(Path(path))}), MemoryReactorClock())
        assert not is_well
        assert lines[-1].startswith(f"# bucket primary: {path} ")

    def test_a_link_to_nothing(self, tmp_path: Path) -> None:
        """A symbolic link to nothing, in the place of a folder, is reported."""
        (tmp_path / "link").symlink_to(tmp_path / "nothing")
        lines, is_well = check(config_of({"primary": LocalSettings(tmp_path / "link")}), MemoryReactorClock())
        assert not is_well
        assert lines[-1].endswith("/link is not a folder that can be read and written")

    @pytest.mark.parametrize(
        ("address", "problem"),
        [
            ("there.sock", ""),
            ("none/x.sock", "there is no folder {folder}/none"),
            ("file/x.sock", "there is no folder {folder}/file"),
            ("file", "{folder}/file exists and is not a socket"),
            ("x" * 108, "the path is longer than 107 bytes"),
            ("/proc/x.sock", "no file can be created in /proc"),
        ],
    )
    def test_a_unix_socket(self, tmp_path: Path, address: str, problem: str) -> None:
        """A unix socket that cannot be made is reported; one of a daemon that runs is fine."""
        (tmp_path / "file").touch()
        with socket.socket(socket.AF_UNIX) as there:
            there.bind(str(tmp_path / "there.sock"))
        before = sorted(tmp_path.iterdir())
        endpoint = f"unix:{tmp_path / address}"
        lines, is_well = check(config_of({"primary": LocalSettings(tmp_path)}, endpoint=endpoint), MemoryReactorClock())
        expected = f"cannot listen on {endpoint}: {problem.format(folder=tmp_path)}" if problem else "ok"
        assert (lines[-2], is_well) == (f"# endpoint: {expected}", not problem)
        assert sorted(tmp_path.iterdir()) == before

    def test_a_unix_socket_without_a_file(self, tmp_path: Path) -> None:
        """A name in the abstract namespace is in no folder."""
        config = config_of({"primary": LocalSettings(tmp_path)}, endpoint="unix:\0none/x")
        assert check(config, MemoryReactorClock())[1]

    def test_a_file_that_is_no_certificate(self, tmp_path: Path) -> None:
        """A certificate that cannot be loaded is reported."""
        bad = tmp_path / "bad.pem"
        bad.write_text("not a pem")
        config = config_of({"primary": LocalSettings(tmp_path)}, endpoint=f"ssl:1:privateKey={bad}:certKey={bad}")
        lines, is_well = check(config, MemoryReactorClock())
        assert not is_well
        assert any(line.startswith("# endpoint: cannot listen on ssl:1") for line in lines)

    @pytest.mark.parametrize(
        ("days", "endpoint", "warnings"),
        [
            (100, "ok", []),
            (14, "ok", []),
            (13, "ok", ["the certificate in {path} expires on 2026-01-14 00:00 UTC"]),
            (-1, "the certificate in {path} has expired on 2025-12-31 00:00 UTC", []),
            (1000, "the certificate in {path} is not valid before 2026-09-28 00:00 UTC", []),
        ],
    )
    @pytest.mark.parametrize("kind", ["certKey", "privateKey", "extraCertChain"])
    def test_the_time_of_a_certificate(
        self, tmp_path: Path, days: int, endpoint: str, warnings: list[str], kind: str
    ) -> None:
        """A certificate that has expired, or is not valid yet, is reported; one that expires soon is a warning."""
        sound, path = tmp_path / "sound.pem", tmp_path / "a.pem"
        sound.write_bytes(certificate(100))
        path.write_bytes(certificate(days))
        files = {
            "certKey": f"privateKey={path}:certKey={path}",
            "privateKey": f"{path}",
            "extraCertChain": f"{sound}:extraCertChain={path}",
        }
        config = config_of({"primary": LocalSettings(tmp_path)}, endpoint=f"ssl:1:{files[kind]}")
        lines, is_well = check(config, MemoryReactorClock(), NOW.timestamp)
        found = [line for line in lines if line.startswith("# ")]
        expected = [f"# warning: {warning}" for warning in warnings] + [
            f"# endpoint: {endpoint}",
            "# bucket primary: ok",
        ]
        assert found == [line.format(path=path) for line in expected]
        assert is_well == (endpoint == "ok")

    def test_characters_that_mislead(self, tmp_path: Path) -> None:
        """Control characters, and those that change the direction of text, are printed escaped."""
        path = tmp_path / "a\u202e\x1b[2J\x9b\U000e0041b"
        config = config_of({"primary": LocalSettings(path / "file" / "x")})
        path.mkdir()
        (path / "file").touch()
        lines, is_well = check(config, MemoryReactorClock())
        assert not is_well
        assert all(map(str.isprintable, lines))
        assert lines[-1].startswith(rf"# bucket primary: {tmp_path}/a\u202e\u001b[2J\u009b\U000e0041b/file/x does not")

    def test_s3(self, all_engines: Engines) -> None:
        """A bucket in S3 is fine if it can be listed, and reported if there is none."""
        engine = all_engines.get("moto")
        bucket = engine.new_bucket()
        settings = engine.settings(bucket)
        buckets: dict[str, BucketSettings] = {"primary": settings, "none": replace(settings, bucket="none-of-these")}
        lines, is_well = check(config_of(buckets), MemoryReactorClock())
        assert not is_well
        assert lines[-2] == "# bucket primary: ok"
        assert lines[-1].startswith("# bucket none: ")
        assert "NoSuchBucket" in lines[-1]

    def test_s3_that_is_not_there(self) -> None:
        """An endpoint that refuses connections is reported."""
        settings = S3Settings("b", endpoint="http://127.0.0.1:1", access_key_id="a", secret_access_key="b")
        lines, is_well = check(config_of({"primary": settings}), MemoryReactorClock())
        assert not is_well
        assert lines[-1].startswith('# bucket primary: Could not connect to the endpoint URL: "http://127.0.0.1:1/')


class AccessLogTests:
    """A file for requests."""

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("access.log", ""),
            ("new.log", ""),
            ("folder", "{path} cannot be read and written"),
            ("none/access.log", "{path} does not exist, and cannot be created"),
        ],
    )
    def test_can_be_written(self, tmp_path: Path, name: str, problem: str) -> None:
        """It can be written, or created, which is not done."""
        (tmp_path / "folder").mkdir()
        (tmp_path / "access.log").touch()
        before = sorted(tmp_path.iterdir())
        config = replace(config_of({"primary": LocalSettings(tmp_path / "data")}), access_log=tmp_path / name)
        lines, is_well = check(config, MemoryReactorClock())
        expected = problem.format(path=tmp_path / name) or "ok"
        assert f"# access log: {expected}" in lines
        assert is_well == (not problem)
        assert sorted(tmp_path.iterdir()) == before


class ExplainTests:
    """What `--explain` says of a key."""

    def test_a_key(self) -> None:
        """The rule of the longest prefix decides on limit, put slots and bucket; what it hides is named."""
        buckets: dict[str, BucketSettings] = {
            "primary": LocalSettings(Path("/d")),
            "archive": S3Settings("lake", prefix="cold/", endpoint="https://s3.example.org"),
        }
        config = config_of(buckets, Rule("a/", 10, slots=2), Rule("a/b/", 3 << 20, "archive"))
        assert explain(config, "a/b/c") == [
            "key: a/b/c",
            "rule: the one for the prefix 'a/b/', the longest prefix of the key that has a rule; shorter prefixes of "
            "it with rules: 'a/', ''",
            "largest body of a PUT: 3 MiB (3145728 bytes)",
            "put slots: all 3",
            "bucket: archive, in S3: 'lake' at https://s3.example.org, with the key 'cold/a/b/c'",
        ]
        assert explain(config, "a/x")[2:] == [
            "largest body of a PUT: 10 B (10 bytes)",
            "put slots: 2 of the 3",
            "bucket: primary, a folder: /d",
        ]

    def test_characters_that_mislead(self) -> None:
        """Characters of a key that change the direction of text are printed escaped."""
        lines = explain(config_of({"primary": LocalSettings(Path("/d\u2066"))}), "a\u202eb")
        assert lines[0] == r"key: a\u202eb"
        assert lines[-1] == r"bucket: primary, a folder: /d\u2066"

    @pytest.mark.parametrize("key", ["/a", "a/../b", "a\nb", "x" * 1025, "\udcff"])
    def test_what_is_no_key(self, key: str) -> None:
        """A key that storaged would refuse is an error that says why."""
        with pytest.raises(StartError, match="is not a valid key: key "):
            explain(config_of({"primary": LocalSettings(Path("/d"))}), key)
