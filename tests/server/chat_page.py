"""The chat page as a person uses it: where things are, and what one does with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

WEATHER = """[{"name": "get_weather", "description": "Weather", "parameters":
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}]"""


def field(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def say(page: Page, text: str) -> None:
    """Send, without waiting for the reply."""
    field(page).fill(text)
    field(page).press("Enter")


def ask(page: Page, text: str) -> None:
    """Send, and wait until the reply has ended."""
    say(page, text)
    answered(page)


def answered(page: Page) -> None:
    button(page, "Send").wait_for()


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def replies(page: Page) -> list[str]:
    """The answers on show."""
    return page.locator(".reply > .prose").all_inner_texts()


def shown(page: Page, text: str) -> None:
    """Wait until the last reply says this, among other things."""
    page.locator(".reply").last.get_by_text(text).wait_for()


def roles(body: dict[str, Any]) -> list[str]:
    return [message["role"] for message in body["messages"]]


def think(page: Page, on: bool) -> None:
    chip = page.locator("#think")
    if (chip.get_attribute("aria-pressed") == "true") != on:
        chip.click()


def set_up(page: Page, **fields: str) -> None:
    """Fill in settings, by their labels."""
    button(page, "Settings").click()
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    button(page, "Done").click()
