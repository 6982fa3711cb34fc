"""Speculation beside everything else a reply may have: forms, penalties of thinking, stores."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_qwen3 import load
from mlx_qwen3.engine.prefix_store import PrefixStore
from mlx_qwen3.generation.output import Completion
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.generation.reply import Reply
from mlx_qwen3.llm import LLM

POINT = {
    "type": "object",
    "properties": {
        "name": {"enum": ["alpha", "beta"]},
        "numbers": {"type": "array", "items": {"enum": [17, 250]}, "minItems": 3, "maxItems": 6},
    },
    "required": ["name", "numbers"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "set_point", "parameters": POINT}}
ASKED = 'Repeat exactly: {"name":"alpha","numbers":[17,250,17,250,17]}'

ITEMS = ["alpha", "beta", "gamma", "delta", "plum", "kiwi", "oslo", "alpha", "plum", "beta", "kiwi"]
LIST = "Copy this list:\n" + "\n".join(f"- {item}" for item in ITEMS)


@pytest.fixture(scope="module")
def demo() -> LLM:
    return load("demo", prefix_cache=False)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bursts at every chance, whatever they cost here."""
    monkeypatch.setattr(Pace, "best", lambda self, survival: min(5, len(survival)))
    monkeypatch.setattr(Pace, "exhausted", False)


def both(llm: LLM, prompt: Any, speculation: Any, **options: Any) -> Completion:
    """The reply with speculation, which is the one without."""
    arguments = {"max_tokens": 120, "seed": 5, "temperature": 0, **options}
    plain = llm.generate(prompt, speculation=False, **arguments)
    draft = llm if speculation == "draft" else None
    guessed = llm.generate(prompt, speculation=speculation, draft=draft, **arguments)
    assert guessed.token_ids == plain.token_ids
    assert (guessed.text, guessed.thinking, guessed.parsed) == (
        (plain.text, plain.thinking, plain.parsed)
    )
    assert (guessed.tool_calls, guessed.finish_reason) == (plain.tool_calls, plain.finish_reason)
    assert plain.proposed_tokens == 0
    return guessed


FORMS: dict[str, dict[str, Any]] = {
    "schema": {"schema": POINT, "thinking": False},
    "schema behind a thought": {"schema": POINT, "thinking": True, "thinking_budget": 60},
    "regex": {"regex": '(\\{"name":"alpha"[^}]*\\}){1,4}', "thinking": False},
    "a call": {"tools": [TOOL], "tool_choice": "required", "thinking": False},
    "strict calls": {"tools": [TOOL], "strict": True, "thinking": False},
    "drawn": {"schema": POINT, "thinking": False, "temperature": 0.8},
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("speculation", ["lookup", "draft"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_answers_of_a_form(form: dict[str, Any], speculation: str, demo: LLM) -> None:
    assert both(demo, ASKED, speculation, **form).accepted_tokens > 0


@pytest.mark.usefixtures("eager")
def test_penalties_of_thinking_are_for_one_token_at_a_time(demo: LLM) -> None:
    options = {"thinking": True, "thinking_presence_penalty": 1.5, "presence_penalty": 0.2}
    done = both(demo, "What is 17 + 25?", "lookup", **options)
    assert done.thinking
    assert done.proposed_tokens == 0


# --- a store -----------------------------------------------------------------------------


def with_store(llm: LLM) -> LLM:
    store = PrefixStore(llm.model, memory_bytes=1 << 28)
    return LLM(llm.model, llm.tokenizer, llm.generation_config, prefix_store=store)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("speculation", ["lookup", "draft"])
def test_a_conversation_through_a_store(speculation: str, demo: LLM) -> None:
    """The proposer knows the whole prompt, though the model reads only its end."""
    kept, draft = with_store(demo), demo if speculation == "draft" else None
    history: list[dict[str, Any]] = []
    for text in (f"{ASKED} {ASKED}", "Repeat exactly: alpha beta alpha beta alpha", ASKED):
        history.append({"role": "user", "content": text})
        options: dict[str, Any] = {"temperature": 0, "thinking": False, "max_tokens": 100}
        plain = demo.generate(history, speculation=False, **options)
        guessed = kept.generate(history, speculation=speculation, draft=draft, **options)
        assert guessed.token_ids == plain.token_ids
        assert guessed.accepted_tokens > 0
        history.append({"role": "assistant", "content": plain.text})
    assert guessed.usage.cached_tokens > len(demo.tokenizer.encode(ASKED))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("events", range(1, 26, 2))
def test_what_is_kept_of_a_reply_that_was_left(events: int, demo: LLM) -> None:
    """Rows of a burst that nobody accepted are not taken for what was said."""
    kept = with_store(demo)
    options: dict[str, Any] = {"temperature": 0, "thinking": False, "max_tokens": 60}
    stream = kept.stream(LIST, speculation="lookup", **options)
    for _ in range(events):
        next(stream)
    stream.close()
    plain = demo.generate(LIST, speculation=False, **options)
    again = kept.generate(LIST, speculation="lookup", **options)
    assert again.usage.cached_tokens > 0
    assert again.token_ids == plain.token_ids
    history = [
        {"role": "user", "content": LIST},
        {"role": "assistant", "content": plain.text},
        {"role": "user", "content": "Repeat exactly: alpha beta"},
    ]
    expected = demo.generate(history, speculation=False, **options)
    assert kept.generate(history, speculation="lookup", **options).token_ids == expected.token_ids


@pytest.mark.usefixtures("eager")
def test_the_offset_never_counts_what_was_only_proposed(demo: LLM) -> None:
    request = demo.request(
        LIST, temperature=0, thinking=False, speculation="lookup", max_tokens=120
    )
    reply: Reply = demo._reply(request, None)
    reply.start()
    seen = len(request.prompt_ids)
    while not reply.done:
        reply.step()
        loop = reply._require_loop()
        tokens = loop._tokens  # type: ignore[attr-defined]
        assert seen <= loop.offset <= min(len(tokens), loop._cache.offset)
        seen = loop.offset
    assert loop.accepted > 10
    reply.close()
