"""Replies through LLM: the same with a store as without, however the last one ended."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3 import load
from mlx_qwen3.engine.prefix_store import READ_AGAIN, PrefixStore
from mlx_qwen3.errors import OptionError
from mlx_qwen3.generation import reply as reply_module
from mlx_qwen3.generation import speculator as speculator_module
from mlx_qwen3.generation.loop import TokenLoop
from mlx_qwen3.generation.output import Completion
from mlx_qwen3.generation.speculation import SpeculativeLoop
from mlx_qwen3.llm import LLM
from mlx_qwen3.model.step import PlainStep
from tests.demo_tools import CLOCK
from tests.engine.turns import MEBI, disk_store

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 150}
SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence. " * 8}


@pytest.fixture(scope="module")
def plain() -> LLM:
    """The demo model without a store."""
    return load("demo", prefix_cache=False)


def with_store(llm: LLM, store: PrefixStore | None = None, budget: int = 256 * MEBI) -> LLM:
    """The same model with a store of its own."""
    store = PrefixStore(llm.model, memory_bytes=budget) if store is None else store
    return LLM(llm.model, llm.tokenizer, llm.generation_config, prefix_store=store)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(done: Completion) -> dict[str, Any]:
    """An assistant's turn, its thought included: the template decides what is seen of it."""
    message: dict[str, Any] = {"role": "assistant", "content": done.text}
    if done.thinking:
        message["reasoning_content"] = done.thinking
    return message


def questions(seed: int) -> Iterator[str]:
    numbers = random.Random(seed)
    while True:
        a, b = numbers.randrange(1, 999), numbers.randrange(1, 999)
        yield from (f"What is {a} + {b}?", f"And {b} - {a}?", "Hello, who are you?")


# --- the same with and without


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", ["demo", "demo-moe"])
def test_conversations_are_the_same(name: str, seed: int | None, thinking: bool) -> None:
    """Greedy, and drawn with a seed; thoughts are dropped from the history as they go."""
    llm = load(name, prefix_cache=False)
    kept = with_store(llm)
    options = GREEDY | ({} if seed is None else {"temperature": 0.8, "seed": seed})
    messages, asked = [SYSTEM], questions(seed or 0)
    shared = 0  # tokens up to the last answer, once there is one
    for _ in range(3):
        messages = [*messages, user(next(asked))]
        expected = llm.generate(messages, thinking=thinking, **options)
        done = kept.generate(messages, thinking=thinking, **options)
        assert done.token_ids == expected.token_ids
        assert done.usage.cached_tokens >= shared
        # What is not shared: the opening of the reply, which the history writes differently.
        shared = done.usage.prompt_tokens - 8
        messages = [*messages, said(done)]


def test_conversations_are_the_same_in_new_processes(plain: LLM, tmp_path: Any) -> None:
    """Each turn with a store that has only the disk."""
    long = SYSTEM | {"content": str(SYSTEM["content"]) * 3}
    messages, asked = [long], questions(1)
    for turn in range(3):
        messages = [*messages, user(next(asked))]
        store = disk_store(plain.model, tmp_path)
        done = with_store(plain, store).generate(messages, thinking=True, **GREEDY)
        assert store.flush()
        assert done.token_ids == plain.generate(messages, thinking=True, **GREEDY).token_ids
        assert done.usage.cached_tokens == (256 if turn else 0)
        messages = [*messages, said(done)]


def test_tools_are_read_once(plain: LLM) -> None:
    kept = with_store(plain)
    messages = [user("What time is it in Tokyo?")]
    one = kept.generate(messages, tools=[CLOCK], **GREEDY)
    assert one.tool_calls
    call = {"name": one.tool_calls[0].name, "arguments": one.tool_calls[0].arguments}
    messages += [
        said(one) | {"tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": '{"datetime": "2026-03-01T13:00:00+09:00"}'},
    ]
    two = kept.generate(messages, tools=[CLOCK], **GREEDY)
    assert two.token_ids == plain.generate(messages, tools=[CLOCK], **GREEDY).token_ids
    assert two.usage.cached_tokens >= one.usage.prompt_tokens - 8
    other = [user("What time is it in Paris?")]
    three = kept.generate(other, tools=[CLOCK], **GREEDY)
    assert three.token_ids == plain.generate(other, tools=[CLOCK], **GREEDY).token_ids
    assert three.usage.cached_tokens > one.usage.prompt_tokens // 2


