"""Faults between the daemon and real engines: each request ends correctly and in time, and leaves no upload behind."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Engines
from tests.daemon import Daemon
from tests.engines.scripted import ERROR, Answer, scripted
from tests.faultproxy import FaultProxy, fault_proxy
from tests.integration.test_daemon import ask, head, wait_for

MiB = 1 << 20
DATA = Random(1).randbytes(24 * MiB)
#: A body of four parts.
PARTS = DATA[: 18 * MiB]
#: Time limit of a request to S3, in seconds.
DEADLINE = 2
SMALL, IN_THREAD, MULTIPART = DATA[:5], DATA[:MiB], DATA[: 12 * MiB]

#: Errors of a client whose response breaks off.
BROKEN = (http.client.IncompleteRead, ConnectionResetError)

Made = Callable[..., "Behind"]


class Behind:
    """A daemon on a new bucket of an engine, with a proxy in between, and direct access to the engine."""

    def __init__(
        self, proxy: FaultProxy, folder: Path, s3: str = "", deadline: int = 60, reap_interval: int = 3600
    ) -> None:
        """Start the daemon, with these settings of [s3] and of [storaged]."""
        self.proxy = proxy
        self.s3: Any = proxy.direct.client()
        self.bucket = proxy.direct.new_bucket()
        storaged = (
            f'[storaged]\nstate = "{folder / "state"}"\ns3_deadline = {deadline}\nreap_interval = {reap_interval}\n'
            "abandoned_after = 1\n"
        )
        self.daemon = Daemon(folder, config=f"{proxy.engine.toml(self.bucket)}{s3}\n{storaged}")
        self.daemon.start()

    def store(self, key: str, data: bytes) -> None:
        """Store an object directly on the engine."""
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)

    def stored(self, key: str) -> bytes:
        """The bytes of an object, read directly from the engine."""
        content: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def uploads(self) -> set[str]:
        """The ids of the multipart uploads that are open."""
        found = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return {upload["UploadId"] for upload in found}

    def journal(self) -> list[Path]:
        """The files of the journal, of this run and of earlier ones."""
        return [path for path in (self.daemon.folder / "state" / "uploads").rglob("*") if path.is_file()]

    def metric(self, name: str, operation: str | None = None, outcome: str | None = None) -> float:
        """The value of a metric of the bucket; 0 if there is none."""
        wanted = {"bucket": "primary", "operation": operation, "outcome": outcome}
        wanted = {label: value for label, value in wanted.items() if value is not None}
        families = text_string_to_metric_families(ask(self.daemon, "GET", "/metrics")[1].decode())
        samples = (sample for family in families for sample in family.samples)
        return next((one.value for one in samples if one.name == f"storaged_s3_{name}" and one.labels == wanted), 0.0)

    def put(self, key: str, data: bytes) -> tuple[int, bytes]:
        return ask(self.daemon, "PUT", f"/storage/put/{key}", data)

    def get(self, key: str) -> tuple[int, bytes]:
        return ask(self.daemon, "GET", f"/storage/get/{key}")


@pytest.fixture(params=["moto", "ceph"])
def made(request: pytest.FixtureRequest, all_engines: Engines, tmp_path: Path) -> Iterator[Made]:
    """A function that starts a daemon with the given settings."""
    with fault_proxy(all_engines.get(request.param)) as proxy:
        started = []

        def make(s3: str = "", **storaged: int) -> Behind:
            started.append(Behind(proxy, tmp_path, s3, **storaged))
            return started[-1]

        yield make
        for behind in started:
            behind.daemon.kill()


class TruncatedTests:
    """GETs for which S3 breaks off its response."""

    def test_it_goes_on_where_it_was(self, made: Made) -> None:
        """A GET that S3 breaks off, at whichever tenth, is resumed: the client gets all bytes in one response."""
        behind = made()
        behind.store("k", DATA)
        for tenth in range(10):
            behind.proxy.cut(b"/k ", len(DATA) * tenth // 10)
            assert behind.get("k") == (200, DATA)
        assert behind.daemon.log.count("broke off at byte") == 9  # the first cut is before any byte

    @pytest.mark.parametrize(("resumes", "cuts"), [(0, 1), (3, 4)])
    def test_it_never_looks_whole(self, made: Made, resumes: int, cuts: int) -> None:
        """A GET that cannot be resumed breaks off for the client too."""
        behind = made(f"get_resumes = {resumes}")
        behind.store("k", DATA)
        behind.proxy.cut(b"/k ", 5 * MiB, cuts)
        with pytest.raises(BROKEN):
            behind.get("k")
        assert behind.get("k") == (200, DATA)

    def test_another_object_is_not_mixed_in(self, made: Made) -> None:
        """A GET that S3 breaks off is not resumed with the bytes of an object that replaced the old one."""
        behind = made()
        behind.store("k", DATA)
        behind.proxy.cut(b"/k ", 5 * MiB)
        with behind.daemon.connect() as client:
            client.sendall(b"GET /storage/get/k HTTP/1.1\r\nHost: x\r\n\r\n")
            received = len(client.recv(1000))
            behind.store("k", DATA[::-1])
            with suppress(ConnectionResetError):
                while data := client.recv(MiB):
                    received += len(data)
        assert received < len(DATA)


class FlippedTests:
    """GETs during which a byte changes between S3 and the daemon."""

    @pytest.mark.parametrize("size", [3 * MiB, 18 * MiB])
    def test_it_never_looks_whole(self, made: Made, size: int) -> None:
        """A GET with a wrong byte breaks off before its last byte, and the log names the object and the checksum."""
        behind = made("verify_reads = true")
        assert behind.put("k", DATA[:size])[0] == 200
        behind.proxy.flip(b"/k ", 2 * MiB)
        with pytest.raises(BROKEN):
            behind.get("k")
        assert "'k' (" in behind.daemon.log
        assert ") is damaged: its " in behind.daemon.log
        assert behind.get("k") == (200, DATA[:size])

    def test_what_is_never_verified(self, made: Made) -> None:
        """A wrong byte is served in a range, and if `verify_reads` is false, as the documentation says."""
        for settings, headers, expected in (("", {"Range": "bytes=1-"}, 206), ("verify_reads = false", {}, 200)):
            behind = made(settings)
            assert behind.put("k", DATA[: 3 * MiB])[0] == 200
            behind.proxy.flip(b"/k ", 2 * MiB)
            connection = http.client.HTTPConnection("127.0.0.1", behind.daemon.port)
            connection.request("GET", "/storage/get/k", headers=headers)
            response = connection.getresponse()
            assert (response.status, len(response.read())) == (expected, 3 * MiB - (expected == 206))
            connection.close()
            behind.daemon.kill()


class HungTests:
    """An S3 that accepts requests and answers none."""

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", "put/new", SMALL),
            ("PUT", "put/new", IN_THREAD),
            ("PUT", "put/new", MULTIPART),
            ("GET", "get/k", None),
            ("GET", "list", None),
            ("DELETE", "delete/k", None),
        ],
        ids=["put", "put-in-thread", "put-multipart", "get", "list", "delete"],
    )
    def test_ends_in_time(self, made: Made, method: str, path: str, body: bytes | None) -> None:
        """Requests to an S3 that hangs are 504 in time, and succeed as soon as it is back."""
        behind = made(deadline=DEADLINE)
        behind.store("k", b"old")
        behind.proxy.hang()
        began = time.monotonic()
        assert ask(behind.daemon, method, f"/storage/{path}", body) == (504, b"bucket timed out\n")
        assert DEADLINE * 0.9 < time.monotonic() - began < DEADLINE * 3
        behind.proxy.heal()
        assert behind.put("k", MULTIPART)[0] == 200
        assert behind.get("k") == (200, MULTIPART)

    def test_hung_puts_stop_nobody_else(self, made: Made) -> None:
        """PUTs that hang in all slots do not delay GETs, lists, DELETEs and /health; in the end they free the slots."""
        behind = made(deadline=DEADLINE)
        behind.store("k", MULTIPART)
        behind.proxy.hang(b"PUT ", b"POST ")
        bodies = [SMALL, IN_THREAD, MULTIPART, MULTIPART]
        with ThreadPoolExecutor(4) as clients:
            puts = [clients.submit(behind.put, f"new/{number}", body) for number, body in enumerate(bodies)]
            wait_for(lambda: behind.proxy.count(b"/new/") >= 4)
            began = time.monotonic()
            assert behind.put("fifth", b"x")[0] == 503
            assert behind.get("k") == (200, MULTIPART)
            assert ask(behind.daemon, "GET", "/storage/list")[0] == 200
            assert ask(behind.daemon, "GET", "/health")[0] == 200
            assert ask(behind.daemon, "DELETE", "/storage/delete/nothing")[0] == 204
            assert time.monotonic() - began < DEADLINE
            assert [put.result()[0] for put in puts] == [504] * 4
        behind.proxy.heal()
        with ThreadPoolExecutor(4) as clients:
            puts = [clients.submit(behind.put, f"{number}", MULTIPART) for number in range(4)]
            assert [put.result()[0] for put in puts] == [200] * 4

    @pytest.mark.parametrize("made", ["ceph"], indirect=True)  # moto does not report when an upload was created
    def test_an_upload_that_is_begun_late_is_not_left(self, made: Made) -> None:
        """An upload that S3 begins after the PUT has timed out is aborted, though its id was never received."""
        behind = made(deadline=DEADLINE, reap_interval=1)
        behind.proxy.hang(b"POST ")
        assert behind.put("k", MULTIPART)[0] == 504
        wait_for(lambda: behind.proxy.count(b"prefix=k&uploads=") >= 2)
        behind.proxy.heal()
        wait_for(lambda: behind.proxy.count(b"DELETE ") == behind.proxy.count(b"POST ") and not behind.uploads())

    @pytest.mark.parametrize("made", ["ceph"], indirect=True)
    def test_finding_out_what_it_can(self, made: Made) -> None:
        """A conditional write that must first probe a hung S3 ends in time, and does not wait for a removal."""
        behind = made(deadline=DEADLINE)
        behind.proxy.hang()
        with behind.daemon.connect() as client:
            client.sendall(b"PUT /storage/put/k HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\nContent-Length: 1\r\n\r\nx")
            began = time.monotonic()
            assert client.recv(1000).startswith(b"HTTP/1.1 504 ")
            assert time.monotonic() - began < DEADLINE * 4

    def test_parts_that_hang_leave_no_upload(self, made: Made) -> None:
        """The upload of a PUT whose parts hang is aborted when S3 is back, and the old object stays."""
        behind = made(deadline=DEADLINE, reap_interval=1)
        behind.store("k", b"old")
        behind.proxy.hang(b"PUT ")
        assert behind.put("k", MULTIPART)[0] == 504
        behind.proxy.heal()
        wait_for(lambda: not behind.uploads())
        assert behind.stored("k") == b"old"

    def test_sigterm(self, made: Made) -> None:
        """SIGTERM ends the daemon within seconds while it aborts uploads on an S3 that hangs."""
        behind = made(deadline=DEADLINE, reap_interval=1)
        behind.proxy.hang(b"PUT ")
        assert behind.put("k", MULTIPART)[0] == 504
        behind.proxy.hang()
        asked = behind.proxy.count(b"DELETE")
        wait_for(lambda: behind.proxy.count(b"DELETE") > asked)
        began = time.monotonic()
        assert behind.daemon.stop() == 0
        assert time.monotonic() - began < 15


class BrokenTests:
    """Connections to S3 that break, and can soon be made again."""

    def test_parts_are_sent_again_from_memory(self, made: Made) -> None:
        """Parts whose connections are reset are sent again from memory: the client sends its body once."""
        behind = made()
        with ThreadPoolExecutor(1) as clients:
            put = clients.submit(behind.put, "k", PARTS)
            wait_for(lambda: behind.proxy.count(b"partNumber=") > 0)
            behind.proxy.refuse()
            behind.proxy.reset()
            time.sleep(0.2)
            behind.proxy.come_back()
            assert put.result()[0] == 200
        assert behind.stored("k") == PARTS
        assert behind.uploads() == set()

    @pytest.mark.parametrize(
        ("request_line", "body"),
        [
            (b"PUT ", SMALL),
            (b"PUT ", IN_THREAD),
            (b"partNumber=1&", MULTIPART),
            (b"POST /{}/k?uploadId=", MULTIPART),
        ],
        ids=["put", "put-in-thread", "part", "complete"],
    )
    def test_a_lost_reply_makes_no_second_version(self, made: Made, request_line: bytes, body: bytes) -> None:
        """A write whose response is lost is found to have taken place, and is not repeated; no upload is left."""
        behind = made(reap_interval=1)
        versioning = {"Status": "Enabled"}
        behind.s3.put_bucket_versioning(Bucket=behind.bucket, VersioningConfiguration=versioning)
        behind.proxy.cut(request_line.replace(b"{}", behind.bucket.encode()))
        assert behind.put("k", body)[0] == 200
        assert behind.stored("k") == body
        assert len(behind.s3.list_object_versions(Bucket=behind.bucket, Prefix="k")["Versions"]) == 1
        wait_for(lambda: not behind.uploads())

    @pytest.mark.parametrize("made", ["ceph"], indirect=True)
    def test_a_lost_id_leaves_no_upload(self, made: Made) -> None:
        """An upload whose id is lost with the response is found and aborted; the PUT succeeds with another one."""
        behind = made(reap_interval=1)
        behind.proxy.cut(b"POST ")
        assert behind.put("k", MULTIPART)[0] == 200
        assert behind.stored("k") == MULTIPART
        wait_for(lambda: not behind.uploads())


class KillTests:
    """A daemon that is killed with SIGKILL in the middle of a PUT."""

    def test_the_next_start_aborts_what_was_begun(self, made: Made) -> None:
        """The next start aborts the uploads in the journal, and no others, and then removes the entries."""
        behind = made()
        behind.store("k", b"old")
        others = {
            behind.s3.create_multipart_upload(Bucket=behind.bucket, Key=key)["UploadId"] for key in ("k", "another")
        }
        with behind.daemon.connect() as client:
            client.sendall(head("k", len(DATA)) + MULTIPART)
            wait_for(lambda: len(behind.uploads()) == 3 and behind.proxy.count(b"partNumber=2&") > 0)
            behind.daemon.kill()
        behind.daemon.start()
        wait_for(lambda: behind.uploads() == others)
        wait_for(lambda: [path.name for path in behind.journal()].count("lock") == len(behind.journal()))
        assert behind.stored("k") == b"old"
        assert behind.daemon.stop() == 0
        behind.daemon.start()
        wait_for(lambda: len(behind.journal()) == 1)
        assert behind.daemon.stop() == 0
        assert behind.journal() == []

    @pytest.mark.parametrize("made", ["ceph"], indirect=True)
    def test_while_it_finds_out_what_s3_can(self, made: Made) -> None:
        """The uploads that probe conditional writes are in the journal too, and are aborted after a kill."""
        behind = made()
        behind.proxy.hang(b"partNumber=")
        with behind.daemon.connect() as client:
            client.sendall(b"PUT /storage/put/k HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\nContent-Length: 1\r\n\r\nx")
            wait_for(lambda: behind.proxy.count(b"partNumber=1&") > 0)
            behind.daemon.kill()
        assert len(behind.uploads()) == 1
        behind.daemon.start()
        wait_for(lambda: not behind.uploads())

    @pytest.mark.parametrize("made", ["ceph"], indirect=True)
    def test_an_upload_of_the_same_key_is_let_be(self, made: Made) -> None:
        """The search for an upload whose id was lost does not abort new uploads of the same key."""
        behind = made(reap_interval=1)
        behind.proxy.hang(b"POST ")
        with behind.daemon.connect() as client:
            client.sendall(head("k", len(MULTIPART)) + MULTIPART)
            wait_for(lambda: behind.proxy.count(b"POST ") > 0)
            behind.daemon.kill()
        behind.proxy.heal()
        behind.daemon.start()
        assert [behind.put("k", MULTIPART)[0] for _ in range(8)] == [200] * 8
        assert behind.stored("k") == MULTIPART
        wait_for(lambda: not behind.uploads())

    @pytest.mark.parametrize("kill", [True, False])
    def test_nothing_is_left_of_what_it_tries(self, made: Made, kill: bool) -> None:
        """A probe of conditional writes leaves no version, also if it is killed, in a bucket with versioning."""
        behind = made(reap_interval=1)
        behind.s3.put_bucket_versioning(Bucket=behind.bucket, VersioningConfiguration={"Status": "Enabled"})
        with behind.daemon.connect() as client:
            client.sendall(b"PUT /storage/put/k HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\nContent-Length: 1\r\n\r\nx")
            if kill:
                wait_for(lambda: behind.proxy.count(b"PUT ") > 10)
                behind.daemon.kill()
            else:
                # Ceph does not check conditions in a bucket with versioning.
                assert client.recv(1000).startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 501 "))

        def left() -> set[str]:
            found = behind.s3.list_object_versions(Bucket=behind.bucket)
            versions = found.get("Versions", []) + found.get("DeleteMarkers", [])
            return {version["Key"] for version in versions if version["Key"] != "k"}

        if kill:
            assert len(left()) == 1
            behind.daemon.start()
        wait_for(lambda: not left() and not behind.uploads())


class MetricsTests:
    """What /metrics shows of an S3 that fails."""

    def test_reads(self, made: Made) -> None:
        """A read that is resumed, one that is repeated, and one that fails while S3 is away are told apart."""
        behind = made()
        behind.store("k", DATA)
        behind.proxy.cut(b"/k ", 5 * MiB)
        assert behind.get("k") == (200, DATA)
        assert behind.metric("resumes_total") == 1
        assert behind.metric("requests_total", "GetObject", "ok") == 2
        # Twice, as a connection that was used before is replaced without counting.
        behind.proxy.cut(b"/k ", times=2)
        assert behind.get("k") == (200, DATA)
        assert behind.metric("retries_total", "GetObject", "unreachable") in (1, 2)
        behind.proxy.refuse()
        behind.proxy.reset()
        assert behind.get("k")[0] == 502
        assert behind.metric("requests_total", "GetObject", "unreachable") == 1
        assert behind.metric("requests_total", "GetObject", "ok") == 3
        wait_for(lambda: behind.metric("connections") == 0)

    def test_uploads(self, made: Made) -> None:
        """Parts that hang are in flight; when time is up, the upload is left to the reaper, which aborts it later."""
        behind = made(deadline=DEADLINE, reap_interval=1)
        behind.proxy.hang(b"PUT ")
        with ThreadPoolExecutor(1) as clients:
            put = clients.submit(behind.put, "k", MULTIPART)
            wait_for(lambda: behind.metric("parts_in_flight") == 3)
            assert behind.metric("connections") - behind.metric("connections_idle") == 3
            assert put.result()[0] == 504
        assert behind.metric("parts_in_flight") == 0
        assert behind.metric("requests_total", "UploadPart", "timed_out") == 3
        assert behind.metric("uploads_total", outcome="left") == 1
        behind.proxy.heal()
        wait_for(lambda: behind.metric("uploads_reaped_total") == 1)


class CredentialsTests:
    """Engines that refuse the credentials."""

    @pytest.mark.full
    def test_wrong_ones_are_refused(self, all_engines: Engines, tmp_path: Path) -> None:
        """Wrong credentials are 502; the log has the engine's error, and no secret."""
        engine = all_engines.get("ceph")
        config = engine.toml(engine.new_bucket()).replace(engine.secret_key, "not-the-secret-key")
        with Daemon(tmp_path, config=config) as daemon:
            for method, path, body in (
                ("PUT", "put/k", SMALL),
                ("PUT", "put/k", MULTIPART),
                ("GET", "get/k", None),
                ("GET", "list", None),
                ("DELETE", "delete/k", None),
            ):
                assert ask(daemon, method, f"/storage/{path}", body) == (502, b"bucket failed\n")
            assert "SignatureDoesNotMatch" in daemon.log
            assert "not-the-secret-key" not in daemon.log

    @pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "ExpiredToken"])
    def test_a_clock_that_is_wrong_and_credentials_that_are_over(self, tmp_path: Path, code: str) -> None:
        """A skewed clock and expired credentials are logged by S3's error codes, and not retried."""
        with scripted() as (endpoint, engine):
            endpoint.script = lambda _: Answer(403, ERROR % code.encode())
            with Daemon(tmp_path, config=engine.toml("bucket")) as daemon:
                assert ask(daemon, "PUT", "/storage/put/k", SMALL) == (502, b"bucket failed\n")
                assert code in daemon.log
                assert "hunter2" not in daemon.log
        # Whether the bucket is ready is asked by lists.
        assert [name for name in endpoint.names() if name != "ListObjectsV2"] == ["PutObject"]


