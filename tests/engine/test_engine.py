"""Many requests share a model: each gets what it would get alone, and nobody waits for ever."""

from __future__ import annotations

import gc
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from mlx_qwen3 import LLM, BusyError, ContextOverflowError, EngineError, load
from mlx_qwen3.engine.batch import Batch
from mlx_qwen3.engine.engine import Engine
from mlx_qwen3.engine.scheduler import Scheduler
from mlx_qwen3.engine.settings import EngineSettings
from mlx_qwen3.engine.slot import Slot
from mlx_qwen3.generation.reply import Reply
from tests.engine.asking import Asked, attach, submit

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "maximum": 9999}},
    "required": ["sum"],
    "additionalProperties": False,
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_current_time",
        "description": "The time in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# One of each kind, all at once.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("What is 27 + 58?", {"temperature": 0.0}),
    "seeded": ("What is 123 + 456?", {"temperature": 1.2, "seed": 7}),
    "hot": ("Say something.", {"temperature": 2.0, "seed": 8, "top_k": 50, "max_tokens": 60}),
    "penalties": (
        "What is 5 + 5?",
        {"seed": 1, "presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    ),
    "of thinking": ("What is 8 + 9?", {"seed": 2, "thinking_presence_penalty": 0.5}),
    "budget": ("What is 1234 + 8765?", {"temperature": 0.0, "thinking_budget": 12}),
    "no thinking": ("What is 3 + 4?", {"temperature": 0.0, "thinking": False}),
    "schema": ("What is 40 + 2?", {"temperature": 0.0, "schema": SCHEMA, "max_tokens": 150}),
    "tool": ("What time is it in Paris?", {"temperature": 0.0, "tools": [CLOCK]}),
    "strict tool": (
        "What time is it in Rome?",
        {"seed": 3, "tools": [CLOCK], "tool_choice": "required", "max_tokens": 150},
    ),
    "logprobs": ("What is 2 + 2?", {"temperature": 0.0, "logprobs": 3}),
    "stop": ("What is 99 + 1?", {"temperature": 0.0, "stop": ["="]}),
    "packed": ("What is 31 + 64?", {"temperature": 0.0, "kv_bits": 8}),
    "window": ("What is 77 + 23?", {"temperature": 0.0, "max_kv_size": 48, "max_tokens": 90}),
    "raw": ("Once upon", {"raw": True, "seed": 4, "max_tokens": 30}),
    "one token": ("Hello", {"temperature": 0.0, "max_tokens": 1}),
}


@pytest.fixture(scope="module")
def demo() -> LLM:
    return load("demo", prefix_cache=False)


def endless(engine: Engine, lane: Scheduler, llm: LLM) -> Asked:
    """A reply that does not end by itself while a test lasts."""
    banned = dict.fromkeys(llm.eos_ids, -math.inf)
    return submit(engine, lane, llm, "Count.", raw=True, max_tokens=3000, logit_bias=banned, seed=1)


Start = Callable[..., tuple[Engine, Scheduler]]


@pytest.fixture
def start(demo: LLM) -> Iterator[Start]:
    """Engines that are closed when the test is over."""
    engines: list[Engine] = []

    def make(llm: LLM = demo, **settings: Any) -> tuple[Engine, Scheduler]:
        engines.append(Engine(EngineSettings(**settings)))
        return engines[-1], attach(engines[-1], llm)

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def alone(demo: LLM) -> dict[str, Any]:
    """What each kind of request says when nobody else is served."""
    engine = Engine(EngineSettings())
    lane = attach(engine, demo)
    replies = {
        name: submit(engine, lane, demo, prompt, **options).completion()
        for name, (prompt, options) in KINDS.items()
    }
    engine.close()
    return replies


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_running": 3}, {"kv_bytes": 2_000_000}, {"chunk_seconds": 0.0}],
    ids=["all at once", "three places", "little memory", "small chunks"],
)
def test_replies_are_those_of_each_request_alone(
    settings: dict[str, Any], demo: LLM, alone: dict[str, Any], start: Start
) -> None:
    engine, lane = start(**settings)
    asked = {
        name: submit(engine, lane, demo, prompt, **options)
        for name, (prompt, options) in KINDS.items()
    }
    for name, one in asked.items():
        reply, expected = one.completion(), alone[name]
        assert reply.token_ids == expected.token_ids, name
        assert (reply.text, reply.thinking) == (expected.text, expected.thinking), name
        assert (reply.finish_reason, reply.usage) == (expected.finish_reason, expected.usage), name
        assert (reply.tool_calls, reply.parsed) == (expected.tool_calls, expected.parsed), name
        assert reply.logprobs == expected.logprobs, name
    assert engine.statistics().running == 0
    assert engine.statistics().kv_bytes == 0


