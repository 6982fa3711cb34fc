"""A browser, a server for it to talk to, and a watch over what the page does meanwhile."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlx_qwen3 import LLM, load
from tests.checkpoints import EOS_TOKEN_IDS, make_tensors, write_weights
from tests.server.browser import chromium, find_chromium
from tests.server.fake_api import FakeApi, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 30_000  # milliseconds: a busy machine is slow, a broken page is slower


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser takes a second or two a test, a hundred times."""
    for item in items:
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def demo() -> LLM:
    """The bundled demo model."""
    return load("demo")


@pytest.fixture(scope="session")
def endless(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose replies never end by themselves, for a long context."""
    folder = tmp_path_factory.mktemp("endless") / "endless"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 1 << 17
    (folder / "config.json").write_text(json.dumps(config))
    tensors = make_tensors(config, seed=0)
    tensors["lm_head.weight"][list(EOS_TOKEN_IDS)] = 0  # far below the candidates
    write_weights(folder, tensors)
    return folder


@pytest.fixture
def api() -> FakeApi:
    """What answers the page."""
    return FakeApi()


@pytest.fixture(scope="module")  # a running Playwright forbids other tests an event loop
def browser() -> Iterator[Browser]:
    """A real Chromium."""
    pytest.importorskip("playwright", reason="the page is tested with Playwright: not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("the page is tested in Chromium: none on PATH, none named by $CHROMIUM")
    with chromium(path) as started:
        yield started


@dataclass
class Watch:
    """What must not happen on the page: errors in the console, requests to anywhere else.

    expected: patterns of console messages that a test provokes.
    """

    address: str
    expected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Watch this page from now on."""
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def check(self) -> None:
        """Fail for what happened."""
        known = re.compile("|".join(self.expected) or r"(?!)")
        assert [error for error in self.errors if not known.search(error)] == []
        assert self.outside == []

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    def _asked(self, url: str) -> None:
        if not url.startswith(self.address):
            self.outside.append(url)


@pytest.fixture
def address(api: FakeApi) -> Iterator[str]:
    """Where the page is served."""
    with serving(api.app()) as found:
        yield found


@pytest.fixture
def watch(address: str) -> Watch:
    """The watch over the pages of a test."""
    return Watch(address)


@pytest.fixture
def open_page(browser: Browser, address: str, watch: Watch) -> Iterator[Callable[..., Page]]:
    """open_page(**options of the browser context): the page, in a browser that is new to it."""
    with ExitStack() as stack:

        def opened(**options: object) -> Page:
            context = stack.enter_context(browser.new_context(**options))
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            watch.follow(page)
            page.goto(address)
            return page

        yield opened
    watch.check()


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """The page, as most people see it."""
    return open_page()
