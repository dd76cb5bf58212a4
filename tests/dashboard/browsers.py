"""A real browser, headless: chromium, driven through chromedriver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--disable-extensions", "--no-first-run")
NEEDED = """\
These tests need a browser: chromium and chromedriver. `make browser` installs them on Debian, as root. Where a machine cannot have one, \
TDREPLAY_BROWSER=none leaves these tests out."""


class Browser:
    """A window of the browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Opens a page in a window of that size, and waits for its first numbers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        self.driver.get("about:blank")
        self.driver.get(url)
        self.refreshed()

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script gives."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Any, seconds: float = 15) -> Any:
        """What a condition gives, once that is true."""
        return WebDriverWait(self.driver, seconds, 0.05, ignored_exceptions=(StaleElementReferenceException,)).until(lambda _: condition())

    def refreshed(self) -> None:
        """Returns once the page has shown newer numbers twice: those that it has asked for before may be older."""
        count = "return Number(document.getElementById('main')?.dataset.fresh ?? 0)"
        wanted = self.run(count) + 1
        self.until(lambda: self.run(count) >= wanted)

    def all(self, selector: str) -> list[WebElement]:
        """The elements of a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The first one, once it is there."""
        return self.until(lambda: next(iter(self.all(selector)), None))

    def press(self, key: str) -> None:
        """Presses a key, where the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def data(self, selector: str, name: str) -> list[str]:
        """An attribute of all elements of a selector."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.getAttribute(arguments[1]))", selector, name)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements of a selector."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def figures(self, selector: str = "main") -> dict[str, tuple[float | str, str]]:
        """The figures below an element: key -> the exact number, and the text that is shown."""
        found = "[...document.querySelector(arguments[0]).querySelectorAll('[data-figure]')]"
        script = f"return {found}.map((one) => [one.dataset.figure, one.dataset.value, one.textContent])"
        return {key: (_number(value), text) for key, value, text in self.run(script, selector)}


def _number(text: str | None) -> float | str:
    try:
        return float(text or "")
    except ValueError:
        return text or ""


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser. Without one the test fails, unless the environment says that there is none."""
    if os.environ.get("TDREPLAY_BROWSER") == "none":
        pytest.skip("TDREPLAY_BROWSER=none: the dashboard was not looked at in a browser")
    path = shutil.which("chromedriver")
    if path is None:
        pytest.fail(NEEDED)
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(path))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
