"""The test groups: held-out conversations, drawn from a seed of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import arithmetic
import clocks
import copying
import greetings
import tools
from chat import Example, render_prompt

Maker = Callable[[Random, bool], Example]


def _arithmetic(op: str, digits: int) -> Maker:
    return partial(arithmetic.sample, op=op, digits=digits)


GROUPS: dict[str, Maker] = {
    **{f"addition, {n} digits": _arithmetic("+", n) for n in (1, 2, 3, 4)},
    **{f"subtraction, {n} digits": _arithmetic("-", n) for n in (1, 2, 3, 4)},
    "call a clock": partial(tools.call_sample, family="clock", step="call"),
    "call for the weather": partial(tools.call_sample, family="weather", step="call"),
    "call another tool": partial(tools.call_sample, family="other", step="call"),
    "two calls": partial(tools.two_calls_sample, step="call"),
    "answer from a clock": partial(tools.call_sample, family="clock", step="answer"),
    "answer from the weather": partial(tools.call_sample, family="weather", step="answer"),
    "answer from another tool": partial(tools.call_sample, family="other", step="answer"),
    "answer from two calls": partial(tools.two_calls_sample, step="answer"),
    "no call needed": tools.no_call_sample,
    "time zone of a city": clocks.zone_sample,
    "copy a list": partial(copying.copy_sample, kind="copy list"),
    "copy code": partial(copying.copy_sample, kind="copy code"),
    "copy text": partial(copying.copy_sample, kind="copy text"),
    "edit": copying.edit_sample,
    "greeting": greetings.greeting_sample,
    "anything else": greetings.general_sample,
}


def draw_group(name: str, count: int, seed: int) -> list[Example]:
    """`count` different held-out prompts, always the same ones for a seed.

    Fewer where there are not so many, as of time zones.
    """
    rng = Random(f"test/{seed}/{name}")
    seen: set[str] = set()
    out: list[Example] = []
    for _ in range(50 * count):
        if len(out) == count:
            break
        example = GROUPS[name](rng, True)
        prompt = render_prompt(example)
        if prompt not in seen:
            seen.add(prompt)
            out.append(example)
    return out
