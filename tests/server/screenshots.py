"""Pictures of the chat page, to look at: `python -m tests.server.screenshots FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.server.browser import chromium, find_chromium
from tests.server.fake_api import FakeApi, Played, Refused, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDE = {"width": 1180, "height": 800}
NARROW = {"width": 390, "height": 780}
USAGE = {
    "prompt_tokens": 412,
    "completion_tokens": 238,
    "completion_tokens_details": {"reasoning_tokens": 96},
    "prompt_tokens_details": {"cached_tokens": 380},
}
THOUGHT = """The user wants a short comparison.

1. Arrays: contiguous, O(1) access.
2. Linked lists: O(1) insertion at a known node.

Let me write a table and a small **Python** example."""
ANSWER = """## Arrays and linked lists

Both keep a *sequence*; they differ in **where the elements lie** in memory.

| Operation | Array | Linked list |
|:--|:-:|--:|
| Access by index | $O(1)$ | $O(n)$ |
| Insert at front | $O(n)$ | $O(1)$ |
| Memory overhead | none | one pointer each |

```python
class Node:
    def __init__(self, value, rest=None):
        self.value, self.rest = value, rest
```

Use `list` unless you have measured a reason not to:

1. It is contiguous, so caches like it.
   - and so do you
   - [x] sorting included
2. See <https://docs.python.org/3/> for `collections.deque`.

> Premature optimisation is the root of all evil.
"""
RTL = """الكلب صديق الإنسان، وهو **وفيّ** منذ آلاف السنين.

- الأول
- الثاني

狗是人类的朋友。**真的。**大家都知道。
"""


def answered(api: FakeApi, page: Page, question: str, *deltas: dict[str, object]) -> None:
    """Ask, and have this answered."""
    api.replies.append(Played(deltas, usage=USAGE, pause=0.05))
    page.get_by_label("Message", exact=True).fill(question)
    page.keyboard.press("Enter")
    page.locator("[aria-busy=true]").wait_for(state="detached")
    page.get_by_role("button", name="Send", exact=True).wait_for()


def rich(api: FakeApi, page: Page) -> None:
    pieces = [{"content": ANSWER[at : at + 40]} for at in range(0, len(ANSWER), 40)]
    answered(
        api,
        page,
        "Compare arrays and linked lists, briefly.",
        {"reasoning_content": THOUGHT[:60]},
        {"reasoning_content": THOUGHT[60:]},
        *pieces,
    )


def thinking_open(api: FakeApi, page: Page) -> None:
    rich(api, page)
    page.locator("summary").click()
    page.locator("#scroller").evaluate("node => node.scrollTop = 0")


def tool_call(api: FakeApi, page: Page) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "celsius"}'}
    call = {"index": 0, "id": "call_0", "function": function}
    thought = {"reasoning_content": "The user wants the weather. I call get_weather."}
    answered(api, page, "What is the weather in Paris?", thought, {"tool_calls": [call]})
    page.get_by_label("Result of get_weather").fill('{"degrees": 21, "sky": "clear"}')


def tool_result(api: FakeApi, page: Page) -> None:
    tool_call(api, page)
    api.play("It is 21 °C and clear in Paris.", usage=USAGE, pause=0.1)
    page.get_by_role("button", name="Send result").click()
    page.get_by_text("clear in Paris.").wait_for()


def busy(api: FakeApi, page: Page) -> None:
    api.replies.append(Refused(429, "4 requests are running", headers={"Retry-After": "30"}))
    page.get_by_label("Message", exact=True).fill("Hello?")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()


def streaming(api: FakeApi, page: Page) -> None:
    api.replies.append(Played([{"reasoning_content": "Hm. "}] * 50, pause=0.2))
    page.get_by_label("Message", exact=True).fill("Think about it.")
    page.keyboard.press("Enter")
    page.wait_for_timeout(2500)


def languages(api: FakeApi, page: Page) -> None:
    answered(api, page, "حدثني عن الكلاب، 用两种语言", {"content": RTL})


def settings(api: FakeApi, page: Page) -> None:
    page.get_by_role("button", name="Settings").click()


def drawer(api: FakeApi, page: Page) -> None:
    rich(api, page)
    page.get_by_role("button", name="Show chats").click()


def editing(api: FakeApi, page: Page) -> None:
    rich(api, page)
    page.get_by_label("Message", exact=True).press("ArrowUp")
    page.locator("#scroller").evaluate("node => node.scrollTop = 0")


def key(api: FakeApi, page: Page) -> None:
    api.key = "secret"
    page.reload()
    page.get_by_label("Key", exact=True).wait_for()
    api.key = None


def nothing(api: FakeApi, page: Page) -> None:
    pass


Scene = Callable[[FakeApi, "Page"], None]
SCENES: dict[str, tuple[Scene, dict[str, int], str]] = {
    "empty": (nothing, WIDE, "light"),
    "light": (rich, WIDE, "light"),
    "dark": (rich, WIDE, "dark"),
    "thinking": (thinking_open, WIDE, "light"),
    "tool-call": (tool_call, WIDE, "light"),
    "tool-result-dark": (tool_result, WIDE, "dark"),
    "error": (busy, WIDE, "light"),
    "error-narrow-dark": (busy, NARROW, "dark"),
    "streaming": (streaming, WIDE, "light"),
    "languages": (languages, WIDE, "light"),
    "settings": (settings, WIDE, "light"),
    "settings-narrow-dark": (settings, NARROW, "dark"),
    "narrow": (rich, NARROW, "light"),
    "narrow-empty": (nothing, NARROW, "light"),
    "drawer-dark": (drawer, NARROW, "dark"),
    "editing": (editing, WIDE, "light"),
    "key": (key, WIDE, "dark"),
}


def main(folder: Path, wanted: list[str]) -> None:
    """Write FOLDER/scene.png for each scene, or for those named."""
    path = find_chromium()
    if path is None:
        sys.exit("no Chromium found; install one, or name it in CHROMIUM")
    folder.mkdir(parents=True, exist_ok=True)
    api = FakeApi()
    with serving(api.app()) as address, chromium(path) as browser:
        for name, (scene, size, scheme) in SCENES.items():
            if wanted and name not in wanted:
                continue
            context = browser.new_context(viewport=size, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.on("console", lambda message, name=name: print(name, message.text))
            page.on("pageerror", lambda error, name=name: print(name, error))
            page.goto(address)
            page.locator("#model:enabled").wait_for()
            if scene is settings and size is NARROW:
                page.get_by_role("button", name="Show chats").click()
            scene(api, page)
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"{name}.png")
            context.close()
            api.replies.clear()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
