"""A headless Chromium that opens one page from its file: what the browser's tests and its timings both drive."""

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
"""Beginnings of addresses that reach nothing beyond this machine."""

SENT, FAILED = "requestWillBeSent", "loadingFailed"
DRAWN = "return document.documentElement.dataset.drawn"


def missing() -> str | None:
    """What is not there that is needed, in words; None where all is."""
    absent = [] if any(map(shutil.which, NAMES)) else ["Chromium (apt-get install chromium)"]
    absent += [] if shutil.which("chromedriver") else ["its driver (apt-get install chromium-driver)"]
    try:
        import selenium  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        absent.append("selenium (pip install selenium)")
    return f"not installed: {', '.join(absent)}" if absent else None


@contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A selenium driver of a fresh browser, closed at the end."""
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
    """Open a report and wait until all of it is drawn. Raises TimeoutError where it never is."""
    from selenium.common.exceptions import TimeoutException  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.support.ui import WebDriverWait  # pyright: ignore[reportMissingImports]

    driver.get(page.resolve().as_uri())
    try:
        WebDriverWait(driver, seconds, poll_frequency=0.05).until(lambda one: one.execute_script(DRAWN) == "all")
    except TimeoutException as error:
        raise TimeoutError(f"{page}: not drawn after {seconds:g} s; the console says: {console(driver)}") from error


def console(driver: Any) -> list[str]:
    """What the console was told since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Any) -> list[str]:
    """Addresses beyond this machine that were asked for since this was last called, but for what a policy stopped."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    told = {name: [e["params"] for e in events if e["method"] == f"Network.{name}"] for name in (SENT, FAILED)}
    # The browser also tells of requests that it then does not send.
    stopped = {one["requestId"] for one in told[FAILED] if one.get("blockedReason") == "csp"}
    sent = [one["request"]["url"] for one in told[SENT] if one["requestId"] not in stopped]
    return [address for address in sent if not address.startswith(OWN)]