class AnswersTests:
    """What clients get where S3 answers with an error, or with nonsense."""

    def test_each_has_its_status(self, tmp_path: Path) -> None:
        """An answer of S3 never makes a 500, and a client that may repeat its request is told when."""
        answers = {
            "refused": (Answer(403, ERROR % b"AccessDenied"), 502, b"bucket failed\n", None),
            "no-bucket": (Answer(404, ERROR % b"NoSuchBucket"), 502, b"bucket failed\n", None),
            "moved": (Answer(301, ERROR % b"PermanentRedirect"), 502, b"bucket failed\n", None),
            "nonsense": (Answer(200, b"<html/>"), 502, b"bucket failed\n", None),
            "full": (Answer(403, ERROR % b"QuotaExceeded"), 507, b"out of space\n", None),
            "slow": (Answer(503, ERROR % b"SlowDown"), 503, b"bucket busy\n", "5"),
        }
        with scripted() as (endpoint, engine), Daemon(tmp_path, config=engine.toml("bucket")) as daemon:
            endpoint.script = lambda call: answers[call.key][0] if call.key in answers else None
            for key, (_, *expected) in answers.items():
                connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
                connection.request("GET", f"/objects/{key}")
                response = connection.getresponse()
                assert [response.status, response.read(), response.getheader("Retry-After")] == expected
                connection.close()
            assert "Traceback" not in daemon.log
