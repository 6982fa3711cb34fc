"""Copying short lists, text and code exactly, and small edits of them."""

from __future__ import annotations

import json
import re
from random import Random

from chat import Example, assistant, held_out, user
from words import ADJECTIVES, NAMES, NOUNS, SYLLABLES, VERBS, words

COPY_TEXT = (
    "Repeat exactly: {x}",
    "Repeat this: {x}",
    "Copy this: {x}",
    "Say exactly: {x}",
    "Copy the following text:\n{x}",
    "Repeat after me: {x}",
    "Please copy: {x}",
)
COPY_LIST = (
    "Copy this list:\n{x}",
    "Copy this list: {x}",
    "Repeat this list: {x}",
    "Repeat the list exactly:\n{x}",
    "Please copy this list exactly:\n\n{x}",
)
COPY_CODE = (
    "Copy this code:\n{x}",
    "Copy this code exactly:\n\n{x}",
    "Repeat this code:\n\n{x}",
    "Please repeat the following code exactly:\n{x}",
    "Copy the code below without changes.\n\n{x}",
)
REPLACE = (
    "Replace {old} with {new} in: {x}",
    "Replace {old} with {new} in this list:\n{x}",
    "Change every {old} to {new}: {x}",
)
RENAME = (
    "Rename {old} to {new} in this code:\n\n{x}",
    "Replace {old} with {new} in this code:\n{x}",
    "Change {old} to {new} in the code below.\n\n{x}",
)


def coined(rng: Random, low: int = 2, high: int = 4) -> str:
    """A made-up word."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(low, high)))


def identifier(rng: Random) -> str:
    """A variable or function name."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NOUNS)
    if kind < 0.65:
        return f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    if kind < 0.8:
        return f"{rng.choice(ADJECTIVES)}_{rng.choice(NOUNS)}{rng.choice(('', '', '_2', '1'))}"
    return coined(rng) + rng.choice(("", "", str(rng.randrange(100))))


def number(rng: Random) -> str:
    text = str(rng.randrange(10 ** rng.randint(1, 5)))
    return text if rng.random() < 0.85 else f"{text}.{rng.randrange(100)}"


def _items(rng: Random) -> list[str]:
    count = rng.randint(2, 12)
    kind = rng.random()
    if kind < 0.35:
        return [rng.choice(words()) for _ in range(count)]
    if kind < 0.5:
        return [number(rng) for _ in range(count)]
    if kind < 0.6:
        return [rng.choice(NAMES) for _ in range(count)]
    makers = (coined, identifier, number, lambda r: r.choice(words()), lambda r: r.choice(NAMES))
    return [rng.choice(makers)(rng) for _ in range(count)]


def layout(rng: Random, items: list[str]) -> str:
    """A list as people write it."""
    form = rng.randrange(7)
    if form == 0:
        return "\n".join(f"- {item}" for item in items)
    if form == 1:
        return "\n".join(f"{index}. {item}" for index, item in enumerate(items, 1))
    if form == 2:
        return json.dumps(items)
    if form == 3:
        return "\n".join(items)
    return (", ", ", ", " ")[form - 4].join(items)


def _text(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(4, 24)))
    if kind < 0.7:
        text = " ".join(rng.choice(words()) for _ in range(rng.randint(2, 14)))
        return text.capitalize() + rng.choice((".", "!", "?", ""))
    if kind < 0.9:
        first, second = rng.choice(NAMES), rng.choice(NAMES)
        noun, adjective = rng.choice(NOUNS), rng.choice(ADJECTIVES)
        return f"{first} gave {second} the {adjective} {noun} at {rng.randrange(1, 13)} o'clock."
    return f"{coined(rng)}@{coined(rng)}.com, {coined(rng)}: {number(rng)}"


def code(rng: Random) -> str:
    """A few lines of Python, JSON, shell or JavaScript."""
    a, b, c, f = (identifier(rng) for _ in range(4))
    n, m = number(rng), rng.randrange(1, 100)
    text, op = rng.choice(NOUNS), rng.choice("+-*")
    shapes = (
        f"def {f}({a}, {b}):\n    return {a} {op} {b}",
        f"def {f}({a}):\n    {b} = {a} {op} {m}\n    if {b} > {n}:\n        return {b}\n"
        f"    return {a}",
        f"for {a} in range({m}):\n    print({a} {op} {n})",
        f"{a} = [{n}, {m}, {number(rng)}]\n{b} = sum({a})\nprint({b})",
        f'{a} = {{"{text}": {n}, "{c}": {m}}}\nprint({a}["{text}"])',
        f"class {f.title().replace('_', '')}:\n    def __init__(self, {a}):\n"
        f"        self.{a} = {a}\n\n    def {b}(self):\n        return self.{a} {op} {m}",
        f'import {a}\n\nwith open("{text}.txt") as {b}:\n    for line in {b}:\n'
        f"        {c}.append(line.strip())",
        f"while {a} < {n}:\n    {a} += {m}\n    {b}.append({a})",
        f"try:\n    {a} = {f}({b})\nexcept ValueError:\n    {a} = {n}",
        f"function {f}({a}, {b}) {{\n  const {c} = {a} {op} {b};\n  return {c} > {n};\n}}",
        f'{{"{a}": {n}, "{b}": "{text}", "{c}": [{m}, {number(rng)}]}}',
        f"mkdir {a}\ncd {a}\ntouch {b}.py\npython {b}.py --{c} {n}",
    )
    parts = [rng.choice(shapes)]
    if rng.random() < 0.2:
        other = identifier(rng)
        parts.append(f"{other} = {f}({n})\nprint({other})")
    return "\n\n".join(parts)


def fenced(rng: Random, body: str) -> str:
    language = rng.choice(("python", "python", "python", ""))
    return f"```{language}\n{body}\n```"


def _copy(rng: Random, kind: str) -> tuple[str, str]:
    if kind == "copy list":
        return rng.choice(COPY_LIST), layout(rng, _items(rng))
    if kind == "copy code":
        return rng.choice(COPY_CODE), fenced(rng, code(rng))
    return rng.choice(COPY_TEXT), _text(rng)


def copy_sample(rng: Random, test: bool, kind: str | None = None) -> Example:
    """Repeat a list, a text or a piece of code; the tests' strings are never trained on."""
    kind = kind or rng.choice(("copy list", "copy list", "copy code", "copy code", "copy text"))
    while True:
        phrase, body = _copy(rng, kind)
        if held_out(body, 20) == test:
            break
    what = kind.removeprefix("copy ")
    answer = assistant(body, f"I copy the {what} exactly.")
    return Example(kind, (user(phrase.format(x=body)), answer))


def edit_sample(rng: Random, test: bool) -> Example:
    """Replace one name in a list or in code."""
    while True:
        if rng.random() < 0.5:
            items = _items(rng)[:8]
            old, phrase = rng.choice(items), rng.choice(REPLACE)
            new = rng.choice((rng.choice(NOUNS), coined(rng), rng.choice(NAMES)))
            body = ", ".join(items) if rng.random() < 0.7 else "\n".join(f"- {x}" for x in items)
        else:
            body, phrase = code(rng), rng.choice(RENAME)
            names = re.findall(r"\b[a-z][a-z_0-9]{2,}\b", body)
            old, new = rng.choice(names), identifier(rng)
            body = fenced(rng, body)
        if held_out(body, 20) == test:
            break
    edited = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, body)
    question = phrase.format(x=body, old=old, new=new)
    return Example("edit", (user(question), assistant(edited, f"I write {new} for {old}.")))
