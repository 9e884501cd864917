"""A headless Chromium, driven by selenium: `apt-get install chromium chromium-driver`."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

SECONDS = 30

_T = TypeVar("_T")

#: Lets files fall on an element, as a drag from a file manager does.
_DROP = """
const files = new DataTransfer();
for (const [name, text] of Object.entries(arguments[1])) files.items.add(new File([text], name));
for (const type of ["dragover", "drop"]) {
  arguments[0].dispatchEvent(new DragEvent(type, {dataTransfer: files, bubbles: true, cancelable: true}));
}
"""


class Browser:
    """A browser with one tab; `with` closes it.

    Attributes:
        downloads: the folder where it saves files.
    """

    def __init__(self, downloads: Path, javascript: bool = True) -> None:
        """Start it."""
        self.downloads = downloads
        options = Options()
        options.binary_location = "/usr/bin/chromium"
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-proxy-server"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        preferences: dict[str, Any] = {"download.default_directory": str(downloads)}
        if not javascript:
            preferences["profile.managed_default_content_settings.javascript"] = 2
        options.add_experimental_option("prefs", preferences)
        self.driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.show(1280)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.driver.quit()

    def open(self, url: str) -> None:
        """Load a page."""
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements of a CSS selector, with single spaces."""
        found = self.driver.execute_script(
            "return Array.from(document.querySelectorAll(arguments[0]), (one) => one.innerText)", selector
        )
        return [" ".join(text.split()) for text in found]

    def text(self, selector: str) -> str:
        """The text of the first element of a CSS selector."""
        return self.texts(selector)[0]

    def link(self, text: str) -> WebElement:
        """The link with this text."""
        return self.driver.find_element(By.LINK_TEXT, text)

    def drop(self, selector: str, **files: str) -> None:
        """Let files with these names and contents fall on an element."""
        self.driver.execute_script(_DROP, self.find(selector), files)

    def show(self, width: int, dark: bool = False) -> None:
        """Let the screen have this width, and a colour scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, path: Path, height: int | None = None) -> None:
        """Save a picture of the page, or of the upper part of it."""
        width, whole = self.driver.execute_script(
            "return [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": min(height or whole, whole), "scale": 1}
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    def complaints(self) -> list[str]:
        """What the console has of errors and violations of policies since the last time."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]


def eventually(check: Callable[[], _T], seconds: float = SECONDS) -> _T:
    """Call `check` until it returns something true, and return it. Errors count as false."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = check()
            if found:
                return found
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.05)
