"""A headless Chromium that opens a page from its file, for the tests of the page in a browser and for its timings."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
OWN = ("file:", "data:", "blob:", "about:", "chrome:", "chrome-extension:", "devtools:")
"""Schemes of addresses that stay on this machine."""

SENT, FAILED = "requestWillBeSent", "loadingFailed"
DRAWN = "return document.documentElement.dataset.drawn"


def missing() -> str | None:
    """Return which of the required programs and packages are missing, as a text, or None."""
    absent = [] if any(map(shutil.which, NAMES)) else ["Chromium (apt-get install chromium)"]
    absent += [] if shutil.which("chromedriver") else ["its driver (apt-get install chromium-driver)"]
    try:
        import selenium  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        absent.append("selenium (pip install selenium)")
    return f"not installed: {', '.join(absent)}" if absent else None


@contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Return a selenium driver of a new browser, which is closed at the end."""
    from selenium import webdriver  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.chrome.service import Service  # pyright: ignore[reportMissingImports]

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for word in (*QUIET, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def open_page(driver: Any, page: Path, seconds: float = 60) -> None:
    """Open a report and wait until all of it is drawn; raise TimeoutError if that takes longer than `seconds`."""
    from selenium.common.exceptions import TimeoutException  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.support.ui import WebDriverWait  # pyright: ignore[reportMissingImports]

    driver.get(page.resolve().as_uri())
    try:
        WebDriverWait(driver, seconds, poll_frequency=0.05).until(
            lambda page_driver: page_driver.execute_script(DRAWN) == "all"
        )
    except TimeoutException as error:
        raise TimeoutError(f"{page}: not drawn after {seconds:g} s; the console says: {console(driver)}") from error


def console(driver: Any) -> list[str]:
    """Return the messages of the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Any) -> list[str]:
    """Return the addresses beyond this machine requested since the last call, except those that the policy blocked."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    events_of = {name: [e["params"] for e in events if e["method"] == f"Network.{name}"] for name in (SENT, FAILED)}
    # The browser also reports requests that it does not send.
    stopped = {event["requestId"] for event in events_of[FAILED] if event.get("blockedReason") == "csp"}
    sent = [event["request"]["url"] for event in events_of[SENT] if event["requestId"] not in stopped]
    return [address for address in sent if not address.startswith(OWN)]