def test_penalties_know_what_was_not_read(plain: LLM) -> None:
    """A repetition penalty counts the whole prompt."""
    kept = with_store(plain)
    options = GREEDY | {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logprobs": 2}
    messages = [SYSTEM, user("What is 12 + 30?")]
    for _ in range(2):
        done = kept.generate(messages, thinking=False, **options)
    expected = plain.generate(messages, thinking=False, **options)
    assert done.usage.cached_tokens == done.usage.prompt_tokens - READ_AGAIN
    assert done.token_ids == expected.token_ids
    assert done.logprobs is not None
    assert expected.logprobs is not None
    for one, other in zip(done.logprobs, expected.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_thinking_budget_is_kept(plain: LLM) -> None:
    kept = with_store(plain)
    options = GREEDY | {"thinking": True, "thinking_budget": 12}
    messages = [SYSTEM, user("What is 123 + 456?")]
    for _ in range(3):
        done = kept.generate(messages, **options)
        assert done.token_ids == plain.generate(messages, **options).token_ids
        messages = [*messages, said(done), user("And twice that?")]


def test_what_was_cached_does_not_make_replies_differ(plain: LLM) -> None:
    kept = with_store(plain)
    one, two = (kept.generate([SYSTEM, user("Hello")], seed=1, **GREEDY) for _ in range(2))
    assert one.usage.cached_tokens != two.usage.cached_tokens
    assert one.usage == two.usage


# --- however the last one ended


@pytest.mark.parametrize("taken", [1, 5])
def test_a_stream_that_was_closed(taken: int, plain: LLM) -> None:
    kept = with_store(plain)
    messages = [SYSTEM, user("What is 27 + 58?")]
    events = kept.stream(messages, thinking=True, **GREEDY)
    for _ in range(taken):
        next(events)
    events.close()
    done = kept.generate(messages, thinking=True, **GREEDY)
    assert done.usage.cached_tokens == done.usage.prompt_tokens - READ_AGAIN
    assert done.token_ids == plain.generate(messages, thinking=True, **GREEDY).token_ids


def test_a_stream_that_never_began(plain: LLM) -> None:
    kept = with_store(plain)
    messages = [SYSTEM, user("What is 27 + 58?")]
    kept.stream(messages, **GREEDY).close()
    assert kept.generate(messages, **GREEDY).usage.cached_tokens == 0


class ChunkedLoop(TokenLoop):
    """Reads 64 tokens at a time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, chunk=64)


class ChunkedSpeculativeLoop(ChunkedLoop, SpeculativeLoop):
    """The same, proposing."""


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_module, "TokenLoop", ChunkedLoop)
    monkeypatch.setattr(speculator_module, "SpeculativeLoop", ChunkedSpeculativeLoop)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("speculation", ["off", "lookup"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_a_prompt_that_was_cancelled_midway(
    error: type[BaseException], speculation: str, plain: LLM
) -> None:
    """What was read until then need not be read again."""
    kept = with_store(plain)
    messages = [SYSTEM, user("What is 27 + 58?")]

    def stop(done: int, total: int) -> None:
        if done == 64:
            raise error

    with pytest.raises(error):
        kept.generate(messages, progress=stop, speculation=speculation, **GREEDY)
    done = kept.generate(messages, speculation=speculation, **GREEDY)
    assert done.usage.cached_tokens == 64
    assert done.token_ids == plain.generate(messages, **GREEDY).token_ids


def interrupt_at(llm: LLM, calls: int, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    """Have a layer raise amid its `calls`-th time, after it has noted the new token."""
    mlp = type(llm.model.layers[2].mlp)
    call, count = mlp.__call__, iter(range(calls))

    def fail(self: Any, x: mx.array) -> Any:
        if self is llm.model.layers[2].mlp and next(count, None) is None:
            raise error
        return call(self, x)

    patch.setattr(mlp, "__call__", fail)
    patch.setattr(llm.model, "step", PlainStep(llm.model))  # a compiled one calls no layers


@pytest.mark.parametrize("calls", [0, 1, 6])
def test_an_interrupt_amid_a_step(calls: int, plain: LLM) -> None:
    """Some layers know the token of that step, others do not."""
    kept = with_store(plain)
    messages = [SYSTEM, user("What is 27 + 58?")]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(plain, calls, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            kept.generate(messages, thinking=True, **GREEDY)
    done = kept.generate(messages, thinking=True, **GREEDY)
    assert done.usage.cached_tokens == (done.usage.prompt_tokens - READ_AGAIN if calls else 0)
    assert done.token_ids == plain.generate(messages, thinking=True, **GREEDY).token_ids


def test_a_device_that_failed_leaves_nothing_behind(plain: LLM) -> None:
    kept = with_store(plain)
    messages = [SYSTEM, user("What is 27 + 58?")]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(plain, 4, RuntimeError("out of memory"), patch)
        with pytest.raises(RuntimeError, match="out of memory"):
            kept.generate(messages, **GREEDY)
    assert kept.generate(messages, **GREEDY).usage.cached_tokens == 0


def test_streams_side_by_side(plain: LLM) -> None:
    kept = with_store(plain)
    asks = [[SYSTEM, user(f"What is {number} + 20?")] for number in (3, 14, 159)]
    streams = [kept.stream(messages, thinking=True, **GREEDY) for messages in asks]
    results: list[Completion | None] = [None] * 3
    while None in results:
        for place, stream in enumerate(streams):
            event = next(stream, None)
            if event is not None and event.completion is not None:
                results[place] = event.completion
    for messages, done in zip(asks, results, strict=True):
        assert done is not None
        assert done.token_ids == plain.generate(messages, thinking=True, **GREEDY).token_ids
    cached = [done.usage.cached_tokens for done in results if done is not None]
    assert cached[0] == 0
    assert min(cached[1:]) > 60  # the system message, out of the first one's cache


def test_astream(plain: LLM) -> None:
    kept = with_store(plain)
    messages = [SYSTEM, user("What is 27 + 58?")]
    expected = plain.generate(messages, **GREEDY)

    async def ask() -> Completion | None:
        done = None
        async for event in kept.astream(messages, **GREEDY):
            done = event.completion
        return done

    async def stop_early() -> None:
        events = kept.astream(messages, **GREEDY)
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    async def main() -> list[Completion | None]:
        one = await ask()
        await stop_early()
        return [one, *await asyncio.gather(ask(), ask())]

    results = asyncio.run(main())
    assert [done.token_ids for done in results if done] == [expected.token_ids] * 3
    assert [bool(done and done.usage.cached_tokens) for done in results] == [False, True, True]


# --- memory


def test_memory_stays_within_the_budget(plain: LLM) -> None:
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    budget = 8 * MEBI
    kept = with_store(plain, budget=budget)
    for number in range(6):
        kept.generate([SYSTEM, user(f"{number} " * 100)], temperature=0.0, max_tokens=2)
    store: Any = kept.prefix_store
    mx.synchronize()
    assert 0 < store.nbytes <= budget
    assert mx.get_active_memory() - before <= budget + MEBI // 4
    store.clear()
    mx.synchronize()
    assert mx.get_active_memory() - before <= MEBI // 4


def test_impossible_caches_are_refused_as_without_a_store(plain: LLM) -> None:
    with pytest.raises(OptionError, match="kv_bits is 5"):
        list(with_store(plain).stream("Hi", kv_bits=5))
