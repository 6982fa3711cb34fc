"""Markdown as it streams: the same lines however it was cut, none too wide, none that escapes."""

from __future__ import annotations

import io
import random
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from mlx_qwen3.cli.markdown import MarkdownStream
from mlx_qwen3.cli.wrap import ansi, clip, wrap

SAMPLE = """\
# Title with `code`

Some **bold**, *italic*, ~~struck~~ and `code` text with [a link](https://example.com/a_b_c).
A second line, and 5 < 6 && 7 > 2.

- one
- two with **bold
  over lines**
  1. nested
  2. again

- loose now

3. three
4. four

```python
def f(x):

    return x * 2  # comment
```

| a | b | c |
|---|:-:|--:|
| 1 | `x+y` | long cell with several words in it |
| 你好世界 | **b** | 3 |

> quoted
> - with a list

***

    indented code

$$
x_1 = \\frac{a_2}{b*c*d}
$$

你好，世界！这是一个很长的中文段落，用来检查换行是否正确：标点符号不能出现在行首。
日本語「括弧」も。 안녕하세요 세계 여러분.

<div>html</div> &lt;entity&gt; \\* \\[ y_1 * z_1 * 2 \\]
[ref]: http://example.com
~~~
unclosed code
"""
SGR = re.compile(r"\x1b\[[0-9;]*m")


def streamed(pieces: list[str], width: int = 60) -> list[str]:
    """The final lines, styles left out, of text that comes in pieces."""
    stream = MarkdownStream()
    lines: list[Text] = []
    for piece in pieces:
        stream.feed(piece)
        final, live = stream.take(width)
        lines += final
        assert all(cell_len(line.plain) <= width for line in live)
    return [line.plain for line in (*lines, *stream.finish(width))]


def shown(text: str, width: int = 60) -> str:
    return "\n".join(streamed([text], width))


def escaped(text: str) -> str:
    """What is written to the terminal."""
    stream = MarkdownStream()
    stream.feed(text)
    console = Console(file=io.StringIO(), force_terminal=True)
    return "\n".join(ansi(stream.finish(60), console))


def cuts(text: str, numbers: random.Random) -> list[str]:
    places = sorted(numbers.sample(range(len(text)), numbers.randrange(1, 80)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("width", [20, 60, 120])
def test_it_does_not_matter_how_the_text_was_cut(width: int) -> None:
    whole = streamed([SAMPLE], width)
    assert all(cell_len(line) <= width for line in whole)
    assert streamed(list(SAMPLE), width) == whole
    numbers = random.Random(width)
    for _ in range(40):
        assert streamed(cuts(SAMPLE, numbers), width) == whole


def test_no_text_is_lost() -> None:
    words = re.findall(r"\w+", re.sub(r"[`*]|&\w+;", " ", SAMPLE))
    seen = re.sub(r"\s", "", shown(SAMPLE, 200))
    assert [word for word in words if word not in seen] == []


def test_random_text_neither_fails_nor_gets_too_wide() -> None:
    numbers = random.Random(5)
    parts = [
        *"\n\n\n  #*_`~|-+>1.)[](){}!$\\&;:<\"' \tab",
        "```\n",
        "你",
        "é",
        "👩‍🚀",
        "| - |",
        "\r",
    ]
    for _ in range(300):
        text = "".join(numbers.choices(parts, k=numbers.randrange(1, 120)))
        for width in (1, 7, 40):
            stream = MarkdownStream()
            for piece in (text[:30], text[30:]):
                stream.feed(piece)
                stream.take(width)
            assert all(cell_len(line.plain) <= max(width, 12) for line in stream.finish(width))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb", "a\nb"),
        ("# Head\ntext", "Head\n\ntext"),
        ("- a\n- b", " • a\n • b"),
        ("- a\n\n- b", " • a\n\n • b"),
        ("9. a\n10. b", "  9. a\n 10. b"),
        ("- a\n  - b", " • a\n    • b"),
        ("> a\n> b", "▌ a\n▌ b"),
        ("```py\nx = 1\n```", "  py\n  x = 1"),
        ("| a | b |\n|---|--:|\n| 1 | 22 |", "a │  b\n──┼───\n1 │ 22"),
        ("[a](http://b)", "a (http://b)"),
        ("<http://b>", "http://b"),
        ("![cat](c.png)", "cat (c.png)"),
        ("cost: $5 and $6_7_8", "cost: $5 and $6_7_8"),
        (r"\(a_1*b*c\) \*", r"\(a_1*b*c\) *"),
        ("<b>x</b>", "<b>x</b>"),
        ("a\n---", "a\n\n────────────────────────────────────────"),
        ("[x]: http://y", "[x]: http://y"),
    ],
)
def test_blocks(text: str, lines: str) -> None:
    assert shown(text) == lines


