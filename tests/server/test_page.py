"""The chat page in a real browser: what a person does with it, and what comes of all replies.

Replies are played here; with a model it talks in test_page_served.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.server.chat_page import (
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
from tests.server.conftest import PATIENCE, Watch
from tests.server.fake_api import FakeApi, Played, Refused, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "completion_tokens_details": {"reasoning_tokens": 5},
    "prompt_tokens_details": {"cached_tokens": 20},
}
ENDLESS = Played([{"content": f"word{number} "} for number in range(10_000)], pause=0.02)


# What is sent.


def test_settings_are_sent_and_kept(api: FakeApi, page: Page) -> None:
    set_up(
        page, System_prompt="Be brief.", Temperature="0.5", Longest_reply="99", Thinking_budget="7"
    )
    page.reload()
    api.play("a")
    ask(page, "b")
    body = api.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["thinking_budget"]) == (0.5, 99, 7)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert "tools" not in body


def test_a_setting_that_makes_no_sense_is_marked_and_not_used(api: FakeApi, page: Page) -> None:
    button(page, "Settings").click()
    page.get_by_label("Tools").fill("[{")
    page.get_by_label("Temperature").fill("-1")
    assert page.locator("[data-error=tools]").inner_text().startswith("Tools: ")
    assert page.locator("[data-error=temperature]").inner_text()
    button(page, "Done").click()
    api.play("a")
    ask(page, "b")
    assert not {"tools", "temperature"} & api.requests[0].keys()


@pytest.mark.parametrize(
    ("mode", "on", "sent"),
    [
        ("hybrid", True, {"enable_thinking": True}),
        ("hybrid", False, {"enable_thinking": False}),
        ("always", True, None),
        ("never", True, None),
        (None, True, None),
        (None, False, {"enable_thinking": False}),
    ],
)
def test_thinking_is_switched_where_a_model_can(
    api: FakeApi, page: Page, mode: str | None, on: bool, sent: object
) -> None:
    """Whoever always thinks, or never does, refuses to be told."""
    api.models = [{"id": "demo", "thinking": mode} if mode else {"id": "demo"}]
    page.reload()
    page.locator("#model:enabled").wait_for()
    chip = page.locator("#think")
    assert (chip.is_visible(), chip.is_enabled()) == (mode != "never", mode != "always")
    if not on:
        think(page, False)
    api.play("a")
    ask(page, "b")
    assert api.requests[0].get("chat_template_kwargs") == sent


def test_the_chosen_model_is_asked_and_remembered(api: FakeApi, page: Page) -> None:
    api.models = [{"id": "small"}, {"id": "large"}]
    page.reload()
    page.get_by_label("Model", exact=True).select_option("large")
    page.reload()
    api.play("a", usage=USAGE)
    ask(page, "b")
    assert api.requests[0]["model"] == "large"
    assert page.locator(".statistics").inner_text().endswith("large")


# A reply's life.


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_reply_is_stopped_and_what_was_said_stays(api: FakeApi, page: Page, how: str) -> None:
    api.replies.append(ENDLESS)
    say(page, "Go on")
    shown(page, "word3 ")
    button(page, "Stop").click() if how == "button" else field(page).press("Escape")
    answered(page)
    assert "You stopped this reply." in page.locator(".reply").inner_text()
    said = replies(page)[0]
    assert said.startswith("word0 word1")
    for _ in range(500):  # the server sees a client leave when it next sends
        if api.streaming == 0:
            break
        page.wait_for_timeout(10)
    assert api.streaming == 0
    assert replies(page)[0] == said
    api.play("Well.")
    ask(page, "And?")
    assert api.requests[1]["messages"][1]["content"].strip() == said.strip()


def test_a_reply_is_made_anew(api: FakeApi, page: Page) -> None:
    api.play("one")
    ask(page, "Say something")
    api.play("two")
    button(page, "Regenerate reply").click()
    shown(page, "two")
    answered(page)
    assert replies(page) == ["two"]
    assert api.requests[0]["messages"] == api.requests[1]["messages"]


def test_the_last_message_is_edited(api: FakeApi, page: Page) -> None:
    for answer in ("one", "two"):
        api.play(answer)
        ask(page, f"message {answer}")
    field(page).press("ArrowUp")
    editor = page.get_by_label("Edit message", exact=True).and_(page.locator("textarea"))
    editor.press("Escape")
    assert editor.count() == 0
    assert replies(page) == ["one", "two"]
    page.locator(".user").last.hover()
    button(page, "Edit message").click()
    editor.fill("message three")
    api.play("three")
    editor.press("Enter")
    shown(page, "three")
    answered(page)
    assert replies(page) == ["one", "three"]
    assert [message["content"] for message in api.requests[2]["messages"]] == [
        *("message one", "one", "message three"),
    ]


def test_a_reload_keeps_the_conversation(api: FakeApi, page: Page) -> None:
    api.replies.append(Played([{"reasoning_content": "Hm."}, {"content": "**bold**"}], usage=USAGE))
    ask(page, "Say it")
    before = page.locator("#column").inner_html()
    page.reload()
    assert page.locator("#column").inner_html() == before
    assert page.title().startswith("Say it")
    api.play("again")
    ask(page, "More")
    assert roles(api.requests[1]) == ["user", "assistant", "user"]


def test_a_reload_amid_a_reply_keeps_what_was_said(api: FakeApi, page: Page) -> None:
    api.replies.append(ENDLESS)
    say(page, "Go on")
    shown(page, "word5 ")
    page.reload()
    assert "word0 word1 word2 word3 word4 word5" in replies(page)[0]
    assert "cut off when the page was closed" in page.locator(".reply").inner_text()
    api.play("fresh")
    button(page, "Regenerate reply").click()
    shown(page, "fresh")


def test_replies_go_on_while_another_chat_is_on_show(api: FakeApi, page: Page) -> None:
    api.replies.append(Played([{"content": "slow "}] * 40, pause=0.05))
    say(page, "First chat")
    shown(page, "slow")
    button(page, "New chat").click()
    api.play("quick")
    ask(page, "Second chat")
    assert replies(page) == ["quick"]
    page.get_by_role("link", name="First chat").click()
    shown(page, "slow")
    answered(page)
    assert replies(page)[0].split() == ["slow"] * 40
    page.go_back()
    shown(page, "quick")


def test_chats_are_deleted_and_brought_back(api: FakeApi, page: Page) -> None:
    api.play("kept")
    ask(page, "Keep me")
    page.get_by_role("link", name="Keep me").hover()
    button(page, "Delete chat: Keep me").click()
    assert page.locator("#list a").count() == 0
    assert replies(page) == []
    button(page, "Undo").click()
    page.get_by_role("link", name="Keep me").click()
    shown(page, "kept")
    button(page, "Delete chat: Keep me").click()
    page.reload()
    assert page.locator("#list a").count() == 0


def test_a_browser_without_room_says_so(api: FakeApi, page: Page) -> None:
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    api.play("still here")
    ask(page, "Hello")
    assert "no room left" in page.locator("#toast").inner_text()
    assert replies(page) == ["still here"]


# Trouble.


def test_a_busy_server_is_asked_again_in_its_own_time(
    api: FakeApi, page: Page, watch: Watch
) -> None:
    watch.expected.append("429")
    api.replies.append(Refused(429, "4 requests wait", headers={"Retry-After": "1"}))
    api.play("at last")
    say(page, "Hello")
    alert = page.get_by_role("alert")
    assert "The server is busy" in alert.inner_text()
    assert "4 requests wait" in alert.inner_text()
    assert "Trying again in 1 second" in alert.inner_text()
    shown(page, "at last")
    answered(page)
    assert (len(api.requests), alert.count()) == (2, 0)


def test_a_key_is_asked_for_and_kept_for_the_tab(
    api: FakeApi, page: Page, watch: Watch, open_page: Callable[..., Page]
) -> None:
    watch.expected.append("401")
    page.locator("#model:enabled").wait_for()
    api.key = "secret"
    api.play("welcome")
    say(page, "Hello")
    given = page.get_by_label("Key", exact=True)
    given.fill("wrong")
    given.press("Enter")
    page.get_by_text("was not accepted").wait_for()
    given.fill("secret")
    given.press("Enter")
    shown(page, "welcome")
    page.reload()
    page.locator("#model:enabled").wait_for()
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    other = open_page()
    other.get_by_label("Key", exact=True).wait_for()


def test_a_stream_that_breaks_off_keeps_what_was_said(
    api: FakeApi, page: Page, watch: Watch
) -> None:
    watch.expected.append("ERR_INCOMPLETE_CHUNKED_ENCODING")
    api.play("half a ", "sentence", pause=0.1, ends=False)
    ask(page, "Hello")
    assert replies(page) == ["half a sentence"]
    assert "connection broke off" in page.get_by_role("alert").inner_text()
    api.play("a whole sentence")
    button(page, "Try again").click()
    shown(page, "a whole sentence")
    answered(page)
    assert replies(page) == ["a whole sentence"]


def test_a_server_that_is_gone_is_found_again(browser: Browser) -> None:
    api = FakeApi()
    with ExitStack() as stack:
        page = stack.enter_context(browser.new_page())
        page.set_default_timeout(PATIENCE)
        with serving(api.app()) as address:
            page.goto(address)
            page.locator("#model:enabled").wait_for()
        say(page, "Anyone?")
        alert = page.locator(".reply").get_by_role("alert")
        assert "does not answer" in alert.inner_text()
        api.play("back")
        stack.enter_context(serving(api.app(), port=urlsplit(address).port or 0))
        alert.get_by_role("button", name="Try again").click()
        shown(page, "back")
        page.locator("#trouble .notice").wait_for(state="detached")


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (Refused(400, "logit_bias is 3"), "refused this request. It says: “logit_bias is 3”."),
        (Refused(404, "no model x"), "does not know this model"),
        (Refused(500, "oh"), "went wrong in the server"),
        (Refused(503, "loading"), "not ready yet"),
    ],
)
def test_refusals_are_said_in_words(
    api: FakeApi, page: Page, watch: Watch, refused: Refused, words: str
) -> None:
    watch.expected.append(str(refused.status))
    api.replies.append(refused)
    ask(page, "Hello")
    assert words in page.get_by_role("alert").inner_text()
    page.reload()
    assert words in page.get_by_role("alert").inner_text()


# Keys, eyes, ears.


def test_enter_sends_and_shift_enter_does_not(api: FakeApi, page: Page) -> None:
    api.play("a")
    field(page).press("Enter")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert api.requests == []
    page.keyboard.press("Enter")
    answered(page)
    assert api.requests[0]["messages"][0]["content"] == "one\ntwo"
    assert field(page).input_value() == ""


def test_enter_that_chooses_a_character_does_not_send(api: FakeApi, page: Page) -> None:
    api.play("好")
    field(page).focus()
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "ni", "selectionStart": 2, "selectionEnd": 2})
    enter = {"key": "Enter", "windowsVirtualKeyCode": 229}  # as browsers report it meanwhile
    keyboard.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    assert api.requests == []
    keyboard.send("Input.insertText", {"text": "你好"})
    field(page).press("Enter")
    answered(page)
    assert api.requests[0]["messages"][0]["content"] == "你好"


def test_the_keyboard_alone_is_enough(api: FakeApi, page: Page) -> None:
    api.play("a")
    ask(page, "First")
    page.keyboard.press("Meta+k" if "Mac" in page.evaluate("navigator.platform") else "Control+k")
    assert replies(page) == []
    assert page.evaluate("document.activeElement.id") == "field"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "think"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Space")
    assert page.locator("#think").get_attribute("aria-pressed") == "false"


def test_a_reply_is_read_out_by_paragraphs(api: FakeApi, page: Page) -> None:
    api.play("One *para", "graph*.\n\n", "Another.")
    ask(page, "Hello")
    live = page.locator("#live[aria-live=polite]")
    assert live.locator("p").all_inner_texts() == [
        *("The model is answering.", "One paragraph.", "Another."),
    ]
    page.reload()
    assert live.inner_text() == ""  # what is old is not read again


def test_every_control_has_a_name(api: FakeApi, page: Page) -> None:
    api.play("```\ncode\n```", usage=USAGE)
    ask(page, "Hello")
    button(page, "Settings").click()
    nameless = page.locator("button, select, textarea, input").evaluate_all(
        "nodes => nodes.filter((node) => !(node.ariaLabel || node.textContent.trim()"
        " || node.labels?.length)).map((node) => node.outerHTML)"
    )
    assert nameless == []


def test_code_is_copied(api: FakeApi, open_page: Callable[..., Page]) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    api.play("```py\nx = '<b>'\n  y\n```\n", "after")
    ask(page, "Hello")
    button(page, "Copy code").click()
    page.locator("[data-copy] use[href='#icon-check']").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == "x = '<b>'\n  y"


def test_light_and_dark(open_page: Callable[..., Page]) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = open_page(color_scheme="light")
    dark = open_page(color_scheme="dark")
    colours = light.evaluate(ground), dark.evaluate(ground)
    assert colours[0] != colours[1]
    theme = light.locator("#theme")
    theme.click()
    theme.click()
    assert theme.inner_text().strip() == "Theme: dark"
    assert light.evaluate(ground) == colours[1]
    light.reload()
    assert light.evaluate(ground) == colours[1]
    theme.click()
    assert light.evaluate(ground) == colours[0]


def test_a_narrow_screen(api: FakeApi, open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 320, "height": 600})
    wide = "| " + " | ".join(f"column {number}" for number in range(12)) + " |"
    api.play(f"{'x' * 400}\n\n```\n{'y' * 400}\n```\n\n{wide}\n{'|-' * 12}|\n{wide}", usage=USAGE)
    ask(page, "z" * 400)
    overflow = (
        "() => ['body', '#scroller', '#dock'].map((name) => document.querySelector(name))"
        ".map((node) => node.scrollWidth - node.clientWidth)"
    )
    assert page.evaluate(overflow) == [0, 0, 0]
    assert not page.locator("#panel").is_visible()
    button(page, "Show chats").click()
    page.keyboard.press("Escape")
    assert not page.locator("#panel").is_visible()


def test_the_page_follows_a_reply_unless_one_reads_above(api: FakeApi, page: Page) -> None:
    lines = [{"content": f"line {number}\n\n"} for number in range(60)]
    api.replies.append(Played(lines, pause=0.01))
    ask(page, "Hello")
    at_end = (
        "() => { const { scrollHeight, scrollTop, clientHeight } ="
        " document.querySelector('#scroller');"
        " return scrollHeight > clientHeight && scrollHeight - scrollTop - clientHeight < 2; }"
    )
    page.wait_for_function(at_end)
    page.locator("#scroller").evaluate("node => node.scrollTop = 0")
    api.replies.append(Played(lines, pause=0.03))
    say(page, "More")
    page.wait_for_function(at_end)  # who asks wants to see the answer
    page.locator(".reply").last.get_by_text("line 5", exact=True).wait_for()
    page.locator("#scroller").evaluate("node => node.scrollTop = 0")
    answered(page)
    assert page.locator("#scroller").evaluate("node => node.scrollTop") == 0
    button(page, "To the latest message").click()
    page.wait_for_function(at_end)
