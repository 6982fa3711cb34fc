"""The bundled models do what they are for, through the public API."""

from __future__ import annotations

import functools
import random
import warnings

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import LLM, load
from mlx_qwen3.demo import demo_folder
from mlx_qwen3.generation.thinking import EARLY_STOP
from tests.demo_tools import CLOCK

MODELS = ["demo", "demo-moe"]
RARELY = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 100)]


@functools.cache
def demo(name: str) -> LLM:
    return load(name)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_small(name: str) -> None:
    size = sum(file.stat().st_size for file in demo_folder(name).iterdir())
    assert size <= 6_000_000


@pytest.mark.parametrize("name", MODELS)
def test_it_adds_when_it_thinks(name: str) -> None:
    """Eight of ten: a fraction of the accuracy its README reports, so that it never flickers."""
    numbers = random.Random(7)
    right = 0
    for digits in (1, 2, 3, 4) * 2 + (2, 3):
        a, b = (numbers.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        done = demo(name).generate(
            f"What is {a} + {b}?", thinking=True, temperature=0.0, max_tokens=300
        )
        assert done.finish_reason == "stop"
        right += f"= {a + b}." in done.text
    assert right >= 8


def test_thinking_is_what_makes_it_right() -> None:
    answers = [
        demo("demo").generate(
            "What is 4821 + 3990?", thinking=thinking, temperature=0.0, max_tokens=300
        )
        for thinking in (True, False)
    ]
    assert answers[0].text == "4821 + 3990 = 8811."
    assert "carry" in answers[0].thinking
    assert answers[1].thinking == ""
    assert answers[1].text != answers[0].text


def test_it_calls_a_tool_and_answers_from_it() -> None:
    question = {"role": "user", "content": "What time is it in Tokyo?"}
    options = {"tools": [CLOCK], "temperature": 0.0, "max_tokens": 200}
    call = demo("demo").generate([question], **options)
    assert call.finish_reason == "tool_calls"
    assert call.tool_calls[0].name == "get_current_time"
    assert call.tool_calls[0].arguments == {"timezone": "Asia/Tokyo"}


def test_a_thinking_budget_cuts_a_thought_short() -> None:
    done = demo("demo").generate(
        "What is 4821 + 3990?", thinking=True, temperature=0.0, max_tokens=300, thinking_budget=20
    )
    assert "Considering the limited time" in done.thinking
    assert "Considering" not in done.text


@pytest.mark.parametrize("name", MODELS)
def test_mlx_lm_computes_the_same(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlx_lm.utils import load_model
    theirs, _ = load_model(demo_folder(name))
    theirs.set_dtype(mx.float32)
    token_ids = [demo(name).tokenizer.encode("What is 27 + 58?")]
    expected = np.array(theirs(mx.array(token_ids)))
    ours = np.array(demo(name).model(token_ids).astype(mx.float32))
    assert np.abs(ours - expected).max() <= 1e-3 * expected.std()


@pytest.mark.parametrize("seed", [*range(8), *RARELY])
def test_the_budget_holds_to_the_token(seed: int) -> None:
    """What the model thinks by itself is never more; cut short, it is exactly the budget."""
    rng = random.Random(seed)
    budget, max_tokens = rng.randrange(130), rng.choice([300, rng.randrange(1, 200)])
    numbers = [rng.randrange(10 ** rng.randint(1, 4)) for _ in range(2)]
    llm = demo("demo")
    done = llm.generate(
        "What is {} {} {}?".format(numbers[0], rng.choice("+-"), numbers[1]),
        thinking=True,
        thinking_budget=budget,
        max_tokens=max_tokens,
        seed=seed,
    )
    usage, stop = done.usage, llm.tokenizer.encode(EARLY_STOP)
    assert usage.completion_tokens == len(done.token_ids) <= max_tokens
    assert usage.thinking_tokens + usage.answer_tokens == usage.completion_tokens
    text = llm.tokenizer.decode(done.token_ids)
    assert "</think>" not in done.text
    assert EARLY_STOP.strip()[:40] not in done.text
    if budget == 0:
        assert (done.thinking, usage.thinking_tokens) == ("", 0)
    elif EARLY_STOP in text:
        assert done.token_ids[budget : budget + len(stop)] == tuple(stop)
        assert usage.thinking_tokens == budget + len(stop) - len(llm.tokenizer.encode("\n\n"))
    elif "</think>" in text:
        assert usage.thinking_tokens <= budget
    else:  # cut by max_tokens, amid the thought or amid the words that end it
        assert (done.text, done.finish_reason) == ("", "length")
        assert usage.completion_tokens == usage.thinking_tokens == max_tokens
