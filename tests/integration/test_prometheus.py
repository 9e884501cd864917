"""The alert rules and the dashboard in etc/: promtool accepts them, and Prometheus has data of a daemon for them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from tests.conftest import Engines
from tests.daemon import ROOT, Daemon
from tests.test_check import certificate

ALERTS, DASHBOARD = ROOT / "etc" / "prometheus-alerts.yml", ROOT / "etc" / "grafana-dashboard.json"
TESTS = Path(__file__).with_name("prometheus-alerts.test.yml")
SECONDS = 120
#: Accepts the certificate of the tests.
TLS = ssl.create_default_context()
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE

needs_prometheus = pytest.mark.skipif(
    not shutil.which("promtool"), reason="Prometheus is not installed: apt-get install prometheus"
)


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard, without its rows."""
    return [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def expressions(interval: str = "1m") -> Iterator[tuple[str, str]]:
    """The titles of panels, and each of their expressions as Grafana sends it, for all instances."""
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", interval).replace("$instance", ".*")
            assert "$" not in expression
            yield panel["title"], expression


def promtool(*arguments: str, given: bytes = b"") -> None:
    """Run promtool, which has to succeed and to find nothing."""
    ended = subprocess.run(["promtool", *arguments], input=given, capture_output=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stderr) == (0, b""), ended.stdout + ended.stderr


class FilesTests:
    """What the files name."""

    @pytest.mark.parametrize("file", [ALERTS, DASHBOARD, TESTS], ids=lambda file: file.name)
    def test_metrics_are_documented(self, file: Path) -> None:
        """The page on metrics has each of them, and the tests with the daemon compare that page with what is served."""
        text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
        documented = set()
        for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE):
            documented |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
        named = set(re.findall(r"\bstoraged_\w+", file.read_text("utf-8")))
        assert named - documented == set()

    def test_each_alert_has_a_test(self) -> None:
        """Each of the rules has a unit test in which it fires."""
        alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text("utf-8"))
        fire = re.findall(r"- alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n", TESTS.read_text("utf-8"))
        assert sorted(alerts) == sorted(fire)

    def test_panels(self) -> None:
        """Each panel says what it shows, and none covers another."""
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
            assert panel["type"] == "row" or panel["description"].endswith(".")
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells


