"""What the page makes of a model's text: markdown as it streams, and nothing that runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from mlx_qwen3.server.assets import HEADERS, page_routes
from tests.server.conftest import PATIENCE
from tests.server.fake_api import FakeApi, Played, Refused, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Attributes that every such node has are left out; tests of their own look at those.
RENDER = """async ([text, step]) => {
    const { Markdown } = await import("/page/markdown.js");
    const markdown = new Markdown();
    for (let end = step; end < text.length; end += step) markdown.update(text.slice(0, end));
    markdown.update(text);
    const clone = markdown.node.cloneNode(true);
    clone.querySelectorAll("button").forEach((node) => node.remove());
    const common = ["dir", "tabindex", "scope", "title", "target", "rel", "disabled", "aria-label"];
    const nodes = clone.querySelectorAll("*");
    nodes.forEach((node) => common.forEach((name) => node.removeAttribute(name)));
    return clone.innerHTML;
}"""


COUNT = """async (text) => {
    const { Markdown } = await import("/page/markdown.js");
    const markdown = new Markdown();
    markdown.update(text);
    return markdown.node.childElementCount;
}"""


def link(address: str, label: str | None = None) -> str:
    return f'<a href="{address}">{label or address}</a>'


def code(language: str, text: str) -> str:
    head = f'<div class="code-head"><span>{language}</span></div>'
    return f'<div class="code">{head}<pre><code>{text}</code></pre></div>'


# Within a paragraph: text, HTML.
SPANS = {
    "emphasis": ("*a* **b** ~~d~~ _e_", "<em>a</em> <strong>b</strong> <del>d</del> <em>e</em>"),
    "both": ("***c***", "<strong><em>c</em></strong>"),
    "nested": ("**a *b* c**", "<strong>a <em>b</em> c</strong>"),
    "cjk": ("**狗。**真的", "<strong>狗。</strong>真的"),
    "names": ("snake_case_name, __init__", "snake_case_name, <strong>init</strong>"),
    "arithmetic": ("2*3*4, 2 * 3 * 4 and a ** b", "2*3*4, 2 * 3 * 4 and a ** b"),
    "unclosed": ("**a *b", "**a *b"),
    "crossed": ("*a **b* c**", "<em>a **b</em> c**"),
    "escapes": (r"\*a\* \\ \_ 1\. \<b>", r"*a* \ _ 1. &lt;b&gt;"),
    "code": ("`a*b*` ``c`d`` ` e", "<code>a*b*</code> <code>c`d</code> ` e"),
    "lines": ("a\nb  \nc", "a<br>b  <br>c"),
    "link": ('[a *b*](https://x.y/z_(w) "t")', link("https://x.y/z_(w)", "a <em>b</em>")),
    "address": ("(https://x.y/a_b_c).", f"({link('https://x.y/a_b_c')})."),
    "angles": ("<https://x.y/>", link("https://x.y/")),
    "address in chinese": ("见https://x.y/a。下", f"见{link('https://x.y/a')}。下"),
    "image": ("![a](https://x.y/i.png)", link("https://x.y/i.png", "a")),
    "no address": ("[a](file:///b) ![c](d.png)", "a (file:///b) c (d.png)"),
    "formula": (r"\(a_1 * b_2\)", '<span class="math">a_1 * b_2</span>'),
    "dollars": ("$x_1*y_1$, $5 or $6", '<span class="math">x_1*y_1</span>, $5 or $6'),
    "html": ("<b>a</b> &amp; <br> c", "&lt;b&gt;a&lt;/b&gt; &amp;amp; <br> c"),
}
BLOCKS = {
    "headings": (
        "# a\n### b ###\n#c",
        '<h3 class="level-1">a</h3><h5 class="level-3">b</h5><p>#c</p>',
    ),
    "fence": ("```py\n<a>\n\n  b\n```\nc", code("py", "&lt;a&gt;\n\n  b") + "<p>c</p>"),
    "open fence": ("~~~\na", code("", "a")),
    "fence in fence": ("````md\n```\na\n```\n````", code("md", "```\na\n```")),
    "list": ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
    "numbers": ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    "loose": ("1. a\n\n2. b", "<ol><li><p>a</p></li><li><p>b</p></li></ol>"),
    "code in list": (
        "1. a\n   ```\n   b\n   ```\n2. c",
        f"<ol><li>a{code('', 'b')}</li><li>c</li></ol>",
    ),
    "two spaces under a number": (
        "1. a\n  - b\n2. c",
        "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>",
    ),
    "tasks": (
        "- [x] a\n- [ ] b",
        '<ul><li class="task"><input type="checkbox" checked=""> a</li>'
        '<li class="task"><input type="checkbox"> b</li></ul>',
    ),
    "year": ("It was in\n1984. Then", "<p>It was in<br>1984. Then</p>"),
    "quote": ("> a\n> - b\n\nc", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>"),
    "rule": ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    "table": (
        "| a | b |\n|:-:|--:|\n| `x\\|y` | c |\n\nd",
        '<div class="table"><table><thead><tr><th class="align-center">a</th>'
        '<th class="align-right">b</th></tr></thead><tbody><tr><td class="align-center">'
        '<code>x|y</code></td><td class="align-right">c</td></tr></tbody></table></div><p>d</p>',
    ),
    "formula": ("\\[\na_1 * b\n\\]\nx", '<div class="math">a_1 * b</div><p>x</p>'),
    "no formula": ("$$ is money\n\nx", "<p>$$ is money</p><p>x</p>"),
}
CASES = {
    **{name: (text, f"<p>{html}</p>") for name, (text, html) in SPANS.items()},
    **{f"block: {name}": case for name, case in BLOCKS.items()},
}


@pytest.fixture(scope="module")
def blank(browser: Browser) -> Iterator[Page]:
    """An empty page from where the chat page is, under the same policy."""
    empty = Route("/blank", lambda _: HTMLResponse("<!doctype html>", headers=HEADERS))
    app = Starlette(routes=[empty, *page_routes()])
    with serving(app) as address, browser.new_page() as page:
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}blank")
        yield page


@pytest.fixture(scope="module")
def render(blank: Page) -> Callable[..., str]:
    """render(text, step): the HTML of a text that arrives in pieces of `step` characters."""
    return lambda text, step=1_000_000: blank.evaluate(RENDER, [text, step])


@pytest.mark.parametrize(("text", "html"), CASES.values(), ids=CASES)
def test_markdown(render: Callable[..., str], text: str, html: str) -> None:
    assert render(text) == html


def test_a_text_that_streams_ends_as_if_it_came_at_once(render: Callable[..., str]) -> None:
    text = "\n\n".join(text for text, _ in CASES.values() if "~~~" not in text)
    whole = render(text)
    assert [step for step in (1, 3, 7) if render(text, step) != whole] == []


PIECES = [
    *("*a ", "**a", "_a *b ", "[", "[a](", "![", "<", "https://(", "`a`` ", "$a", "$$\n", "\\("),
    *("> ", "- ", "  - a\n    ", "1. a\n\n", "|", "| a |\n|-|\n", "```\n", "# #"),
]


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_keeps_the_page_busy(blank: Page, piece: str) -> None:
    """Regression: a quadratic reader hangs a tab for minutes on this much text, and a call with
    as many arguments overflows the stack."""
    assert blank.evaluate(COUNT, piece * (200_000 // len(piece))) > 0


def test_each_part_of_a_text_has_its_own_direction(page: Page, api: FakeApi) -> None:
    api.play("الكلب صديق\n\n- الأول\n\n狗是人类的朋友\n\n```\nx = 1\n```\n\n| שלום |\n|-|\n| a |")
    ask(page, "كلب")
    parts = page.locator(".reply > .prose > *")
    directions = "nodes => nodes.map((node) => getComputedStyle(node).direction)"
    assert parts.evaluate_all(directions) == ["rtl", "rtl", "ltr", "ltr", "rtl"]
    assert page.locator(".bubble").evaluate_all(directions) == ["rtl"]


ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg onload='window.pwned = 1'><animate onbegin='window.pwned = 1'/></svg>",
    "<iframe src='javascript:parent.pwned = 1'></iframe>",
    "<details open ontoggle='window.pwned = 1'>",
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click]( javascript:window.pwned=1)",
    "[click](data:text/html,<script>pwned=1</script>)",
    "[click](https://x.y/\"onmouseover=\"window.pwned=1)",
    "[<img src=x onerror=pwned=1>](https://x.y/)",
    "![x](javascript:window.pwned=1)",
    "![x](https://x.y/\" onerror=\"window.pwned=1)",
    "<https://x.y/><script>pwned=1</script>",
    "<javascript:window.pwned=1>",
    "```html\n<script>window.pwned = 1</script>\n```",
    "```\"><img src=x onerror=window.pwned=1>\ncode\n```",
    "`<script>window.pwned=1</script>`",
    "| <script>pwned=1</script> |\n|---|\n| <img src=x onerror=pwned=1> |",
    "# <style>*{display:none}</style>",
    "$<img src=x onerror=pwned=1>$",
    "<form action='https://x.y/'><button>Send</button></form>",
    "<a href='https://x.y/' onclick='window.pwned=1'>a</a>",
    "<meta http-equiv=refresh content='0;url=https://x.y/'>",
]  # fmt: skip
# Everything the page itself may make of a message.
TAGS = {
    *(
        "A",
        "ARTICLE",
        "BLOCKQUOTE",
        "BR",
        "BUTTON",
        "CODE",
        "DEL",
        "DETAILS",
        "DIV",
        "EM",
        "FOOTER",
    ),
    *("FORM", "H3", "H4", "H5", "H6", "HR", "INPUT", "LI", "OL", "P", "PRE", "SECTION", "SPAN"),
    *("STRONG", "SUMMARY", "TABLE", "TBODY", "TD", "TEXTAREA", "TH", "THEAD", "TR", "UL"),
    *("svg", "use"),
}
FOUND = """() => {
    const nodes = [...document.querySelectorAll("#column *, #list *")];
    const names = [...new Set(nodes.flatMap((node) => node.getAttributeNames()))];
    return {
        tags: [...new Set(nodes.map((node) => node.tagName))],
        names: names.filter((name) => /^on|^(style|src|srcdoc|action|formaction)$/.test(name)),
        links: nodes.filter((node) => node.tagName === "A").map((node) => node.href),
        rels: nodes.filter((node) => node.target).map((node) => node.rel),
        pwned: window.pwned ?? null,
        text: document.querySelector("#column").textContent,
    };
}"""


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Send", exact=True).wait_for()


def hostile_reply() -> Played:
    """Attacks wherever a model's or a server's words are shown."""
    every = "\n\n".join(ATTACKS)
    function = {"name": ATTACKS[0], "arguments": json.dumps({"a": ATTACKS[1]}) + ATTACKS[2]}
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": every},
        *({"content": every[at : at + 7]} for at in range(0, len(every), 7)),
        {"tool_calls": [{"index": 0, "id": "call_0", "function": function}]},
    ]
    return Played(deltas)


def test_nothing_in_a_reply_runs(api: FakeApi, page: Page, watch: Any) -> None:
    api.models = [{"id": attack} for attack in ATTACKS[:3]]
    page.reload()
    api.replies.append(hostile_reply())
    ask(page, ATTACKS[0] + ATTACKS[1])
    page.locator("summary").click()
    page.locator("details .prose a").first.wait_for()
    for address in page.locator("#column a").all():
        address.hover(force=True)
    api.replies.append(Refused(400, ATTACKS[1]))
    watch.expected.append("400")
    ask(page, ATTACKS[2])
    page.get_by_role("alert").wait_for()

    found = page.evaluate(FOUND)
    assert found["pwned"] is None
    assert set(found["tags"]) <= TAGS
    assert found["names"] == []
    assert {link.split(":")[0] for link in found["links"]} <= {"http", "https"}
    assert set(found["rels"]) == {"noopener noreferrer"}
    for seen in ("<script>window.pwned = 1</script>", "<svg onload=", "javascript:window.pwned=1"):
        assert seen in found["text"]


def test_the_browser_itself_refuses_html_made_from_text(page: Page, watch: Any) -> None:
    """The policy is in force, should the page's code ever forget."""
    watch.expected.append("TrustedHTML|Content Security Policy")
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return null; }"
        " catch (error) { return error.name; } }"
    )
    assert refused == "TypeError"
    page.evaluate(
        "() => new Promise((done) => document.body.append(Object.assign("
        "document.createElement('img'), { src: 'https://x.y/i.png', onerror: done })))"
    )
    assert any("img-src" in error for error in watch.errors)
    watch.outside.clear()  # the browser names it as asked for, and blocks it
