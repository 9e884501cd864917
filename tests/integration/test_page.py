"""The page in Chromium, on real daemons."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shutil import which
from urllib.parse import quote

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.daemon import Daemon
from tests.integration.browser import Browser, eventually

pytestmark = pytest.mark.skipif(
    not which("chromedriver"), reason="Chromium is not installed: apt-get install chromium chromium-driver"
)

#: A key that means something to URLs and to HTML.
ODD = "a b/ü?#c%&<b>'\".bin"


def ask(daemon: Daemon, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """The status and body of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read()


def put(daemon: Daemon, key: str, body: bytes = b"") -> None:
    """Store an object."""
    assert ask(daemon, "PUT", f"/objects/{quote(key)}", body)[0] == 200


def begin_put(daemon: Daemon, key: str, length: int, sent: int) -> socket.socket:
    """Begin a PUT whose client is slow."""
    client = daemon.connect()
    client.sendall(f"PUT /objects/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + bytes(sent))
    return client


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser, for all tests."""
    with Browser(tmp_path_factory.mktemp("downloads")) as running:
        yield running


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def shared_daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon, for tests that need no settings."""
    folder = tmp_path_factory.mktemp("daemon")
    with Daemon(folder, config=f"[storaged]\nworkers = {request.param}\n") as running:
        yield running


@pytest.fixture
def daemon(shared_daemon: Daemon, browser: Browser) -> Iterator[Daemon]:
    """The daemon, without objects; after the test, the console must have no complaints."""
    browser.complaints()
    yield shared_daemon
    assert browser.complaints() == []
    browser.open("about:blank")
    for key in keys(shared_daemon):
        ask(shared_daemon, "DELETE", f"/objects/{quote(key)}")


def keys(daemon: Daemon) -> list[str]:
    """The keys of all objects."""
    return [one["key"] for one in json.loads(ask(daemon, "GET", "/storage/list")[1])["objects"]]


class ObjectsTests:
    """The browser of keys, with JavaScript."""

    def test_from_upload_to_delete(self, daemon: Daemon, browser: Browser, tmp_path: Path) -> None:
        """A file that is chosen is uploaded, listed, downloaded, and deleted after a confirmation."""
        name = ODD.rpartition("/")[2]
        file = tmp_path / name
        file.write_bytes(bytes(range(256)) * 1000)
        browser.open(f"{daemon.url}/")
        browser.find("#folder").send_keys("a b/")
        browser.find("#files").send_keys(str(file))
        eventually(lambda: keys(daemon) == [ODD])
        browser.open(f"{daemon.url}/?prefix=a%20b/")
        (row,) = browser.texts("#list tbody tr")
        assert row.startswith(f"{name} 250 KiB ")
        browser.link(name).click()
        # Characters that a name of a file cannot have are replaced.
        eventually(lambda: [one for one in browser.downloads.iterdir() if one.suffix == ".bin"])
        (saved,) = browser.downloads.iterdir()
        eventually(lambda: saved.read_bytes() == file.read_bytes())
        saved.unlink()
        browser.find("#list tbody td:last-child a").click()
        eventually(lambda: browser.text("h2") == "Delete this object?")
        assert browser.text(".key") == ODD
        assert keys(daemon) == [ODD]
        browser.link("Cancel").click()
        eventually(lambda: browser.texts("#list tbody tr") == [row])
        browser.find("#list tbody td:last-child a").click()
        eventually(lambda: browser.find("button.bad")).click()
        eventually(lambda: browser.texts("#list tbody tr") == ["There is no such key."])
        assert keys(daemon) == []
        assert browser.find("[name=prefix]").get_attribute("value") == "a b/"

    def test_drop(self, daemon: Daemon, browser: Browser) -> None:
        """Files that are dropped are uploaded to the folder that is shown, one after the other."""
        browser.open(f"{daemon.url}/?prefix=x/y/z")
        browser.drop("#list", **{"one.txt": "1", "ä?.txt": "zwei"})
        eventually(lambda: keys(daemon) == ["x/y/one.txt", "x/y/ä?.txt"])
        assert ask(daemon, "GET", "/objects/x/y/" + quote("ä?.txt"))[1] == b"zwei"
        eventually(lambda: browser.texts("#uploads li") == [])

    def test_a_key_that_exists(self, daemon: Daemon, browser: Browser) -> None:
        """The page asks before it replaces an object; other files go on when that is answered."""
        put(daemon, "k", b"old")
        put(daemon, "kk", b"another")
        browser.open(f"{daemon.url}/")
        browser.drop("#objects", k="new")
        eventually(lambda: "There is an object with this key." in browser.text("#uploads li"))
        browser.find("#uploads li button:last-child").click()
        eventually(lambda: browser.texts("#uploads li") == [])
        assert ask(daemon, "GET", "/objects/k")[1] == b"old"
        browser.drop("#objects", k="new")
        eventually(lambda: browser.find("#uploads li button")).click()
        eventually(lambda: ask(daemon, "GET", "/objects/k")[1] == b"new")

    def test_an_invalid_key(self, daemon: Daemon, browser: Browser) -> None:
        """The line of a refusal is shown."""
        browser.open(f"{daemon.url}/")
        browser.find("#folder").send_keys("a/../")
        browser.drop("#objects", k="")
        eventually(lambda: "key contains .. component Try again" in browser.text("#uploads li"))
        # Chromium complains of each response with an error.
        assert all("400 (Bad Request)" in line for line in browser.complaints())

    def test_pages(self, daemon: Daemon, browser: Browser) -> None:
        """A list of more keys than one page has goes on on the next."""
        expected = [f"p/{number:03}" for number in range(120)]
        for key in expected:
            put(daemon, key)
        browser.open(f"{daemon.url}/")
        browser.link("p/").click()
        pages = [expected[:50], expected[50:100], expected[100:]]
        for keys_of_page in pages:
            rows = [key.removeprefix("p/") for key in keys_of_page]
            eventually(partial(self._has_rows, browser, rows))
            if keys_of_page is not pages[-1]:
                browser.link("Next page").click()
        assert browser.driver.find_elements(By.LINK_TEXT, "Next page") == []
        browser.link("all keys").click()
        eventually(partial(self._has_rows, browser, ["p/"]))

    def _has_rows(self, browser: Browser, names: list[str]) -> bool:
        return browser.texts("#list tbody th") == names

    def test_prefix_by_keyboard(self, daemon: Daemon, browser: Browser) -> None:
        """A prefix can be typed."""
        for key in ("ab", "ac", "b"):
            put(daemon, key)
        browser.open(f"{daemon.url}/")
        browser.find("[name=prefix]").send_keys("a", Keys.ENTER)
        eventually(lambda: browser.texts("#list tbody th") == ["ab", "ac"])

    def test_stored_html(self, daemon: Daemon, browser: Browser) -> None:
        """Keys that look like HTML are texts, and a stored page that is opened runs nothing."""
        key = "<img src=x onerror=document.title=1>"
        put(daemon, key)
        browser.open(f"{daemon.url}/")
        assert browser.texts("#list tbody th") == [key]
        assert browser.driver.title == "storaged"
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        content = b"<title>before</title><script>document.title = 'after'</script>"
        connection.request("PUT", "/objects/x.html", content, {"Content-Type": "text/html"})
        assert connection.getresponse().status == 200
        browser.open(f"{daemon.url}/objects/x.html")
        assert browser.driver.title == "before"
        (line,) = browser.complaints()
        assert "sandboxed" in line

    def test_a_full_daemon(self, browser: Browser, tmp_path: Path) -> None:
        """An upload that finds no slot waits, and is stored when there is one."""
        config = "[storaged]\nput_slots = 1\nretry_after = 1\n"
        with Daemon(tmp_path, config=config) as daemon:
            slow = begin_put(daemon, "slow", 100, 1)
            browser.open(f"{daemon.url}/")
            browser.drop("#objects", k="new")
            eventually(lambda: "tries again in 1 s" in browser.text("#uploads li"))
            eventually(lambda: "no free slot" in browser.text("#refusals tbody tr"))
            assert browser.text("#slots") == "1 of 1"
            slow.close()
            eventually(lambda: keys(daemon) == ["k"])
        browser.complaints()


class LiveTests:
    """What is kept up to date."""

    def test_a_slow_put(self, daemon: Daemon, browser: Browser) -> None:
        """A transfer appears, goes on and disappears without a reload, whichever worker has it."""
        browser.open(f"{daemon.url}/")
        eventually(lambda: browser.text("#live") == "Live")
        browser.driver.execute_script("window.loaded = 'once'")
        assert browser.texts("#transfers tbody tr") == ["No object is being sent or received."]
        clients = [begin_put(daemon, f"slow/{number}", 4 << 20, 1 << 20) for number in range(2)]
        eventually(lambda: len(browser.texts("#transfers tbody th")) == 2)
        (row,) = [text for text in browser.texts("#transfers tbody tr") if "slow/0" in text]
        for text in ("primary", "PUT, in a slot", "1 MiB of 4 MiB", "client", "127.0.0.1:"):
            assert text in row
        assert browser.text("#slots") == "2 of 4"
        for client in clients:
            client.sendall(bytes(1 << 20))
        eventually(lambda: all("2 MiB of 4 MiB" in text for text in browser.texts("#transfers tbody tr")))
        value = browser.driver.execute_script("return document.querySelector('#transfers progress').value")
        assert value == 0.5
        for client in clients:
            client.sendall(bytes(2 << 20))
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            client.close()
        eventually(lambda: browser.texts("#transfers tbody tr") == ["No object is being sent or received."])
        # Which a browser draws at the end of an interval of five seconds.
        eventually(lambda: "Received: 0 B/s now, 0 B/s" not in browser.text("#chart-summary"))
        assert (
            len(
                {
                    *browser.driver.execute_script(
                        "return document.querySelector('#received-line').getAttribute('d')"
                    ).split(",")
                }
            )
            > 3
        )
        assert browser.driver.execute_script("return window.loaded") == "once"

    def test_pause(self, daemon: Daemon, browser: Browser) -> None:
        """It can be paused, and goes on."""
        browser.open(f"{daemon.url}/")
        eventually(lambda: browser.text("#live") == "Live")
        browser.find("#pause").send_keys(Keys.ENTER)
        assert (browser.text("#live"), browser.text("#pause")) == ("Paused", "Go on")
        before = browser.text("#at")
        client = begin_put(daemon, "slow", 100, 1)
        time.sleep(2.5)
        assert browser.text("#at") == before
        browser.find("#pause").click()
        eventually(lambda: "slow" in browser.text("#transfers tbody tr"))
        client.close()

    def test_a_restart(self, browser: Browser, tmp_path: Path) -> None:
        """An open page does not hold up a stop, and is up to date again after a restart."""
        with Daemon(tmp_path) as daemon:
            browser.open(f"{daemon.url}/")
            eventually(lambda: browser.text("#live") == "Live")
            start = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - start < 10
            eventually(lambda: browser.text("#live") == "Not up to date")
            daemon.process = daemon.spawn(f"tcp:{daemon.port}:interface=127.0.0.1")
            eventually(lambda: browser.text("#live") == "Live")
            # With a token of the new process.
            browser.drop("#objects", k="new")
            eventually(lambda: keys(daemon) == ["k"])
        browser.complaints()


class ReadableTests:
    """The page on small screens, and for whoever uses no mouse."""

    @pytest.mark.parametrize("width", [390, 1280])
    def test_width(self, daemon: Daemon, browser: Browser, width: int) -> None:
        """The page is never wider than the screen, whatever is shown."""
        put(daemon, "x" * 500)
        client = begin_put(daemon, "y" * 500, 100, 1)
        browser.show(width)
        try:
            browser.open(f"{daemon.url}/")
            eventually(lambda: "yyy" in browser.text("#transfers tbody"))
            size = browser.driver.execute_script("return document.documentElement.scrollWidth")
            assert size <= width
            browser.open(f"{daemon.url}/page/delete?key={'x' * 500}")
            assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width
        finally:
            client.close()
            browser.show(1280)

    def test_keyboard(self, daemon: Daemon, browser: Browser) -> None:
        """Everything that can be used is reached by Tab, in order, and shows that it has the focus."""
        put(daemon, "k")
        browser.open(f"{daemon.url}/")
        expected = ["Skip to the content", "Under way", "Daemon", "Objects", "Pause", "bucket", "prefix", "Show"]
        expected += ["all keys", "folder", "files", "k", "Delete k"]
        for name in expected:
            ActionChains(browser.driver).send_keys(Keys.TAB).perform()
            focused = browser.driver.execute_script(
                "const one = document.activeElement;"
                "return [one.name || one.textContent || one.id, getComputedStyle(one).outlineStyle];"
            )
            assert focused == [name, "solid"]

    def test_names(self, daemon: Daemon, browser: Browser) -> None:
        """To a screen reader, each control and region has a name."""
        put(daemon, "k")
        browser.open(f"{daemon.url}/")
        nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles: dict[str, list[str]] = {}
        for node in nodes:
            role, name = node.get("role", {}).get("value", ""), node.get("name", {}).get("value", "")
            roles.setdefault(role, []).append(name)
        for role in ("link", "button", "textbox", "combobox", "region", "table", "search", "form", "navigation"):
            assert roles[role], role
            assert all(roles[role]), role
        assert {"Transfers", "Refused or failed lately", "Buckets", "Policies", "Processes"} <= {*roles["table"]}
        (chart,) = [name for name in roles["image"] if name]
        assert chart.startswith("Throughput of the last ten minutes Received: ")


class WithoutJavaScriptTests:
    """The page in a browser that runs no scripts."""

    def test_shows_and_deletes(self, tmp_path: Path) -> None:
        """It shows what is under way when it is loaded, lists, pages, and deletes."""
        with Browser(tmp_path, javascript=False) as browser, Daemon(tmp_path) as daemon:
            for number in range(51):
                put(daemon, f"p/{number:02}")
            client = begin_put(daemon, "slow", 100, 1)
            browser.open(f"{daemon.url}/")
            assert "slow" in browser.text("#transfers tbody tr")
            assert not browser.find("#upload").is_displayed()
            assert browser.find("noscript p").is_displayed()
            client.close()
            eventually(lambda: json.loads(ask(daemon, "GET", "/status.json")[1])["transfers"] == [])
            # A click may return before the next page is there.
            browser.link("Load again").click()
            eventually(lambda: "slow" not in browser.text("#transfers tbody tr"))
            browser.link("p/").click()
            eventually(lambda: browser.link("Next page")).click()
            eventually(lambda: browser.text("#list tbody th") == "50")
            browser.find("#list tbody td:last-child a").click()
            eventually(lambda: browser.find("button.bad")).click()
            eventually(lambda: len(keys(daemon)) == 50)
            eventually(lambda: browser.text("#list tbody th") == "00")
            assert browser.complaints() == []
