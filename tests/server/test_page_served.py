"""The chat page in a real browser, served by the whole server, with models that answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from mlx_qwen3.server.settings import ServerSettings
from mlx_qwen3.service import Service
from tests.server.chat_page import (
    WEATHER,
    answered,
    ask,
    button,
    field,
    replies,
    roles,
    say,
    set_up,
    shown,
    think,
)
from tests.server.conftest import Watch
from tests.server.running import running

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

TALKS = "() => document.querySelector('.reply')?.textContent.length > 100"


@pytest.fixture(scope="module")
def server(endless: Path) -> Iterator[httpx.Client]:
    """The demo model, and one whose replies do not end by themselves."""
    service = Service({"demo": "demo", "endless": str(endless)})
    with running(ServerSettings(), service) as client:
        yield client


@pytest.fixture
def address(server: httpx.Client) -> str:
    """Where the page is served."""
    return str(server.base_url)


@pytest.fixture
def bodies(page: Page) -> list[Any]:
    """What the page sends to the model, in order."""
    found: list[Any] = []

    def note(request: Request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            found.append(request.post_data_json)

    page.on("request", note)
    return found


def choose(page: Page, model: str) -> None:
    page.locator("#model").select_option(model)


def runs(page: Page, server: httpx.Client, replies: int) -> bool:
    """Whether so many replies are being made, soon."""
    for _ in range(500):
        if f"\nmlx_qwen3_running {replies}.0\n" in server.get("/metrics").text:
            return True
        page.wait_for_timeout(20)
    return False


def test_a_conversation(page: Page, bodies: list[Any]) -> None:
    think(page, False)
    ask(page, "What is 23 + 45?")
    assert re.fullmatch(r"23 \+ 45 = \d+\.", replies(page)[0])
    assert bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert re.search(r"\d tokens/s.+\d+ tokens", page.locator(".statistics").inner_text(), re.S)
    ask(page, "Hello")
    assert roles(bodies[1]) == ["user", "assistant", "user"]
    assert len(replies(page)) == 2
    assert all(replies(page))


def test_a_thought_is_folded_with_its_tokens_and_time(page: Page, bodies: list[Any]) -> None:
    set_up(page, Temperature="0")
    ask(page, "What is 27 + 58?")
    assert replies(page) == ["27 + 58 = 85."]
    summary = page.locator("summary")
    assert re.fullmatch(r"Thought for [\d.]+ s · \d+ tokens", summary.inner_text())
    thought = page.locator("details .prose")
    assert not thought.is_visible()
    summary.click()
    thought.get_by_text("carry 1").first.wait_for()
    assert bodies[0].get("chat_template_kwargs") in (None, {"enable_thinking": True})


def test_tools_are_called_and_answered(page: Page, bodies: list[Any]) -> None:
    set_up(page, Tools=WEATHER, Temperature="0")
    ask(page, "What is the weather in Paris?")
    call = page.locator(".call")
    assert call.get_by_role("heading").text_content() == "Tool call: get_weather"
    assert '"city": "Paris"' in call.locator("pre").inner_text()
    call.get_by_label("Result of get_weather").fill('{"degrees": 21}')
    button(page, "Send result").click()
    answered(page)
    user, asked, result = bodies[1]["messages"]
    assert (user["role"], result["content"]) == ("user", '{"degrees": 21}')
    assert result["tool_call_id"] == asked["tool_calls"][0]["id"]
    assert asked["reasoning_content"]  # within a turn, the model reads its own thoughts
    assert "Result" in call.inner_text()
    assert len(replies(page)) == 2


def test_what_does_not_fit_the_context_is_said_in_words(page: Page, watch: Watch) -> None:
    watch.expected.append("400")
    set_up(page, Longest_reply="100000")
    ask(page, "Hello")
    assert "no longer fits the model’s context" in page.get_by_role("alert").inner_text()
    assert "100000" in page.get_by_role("alert").inner_text()  # the server's own words


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_reply_is_stopped_here_and_there(page: Page, server: httpx.Client, how: str) -> None:
    """What was said stays, and the server works on nothing any more."""
    choose(page, "endless")
    say(page, "Go on")
    page.wait_for_function(TALKS)
    assert runs(page, server, 1)
    button(page, "Stop").click() if how == "button" else field(page).press("Escape")
    answered(page)
    assert runs(page, server, 0)
    assert "You stopped this reply." in page.locator(".reply").inner_text()
    said = page.locator(".reply").text_content()
    choose(page, "demo")
    ask(page, "Hello")
    assert page.locator(".reply").first.text_content() == said
    assert page.locator(".reply").count() == 2
    assert page.get_by_role("alert").count() == 0


def test_a_reload_keeps_the_conversation(page: Page, bodies: list[Any]) -> None:
    set_up(page, Temperature="0")
    ask(page, "What is 27 + 58?")
    before = page.locator("#column").inner_html()
    page.reload()
    assert page.locator("#column").inner_html() == before
    assert page.title().startswith("What is 27 + 58?")
    ask(page, "Hello")
    assert roles(bodies[1]) == ["user", "assistant", "user"]
    assert bodies[1]["messages"][1]["content"] == "27 + 58 = 85."


def test_a_reload_amid_a_reply_stops_it_there(page: Page, server: httpx.Client) -> None:
    choose(page, "endless")
    say(page, "Go on")
    page.wait_for_function(TALKS)
    page.reload()
    assert runs(page, server, 0)
    assert "cut off when the page was closed" in page.locator(".reply").inner_text()
    choose(page, "demo")
    button(page, "Regenerate reply").click()
    answered(page)
    assert page.locator(".reply .notice").count() == 0


def test_two_pages_talk_at_once(open_page: Callable[..., Page]) -> None:
    pages = [open_page(), open_page()]
    for number, page in enumerate(pages):
        set_up(page, Temperature="0")
        say(page, f"What is 27 + {58 + number}?")
    for number, page in enumerate(pages):
        shown(page, f"27 + {58 + number} = {85 + number}.")