def test_what_is_alone_in_the_engine_is_what_generate_says(
    demo: LLM, alone: dict[str, Any]
) -> None:
    for name in ("greedy", "seeded", "schema", "budget", "tool"):
        prompt, options = KINDS[name]
        said = demo.generate(prompt, speculation="off", **options)
        assert said.token_ids == alone[name].token_ids, name


def test_a_preempted_reply_goes_on_where_it_was(demo: LLM, start: Start) -> None:
    """Bytes for one long reply and a bit: two cannot grow at once."""
    one = demo.model.kv_bytes_per_token() * 256
    questions = [(f"What is {n} + {n}?", {"max_tokens": 280, "seed": n}) for n in (11, 222, 3333)]
    banned = dict.fromkeys(demo.eos_ids, -100.0)  # so that they all grow beyond 256 tokens
    quiet, lane = start()
    expected = [
        submit(quiet, lane, demo, text, logit_bias=banned, **options).completion().token_ids
        for text, options in questions
    ]
    engine, lane = start(kv_bytes=int(3.5 * one))
    asked = [
        submit(engine, lane, demo, text, logit_bias=banned, **options)
        for text, options in questions
    ]
    assert [one.completion().token_ids for one in asked] == expected
    assert engine.statistics().preemptions > 0


def test_a_prompt_is_read_in_chunks_between_the_tokens_of_others(
    demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    read, step = Batch.read, Batch.step

    def watched_read(self: Batch, slot: Slot, tokens: int) -> None:
        calls.append("read")
        read(self, slot, tokens)

    def watched_step(self: Batch, slots: Any) -> Any:
        calls.append("step")
        return step(self, slots)

    engine, lane = start(chunk_seconds=0.0)  # the shortest chunks there are
    stream = endless(engine, lane, demo)
    stream.inbox.wait_for_events(3)
    monkeypatch.setattr(Batch, "read", watched_read)
    monkeypatch.setattr(Batch, "step", watched_step)
    long = submit(engine, lane, demo, "word " * 900, raw=True, max_tokens=2)
    short = submit(engine, lane, demo, "Hello", temperature=0.0, max_tokens=2)
    short.completion()
    assert not long.inbox.over  # which came first, and takes turns
    long.completion()
    stream.ticket.cancel()
    assert calls.count("read") > 10
    assert ("read", "read") not in itertools.pairwise(calls)


def test_a_prompt_that_another_is_just_reading_is_read_once(start: Start) -> None:
    llm = load("demo", prefix_cache=True)
    text = "Some words of a long document that two ask about. " * 40
    engine, lane = start(llm, chunk_seconds=0.0)
    asked = [
        submit(engine, lane, llm, text + question, max_tokens=2, temperature=0.0)
        for question in ("What?", "Who?", "Why?")
    ]
    usages = [one.completion().usage for one in asked]
    assert usages[0].cached_tokens == 0
    assert all(usage.cached_tokens > 0.8 * usage.prompt_tokens for usage in usages[1:])
    llm.prefix_store.clear()  # type: ignore[union-attr]


def test_a_cancelled_request_is_gone_by_the_next_step(demo: LLM, start: Start) -> None:
    engine, lane = start()
    asked = endless(engine, lane, demo)
    asked.inbox.wait_for_events(2)
    asked.ticket.cancel()
    steps = lane.counters.steps
    wait_until(lambda: engine.statistics().running == 0)
    assert lane.counters.steps <= steps + 1
    assert not asked.inbox.over
    assert engine.statistics().cancelled == 1
    asked.ticket.cancel()  # once more does no harm


def test_a_waiting_request_can_be_cancelled(demo: LLM, start: Start) -> None:
    engine, lane = start(max_running=1)
    first = endless(engine, lane, demo)
    second = submit(engine, lane, demo, "Hello", max_tokens=5)
    first.inbox.wait_for_events(1)
    second.ticket.cancel()
    wait_until(lambda: engine.statistics().waiting == 0)
    first.ticket.cancel()
    assert second.inbox.events == []


def test_too_many_are_refused_and_told_when_to_come_back(demo: LLM, start: Start) -> None:
    engine, lane = start(max_running=1, max_waiting=1)
    first = endless(engine, lane, demo)
    first.inbox.wait_for_events(1)
    second = submit(engine, lane, demo, "Hello", max_tokens=5, temperature=0.0)
    with pytest.raises(BusyError, match="1 requests wait already") as refused:
        submit(engine, lane, demo, "Hello", max_tokens=5)
    assert refused.value.retry_after >= 1
    first.ticket.cancel()
    assert second.completion().finish_reason


def test_a_prompt_that_would_never_fit_is_refused(demo: LLM, start: Start) -> None:
    engine, lane = start(kv_bytes=demo.model.kv_bytes_per_token() * 64)
    with pytest.raises(ContextOverflowError, match="memory for keys and values"):
        submit(engine, lane, demo, "word " * 100)
    reply = submit(engine, lane, demo, "Hi", raw=True, temperature=2.0).completion()
    assert reply.usage.total_tokens <= 64  # it ended there, or by itself


def test_what_fails_is_one_reply(demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Batch.read

    def no_memory_for_long_ones(self: Batch, slot: Slot, tokens: int) -> None:
        if len(slot.pending) > 100:
            raise RuntimeError("[malloc] Unable to allocate")
        read(self, slot, tokens)

    monkeypatch.setattr(Batch, "read", no_memory_for_long_ones)
    engine, lane = start()
    good = submit(engine, lane, demo, "What is 27 + 58?", temperature=0.0)
    bad = submit(engine, lane, demo, "word " * 300, raw=True)
    with pytest.raises(EngineError, match="Unable to allocate"):
        bad.completion()
    assert "85" in good.completion().text
    assert engine.failure is None
    assert engine.statistics().failures == 1


def test_a_step_that_fails_ends_those_in_it(
    demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, broken = Batch.step, threading.Event()

    def breaks_once(self: Batch, slots: Any) -> Any:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("the device was lost")
        return step(self, slots)

    monkeypatch.setattr(Batch, "step", breaks_once)
    engine, lane = start()
    with pytest.raises(EngineError, match="the device was lost"):
        submit(engine, lane, demo, "Hello", temperature=0.0).completion()
    assert "85" in submit(engine, lane, demo, "What is 27 + 58?", temperature=0.0).completion().text


def crash(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the engine's thread itself fail so many times."""
    admit, left = Scheduler._admit, [times]

    def failing(self: Scheduler) -> None:
        if left[0] > 0 and self.queued:
            left[0] -= 1
            raise ZeroDivisionError("a bug")
        admit(self)

    monkeypatch.setattr(Scheduler, "_admit", failing)


def test_an_engine_that_fails_says_so_and_starts_again(
    demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(monkeypatch, 1)
    engine, lane = start()
    with pytest.raises(EngineError, match="the engine failed: a bug"):
        submit(engine, lane, demo, "Hello").completion()
    wait_until(lambda: engine.failure is None)
    assert "85" in submit(engine, lane, demo, "What is 27 + 58?", temperature=0.0).completion().text
    assert engine.restarts == 1


def test_an_engine_that_keeps_failing_gives_up(
    demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(monkeypatch, 100)
    engine, lane = start()
    while not engine.given_up:
        with pytest.raises(EngineError):
            submit(engine, lane, demo, "Hello").completion()
    assert engine.failure is not None
    with pytest.raises(EngineError):
        submit(engine, lane, demo, "Hello")


def test_a_device_that_hangs_shows(
    demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(Batch, "read", lambda *_: hang.wait(60))
    engine, lane = start(stall_seconds=1)
    submit(engine, lane, demo, "Hello")
    wait_until(lambda: engine.failure is not None)
    assert "has not finished a step" in str(engine.failure)
    hang.set()


def test_closing_ends_what_runs(demo: LLM, start: Start) -> None:
    engine, lane = start()
    asked = endless(engine, lane, demo)
    asked.inbox.wait_for_events(1)
    engine.close()
    with pytest.raises(EngineError, match="shutting down"):
        asked.completion()
    with pytest.raises(EngineError, match="closed"):
        submit(engine, lane, demo, "Hello")


@pytest.mark.parametrize("ending", ["close", "detach"])
def test_what_is_asked_for_at_the_end_is_answered(
    ending: str, demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that came between the last look at the queue and the end waited for ever."""
    engine, lane = start()
    check = Scheduler.check
    threads: list[threading.Thread] = []

    def end_meanwhile(self: Scheduler, request: Any) -> Any:
        end = engine.close if ending == "close" else partial(engine.detach, lane)
        threads.append(threading.Thread(target=end))
        threads[-1].start()
        threads[-1].join(0.5)  # it ends, or waits for us
        return check(self, request)

    monkeypatch.setattr(Scheduler, "check", end_meanwhile)
    asked: list[Asked] = []
    with suppress(EngineError):  # refused, or answered with it
        asked.append(submit(engine, lane, demo, "Hello"))
    wait_until(lambda: all(one.inbox.over for one in asked))
    assert all(isinstance(one.inbox.error, EngineError) for one in asked)
    threads[0].join()


def test_a_receiver_that_breaks_harms_nobody(demo: LLM, start: Start) -> None:
    engine, lane = start()

    def broken(_: Any) -> None:
        raise RuntimeError("nobody is here")

    engine.submit(lane, demo.request("What is 1 + 1?", temperature=0.0), broken)
    assert "85" in submit(engine, lane, demo, "What is 27 + 58?", temperature=0.0).completion().text
    wait_until(lambda: engine.statistics().running == 0)


def test_models_leave(demo: LLM, start: Start) -> None:
    engine, lane = start()
    asked = endless(engine, lane, demo)
    asked.inbox.wait_for_events(1)
    engine.detach(lane)
    with pytest.raises(EngineError, match="unloaded"):
        asked.completion()
    assert engine.statistics().kv_budget == 0
    assert engine.statistics().generated_tokens > 0


def test_a_reply_that_ended_holds_nothing(demo: LLM, start: Start) -> None:
    """Not even until Python looks for cycles: it does not know how large caches are."""
    engine, lane = start(demo)
    gc.collect()
    gc.disable()
    try:
        asked = [
            submit(engine, lane, demo, "What is 27 + 58?", temperature=0.0, max_tokens=20)
            for _ in range(3)
        ]
        for one in asked:
            assert one.completion().token_ids
        cut = {"tools": [CLOCK], "tool_choice": "required", "thinking": False, "max_tokens": 12}
        assert submit(engine, lane, demo, "What time is it in Rome?", **cut).completion()
        cancelled = endless(engine, lane, demo)
        cancelled.inbox.wait_for_events(1)
        cancelled.ticket.cancel()
        wait_until(lambda: not lane.busy)
        # The step that ends the last of them may be about to return.
        wait_until(lambda: not any(isinstance(one, Reply | Slot) for one in gc.get_objects()))
    finally:
        gc.enable()


def test_an_idle_engine_gives_memory_back_once(
    demo: LLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr("mlx_qwen3.engine.engine._IDLE_SECONDS", 0.01)
    monkeypatch.setattr("mlx_qwen3.engine.heap.release", lambda: given.append(time.monotonic()))
    engine, lane = start(demo)
    for times in (1, 2, 3):  # before the first request, and after each
        wait_until(lambda times=times: len(given) >= times)  # type: ignore[misc]
        time.sleep(0.1)
        assert len(given) == times
        submit(engine, lane, demo, "Hello", temperature=0.0, max_tokens=2).completion()