@pytest.mark.full
@needs_prometheus
class PromtoolTests:
    """What promtool says of them."""

    def test_rules(self) -> None:
        """The rules are valid."""
        promtool("check", "rules", "--lint-fatal", str(ALERTS))

    def test_alerts(self) -> None:
        """Each alert fires when it has to, says what it should, and does not fire otherwise."""
        promtool("test", "rules", str(TESTS))

    def test_dashboard(self, tmp_path: Path) -> None:
        """The expressions of the dashboard are valid."""
        rules = [{"record": f"panel:{number}", "expr": one} for number, (_, one) in enumerate(expressions())]
        # JSON is YAML.
        (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
        promtool("check", "rules", "--lint-fatal", str(tmp_path / "panels.yml"))


class Scraped:
    """A daemon that has something to do, and its Prometheus. It has two workers, TLS, and buckets of both kinds.

    One of the buckets is not there.
    """

    def __init__(self, daemon: Daemon, prometheus: str) -> None:
        self._prometheus = prometheus
        self.address = ("127.0.0.1", daemon.port)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        """Make a request to the daemon."""
        request = Request(f"https://127.0.0.1:{self.address[1]}{path}", body, headers or {}, method=method)
        with urlopen(request, timeout=SECONDS, context=TLS) as response:
            answer: bytes = response.read()
            return answer

    def query(self, expression: str) -> list[float]:
        """The values of an expression that Prometheus has now."""
        with urlopen(f"{self._prometheus}/api/v1/query?query={quote(expression)}", timeout=SECONDS) as response:
            return [float(one["value"][1]) for one in json.load(response)["data"]["result"]]

    def names(self) -> list[str]:
        """The names of all metrics that Prometheus has."""
        with urlopen(f"{self._prometheus}/api/v1/label/__name__/values", timeout=SECONDS) as response:
            found: list[str] = json.load(response)["data"]
            return found

    def work(self, end: Event) -> None:
        """Make requests of all kinds, until the end; some fail, and some are broken off."""
        while not end.wait(0.1):
            for bucket in ("", "fast/"):
                self.ask("PUT", f"/objects/{bucket}k", b"x" * 100_000)
                self.ask("GET", f"/objects/{bucket}k")
                self.ask("HEAD", f"/objects/{bucket}k")
                self.ask("GET", f"/storage/list?prefix={bucket}k")
            for key in ("none", "gone/k"):
                with pytest.raises(HTTPError):
                    self.ask("GET", f"/objects/{key}")
            with socket.create_connection(self.address) as raw, TLS.wrap_socket(raw) as client:
                client.sendall(b"PUT /objects/k HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")


@pytest.fixture(scope="class")
def scraped(all_engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """A daemon at work that Prometheus scrapes every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    pem = folder / "server.pem"
    pem.write_bytes(certificate(3650))
    engine = all_engines.get("moto")
    config = (
        f'[storaged]\nworkers = 2\n{engine.toml(engine.new_bucket())}[buckets.fast]\nkind = "local"\n'
        f'path = "{folder}/fast"\n[[policy]]\nprefix = "fast/"\nbucket = "fast"\n'
        f'[buckets.gone]\nbucket = "gone"\nendpoint = "http://127.0.0.1:9"\nregion = "x"\n'
        'access_key_id = "x"\nsecret_access_key = "x"\n[[policy]]\nprefix = "gone/"\nbucket = "gone"\n'
    )
    bind = f"ssl:0:interface=127.0.0.1:privateKey={pem}"
    with Daemon(folder, "--bind", bind, config=config) as daemon, prometheus(folder, daemon.port) as url:
        running, end = Scraped(daemon, url), Event()
        worker = Thread(target=running.work, args=[end])
        worker.start()
        yield running
        end.set()
        worker.join()


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """A Prometheus that scrapes a port every second, and has the rules; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    scrape = {
        "job_name": "storaged",
        "scheme": "https",
        "tls_config": {"insecure_skip_verify": True},
        "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
    }
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": every, "rule_files": [str(ALERTS)], "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        wait_until(lambda: "Server is ready" in (folder / "prometheus.log").read_text())
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(SECONDS)


def wait_until(done: Callable[[], object]) -> None:
    """Wait until `done` returns something true."""
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.full
@needs_prometheus
class ScrapedTests:
    """A daemon that Prometheus scrapes."""

    def test_text(self, scraped: Scraped) -> None:
        """The text format is as promtool wants it, with names by the conventions."""
        promtool("check", "metrics", given=scraped.ask("GET", "/metrics"))

    def test_openmetrics(self, scraped: Scraped) -> None:
        """OpenMetrics, which Prometheus asks for, is accepted by it, with all samples of the text format."""
        wait_until(lambda: scraped.query('up{job="storaged"}') == [1])
        lines = scraped.ask("GET", "/metrics").decode().splitlines()
        names = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
        wait_until(lambda: names <= set(scraped.names()))

    def test_panels(self, scraped: Scraped) -> None:
        """Each panel of the dashboard has data."""
        without: list[str] = []

        def all_have_data() -> bool:
            without[:] = [f"{title}: {one}" for title, one in expressions("10s") if not scraped.query(one)]
            return not without

        try:
            wait_until(all_have_data)
        finally:
            assert without == []

    def test_alert(self, scraped: Scraped) -> None:
        """The bucket that is not there, and no other, is to raise an alert."""
        wait_until(lambda: scraped.query('ALERTS{alertname="StoragedBucketNotReady", bucket="gone"}') == [1])
        assert scraped.query('ALERTS{alertname="StoragedBucketNotReady", bucket!="gone"}') == []
