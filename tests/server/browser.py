"""A real Chromium under Playwright: found on this machine, never downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def find_chromium() -> str | None:
    """The browser to use: $CHROMIUM, one on PATH, or an installed application."""
    named = os.environ.get("CHROMIUM")
    found = (named, *map(shutil.which, NAMES), *APPLICATIONS)
    return next((path for path in found if path and Path(path).is_file()), None)


@contextlib.contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """The browser, started; no window, and no word to anyone but the page's server."""
    from playwright.sync_api import sync_playwright

    # As root, in a container, there is no sandbox to be had; the only page opened is ours.
    sandbox = [] if os.name != "posix" or os.geteuid() else ["--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--disable-background-networking", *sandbox]
        )
        yield browser
        browser.close()
