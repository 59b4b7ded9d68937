"""A headless Chromium for the tests of the report, and what they ask it."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}


def find_browser() -> tuple[str, str]:
    """(chromium, chromedriver); a test that has none is skipped, but fails where continuous integration runs."""
    binary = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    try:
        import selenium  # noqa: F401
    except ImportError:
        selenium = None
    missing = [
        what
        for what, there in (("chromium", binary), ("chromedriver", driver), ("selenium", selenium))
        if there is None
    ]
    if missing:
        told = f"{', '.join(missing)} not found: apt-get install chromium chromium-driver, pip install selenium"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    assert binary and driver
    return binary, driver


@contextmanager
def open_browser(binary: str, driver: str, profile: Path) -> Iterator[Any]:
    """A WebDriver that logs its console and its network. Nothing is looked up or downloaded to start it."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--no-sandbox",  # of containers, whose user is root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")  # an alert is to be found, not to be closed
    browser = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    try:
        yield Page(browser)
    finally:
        browser.quit()


class Page:
    """A browser with one page."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.browser.execute_cdp_cmd(command, arguments)

    def emulate(self, metrics: dict[str, Any], **features: str) -> None:
        """A screen, and media features such as `prefers-color-scheme`."""
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.cdp("Emulation.setEmulatedMedia", features=named)

    def load(self, path: Path, fragment: str = "") -> None:
        """Opens a file and waits until its viewer is ready."""
        self.browser.get("about:blank")
        self.browser.get_log("browser"), self.browser.get_log("performance")
        self.browser.get(path.resolve().as_uri() + fragment)
        self.wait("return performance.getEntriesByName('viewer-ready').length")

    def wait(self, script: str, *arguments: Any, seconds: float = 30) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, poll_frequency=0.02).until(
            lambda b: b.execute_script(script, *arguments)
        )

    def js(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map(n => n.textContent)", selector))

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def keys(self, *keys: str) -> None:
        """Types keys, to whatever has the focus."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def fill(self, name: str, value: str) -> None:
        """Sets a field of the filters, as a person would who is quick, and waits until the list has followed."""
        self.js(
            "const f = document.querySelector('.filters').elements[arguments[0]]; f.value = arguments[1];"
            "f.dispatchEvent(new Event('input', { bubbles: true }))",
            name,
            value,
        )
        self.pause()

    def pause(self, milliseconds: int = 250) -> None:
        """Longer than the filters wait for the next letter."""
        self.browser.execute_async_script("setTimeout(arguments[1], arguments[0])", milliseconds)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was loaded."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [str(request["request"]["url"]) for request in sent]

    def picture(self) -> bytes:
        """What is on the screen, as PNG."""
        return base64.b64decode(self.cdp("Page.captureScreenshot", format="png")["data"])