@pytest.mark.parametrize(
    ("text", "seen"),
    [("so **bol", "so bol"), ("so **", "so"), ("so **bold*", "so bold"), ("run `ls", "run ls")],
)
def test_what_is_still_open_looks_as_it_will(text: str, seen: str) -> None:
    stream = MarkdownStream()
    stream.feed(text)
    assert [line.plain for line in stream.take(60)[1]] == [seen]


def test_code_goes_out_line_by_line_with_its_language() -> None:
    stream = MarkdownStream()
    out: list[str] = []
    for piece in ("```py", "thon\nx = 1\ny =", " 2\nz"):
        stream.feed(piece)
        out += [line.plain for line in stream.take(60)[0]]
    assert out == ["  python", "  x = 1", "  y = 2"]


def test_a_table_too_wide_wraps_its_widest_column() -> None:
    text = "| id | words |\n|---|---|\n| 1 | one two three four five six seven |"
    assert shown(text, 24).split("\n") == [
        "id │ words",
        "───┼────────────────────",
        "1  │ one two three four",
        "   │ five six seven",
    ]


HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\bb",
    "&#27;[31m",
    "&#x1b;]52;c;AAAA&#7;",
    "[x](http://a/\x1b[31m)",
    "[x](http://a/&#27;[31m)",
    "`\x1b[2J`",
    "```\x1b[2J\n\x1b[2J\n```",
    "```py\n'\x1b]0;x\x07'\n```",
    "| \x1b[1A |\n|---|\n| \x1b[1A |",
    "$\x1b[2J$",
    "![\x1b[2J](\x1b[2J)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_model_cannot_control_the_terminal(text: str) -> None:
    seen = SGR.sub("", escaped(text))
    assert all(char == "\n" or char.isprintable() for char in seen), seen


def test_without_colours_there_is_still_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    codes = {code for found in SGR.findall(escaped(SAMPLE)) for code in found[2:-1].split(";")}
    assert codes <= {"0", "1", "2", "3", "4", "9"}
    assert "1" in codes


# --- wrapping


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("one  two", 4, ["one", "two"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("a\n\nb", 5, ["a", "", "b"]),
        ("你好世界", 5, ["你好", "世界"]),
        ("你好，世界", 4, ["你", "好，", "世界"]),
        ("see「你好」now", 8, ["see「你", "好」now"]),
        ("abc 你好", 6, ["abc 你", "好"]),
        ("", 5, [""]),
    ],
)
def test_wrap(text: str, width: int, lines: list[str]) -> None:
    assert [line.plain for line in wrap(Text(text), width)] == lines


def test_styles_survive_a_break() -> None:
    text = Text.assemble("one ", ("two three", "bold"))
    first, second = wrap(text, 7)
    assert [span.style for span in first.spans] == ["bold"]
    assert [span.style for span in second.spans] == ["bold"]


def test_clip() -> None:
    assert clip("你好世界", 8) == "你好世界"
    assert clip("你好世界", 7) == "你好世…"
    assert clip("a\nb", 10) == "a b"
