"""LLM: what is refused before work, what is taken from where, and streams beside each other."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3.errors import (
    CheckpointError,
    ContextOverflowError,
    OptionError,
    TemplateError,
    TokenizerError,
)
from mlx_qwen3.generation.output import Completion, Event
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.llm import LLM, load
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.text.tokenizer import Tokenizer
from tests.checkpoints import CHAT_TEMPLATE, write_generation_config, write_tokenizer
from tests.fakes_model import EOS, FakeConfig, FakeModel

TRACE = 1_000  # bytes of constants that the trace of a compiled step keeps
OPENS = "{{- '<think>\\n' }}"
SWITCH = CHAT_TEMPLATE[CHAT_TEMPLATE.index("    {%- if enable_thinking is defined") :]
TEMPLATES = {
    "hybrid": CHAT_TEMPLATE,
    "always": CHAT_TEMPLATE.replace(SWITCH, f"    {OPENS}\n{{%- endif %}}"),
    "never": CHAT_TEMPLATE.replace(SWITCH, "{%- endif %}"),
    "none": None,
}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}


def make_tokenizer(folder: Path, template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    write_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps(settings))
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: make_tokenizer(root / name, text) for name, text in TEMPLATES.items()}


Make = Callable[..., LLM]


@pytest.fixture
def make(tokenizers: dict[str, Tokenizer]) -> Make:
    """make(model, template, generation_config): an LLM around a fake model."""

    def make_llm(
        model: FakeModel | None = None,
        template: str = "hybrid",
        generation_config: dict[str, Any] | None = None,
    ) -> LLM:
        model = counting() if model is None else model
        return LLM(model, tokenizers[template], generation_config or {})  # type: ignore[arg-type]

    return make_llm


def counting(**options: Any) -> FakeModel:
    """Says a, b, c, ... and never ends."""
    return FakeModel(lambda ids: ord("a") + len(ids) % 26, **options)


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> LLM:
    return LLM.from_folder(checkpoint)


DRAWN: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12, "logprobs": 1}


def model_of(llm: LLM) -> FakeModel:
    model: Any = llm.model
    return model


def plain(completion: Completion) -> tuple[Any, ...]:
    """What must not differ between two runs of the same request."""
    return (
        completion.text,
        completion.thinking,
        completion.token_ids,
        completion.finish_reason,
        completion.usage,
        completion.logprobs,
    )


def without_end(events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind != "end"]


# --- refused before any work -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temprature": 1}, "unknown option 'temprature'; did you mean temperature\\?"),
        ({"top_k": -1}, "top_k is -1; expected"),
        ({"logit_bias": {999: 1.0}}, "logit_bias names token 999; expected"),
        ({"kv_bits": 3}, "kv_bits is 3; expected 4 or 8"),
        ({"max_kv_size": 4}, "max_kv_size is 4; expected a whole number from 5"),
        ({"max_kv_size": 100.5}, "max_kv_size is 100.5; expected a whole number"),
        ({"max_kv_size": "big"}, "max_kv_size is 'big'; expected a whole number"),
        ({"raw": True, "thinking": False}, "thinking needs the chat template, which raw"),
        ({"raw": True, "tools": [WEATHER]}, "tools needs the chat template, which raw"),
        ({"raw": True, "thinking_budget": 5}, "thinking_budget needs the chat template"),
        ({"raw": True, "thinking_presence_penalty": 1.0}, "thinking_presence_penalty needs the"),
    ],
    ids=str,
)
def test_bad_options_raise_before_any_work(options: dict[str, Any], says: str, tiny: LLM) -> None:
    """By the call itself, not by the first event; a cache is not even made."""
    before = mx.get_active_memory()
    with pytest.raises(OptionError, match=says) as caught:
        tiny.stream("Hi", **options)
    assert "\n" not in str(caught.value)
    assert mx.get_active_memory() - before < TRACE
    with pytest.raises(OptionError, match=says):
        tiny.generate("Hi", **options)


def test_raw_takes_a_text_that_is_not_empty(make: Make) -> None:
    llm = make()
    with pytest.raises(OptionError, match="raw takes a text"):
        llm.stream([{"role": "user", "content": "Hi"}], raw=True)
    with pytest.raises(OptionError, match="the prompt is empty"):
        llm.stream("", raw=True)
    assert model_of(llm).caches == []


def test_raw_takes_token_ids(make: Make) -> None:
    llm = make()
    token_ids = llm.tokenizer.encode("To be")
    assert llm.request(token_ids, raw=True).prompt_ids == tuple(token_ids)
    wrong: Any
    for wrong in ([-1], [10**9], [True], ["a"], [1, None]):
        with pytest.raises(OptionError, match="token id"):
            llm.request(wrong, raw=True)
    with pytest.raises(TemplateError, match="is a int"):
        llm.request(token_ids)


def test_context_overflow_is_refused_before_work(make: Make) -> None:
    llm = make(counting(config=FakeConfig(context_length=40)))
    for prompt, options in (("x" * 41, {}), ("x" * 40, {}), ("x" * 30, {"max_tokens": 11})):
        with pytest.raises(ContextOverflowError, match=r"40; .* max_kv_size") as caught:
            llm.stream(prompt, raw=True, **options)
        assert f"prompt's {len(prompt)} tokens" in str(caught.value)
    assert model_of(llm).caches == []
    assert len(llm.generate("x" * 30, raw=True, max_tokens=10).token_ids) == 10
    assert len(llm.generate("x" * 39, raw=True).token_ids) == 1


def test_max_kv_size_never_runs_out(tiny: LLM) -> None:
    prompt = "To be, or not to be, that is the question: " * 14  # 602 of 512 tokens
    with pytest.raises(ContextOverflowError):
        tiny.generate(prompt, raw=True)
    done = tiny.generate(prompt, raw=True, max_kv_size=64, temperature=0, max_tokens=5)
    assert done.usage.prompt_tokens == 602
    assert done.usage.completion_tokens == 5


def test_cache_options_reach_the_cache(make: Make) -> None:
    llm = make()
    llm.generate("Hi", max_tokens=1, max_kv_size=50, kv_bits=8)
    assert model_of(llm).caches[0].options == {"max_kv_size": 50, "kv_bits": 8}


# --- where settings come from ------------------------------------------------------------


def sampling(llm: LLM, **options: Any) -> tuple[float, float, int, float, float]:
    params = llm.request("Hi", **options).params
    return (
        params.temperature,
        params.top_p,
        params.top_k,
        params.min_p,
        params.repetition_penalty,
    )


THINKS = (0.6, 0.95, 20, 0.0, 1.0)
ANSWERS = (0.7, 0.8, 20, 0.0, 1.0)


@pytest.mark.parametrize(
    ("template", "options", "expected"),
    [
        ("hybrid", {}, THINKS),
        ("hybrid", {"thinking": True}, THINKS),
        ("hybrid", {"thinking": False}, ANSWERS),
        ("hybrid", {"thinking_budget": 0}, ANSWERS),
        ("hybrid", {"thinking_budget": 100}, THINKS),
        ("hybrid", {"raw": True}, ANSWERS),
        ("always", {}, THINKS),
        ("never", {}, ANSWERS),
        ("none", {"raw": True}, ANSWERS),
    ],
)
def test_defaults_follow_the_mode(
    template: str, options: dict[str, Any], expected: tuple[Any, ...], make: Make
) -> None:
    assert sampling(make(template=template), **options) == expected


def test_generation_config_goes_over_the_mode_and_options_over_both(make: Make) -> None:
    own = {"temperature": 0.9, "top_k": 7, "repetition_penalty": 1.05, "eos_token_id": 1}
    llm = make(generation_config=own)
    assert sampling(llm) == (0.9, 0.95, 7, 0.0, 1.05)
    assert sampling(llm, thinking=False) == (0.9, 0.8, 7, 0.0, 1.05)
    assert sampling(llm, temperature=0, top_p=1.0, top_k=0, min_p=0.1, repetition_penalty=1.0) == (
        (0, 1.0, 0, 0.1, 1.0)
    )
    assert sampling(llm, temperature=None) == sampling(llm)


@pytest.mark.parametrize("greedy", [{"temperature": 0.0}, {"temperature": None}, {}])
def test_greedy_is_for_those_who_ask(greedy: dict[str, Any], make: Make) -> None:
    assert sampling(make(generation_config=greedy)) == THINKS
    assert sampling(make(generation_config=greedy), temperature=0)[0] == 0


def test_default_max_tokens_is_what_fits(make: Make) -> None:
    llm = make(counting(config=FakeConfig(context_length=100)))
    assert llm.request("x" * 30, raw=True).max_tokens == 70
    assert llm.request("x" * 30, raw=True, max_tokens=5).max_tokens == 5
    large = make(counting(config=FakeConfig(context_length=262_144)))
    assert large.request("x", raw=True).max_tokens == 32_768
    assert large.request("x", raw=True, max_tokens=100_000).max_tokens == 100_000
    assert llm.request("x" * 300, raw=True, max_kv_size=50).max_tokens == 32_768
    assert llm.request("x" * 300, raw=True, max_kv_size=50, max_tokens=3).max_tokens == 3


def test_end_tokens_are_those_of_every_file(make: Make) -> None:
    """A conversion that lost some of them in one file still ends."""
    config = FakeConfig(eos_token_id=(256,))
    llm = make(counting(config=config), generation_config={"eos_token_id": [1, 2]})
    assert llm.eos_ids == {1, 2, 256, 258}  # 258: the tokenizer's
    single = make(counting(config=config), generation_config={"eos_token_id": 3})
    assert single.eos_ids == {3, 256, 258}
    for eos in (256, 258):
        model = FakeModel.saying([104, eos, 105], prompt=1, config=config)
        assert make(model).generate("x", raw=True).token_ids == (104, eos)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{broken", "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        ("[1]", "holds a list; expected an object"),
        ('{"top_k": -1}', "top_k is -1; expected a whole number"),
        ('{"temperature": "hot"}', "temperature is 'hot'; expected a number"),
        ('{"eos_token_id": "<|im_end|>"}', "eos_token_id is '<|im_end|>'; expected token ids"),
    ],
)
def test_a_broken_generation_config_is_one_clear_error(
    text: str, says: str, checkpoint: Path, tmp_path: Path
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    path = tmp_path / "generation_config.json"
    path.unlink()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        LLM.from_folder(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message
    path.unlink()
    assert LLM.from_folder(tmp_path).generation_config == {}


def test_a_folder_says_its_settings(checkpoint: Path, tiny: LLM, tmp_path: Path) -> None:
    assert tiny.generation_config["top_k"] == 20
    assert tiny.eos_ids == {256, 258}
    assert tiny.context_length == 512
    assert tiny.load_seconds > 0
    assert tiny.generate("Hi", max_tokens=1).timing.load == tiny.load_seconds
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    write_generation_config(tmp_path, temperature=0.33)
    assert sampling(LLM.from_folder(tmp_path))[0] == 0.33


# --- prompts -----------------------------------------------------------------------------

HEADER = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "thinking", "tail", "mode"),
    [
        ("hybrid", None, "", "hybrid"),
        ("hybrid", True, "", "hybrid"),
        ("hybrid", False, "<think>\n\n</think>\n\n", "hybrid"),
        ("always", None, "<think>\n", "always"),
        ("always", True, "<think>\n", "always"),
        ("never", None, "", "never"),
        ("never", False, "", "never"),
    ],
)
def test_render(template: str, thinking: bool | None, tail: str, mode: str, make: Make) -> None:
    llm = make(template=template)
    assert llm.mode == mode
    assert llm.render("Hi", thinking=thinking) == HEADER + tail
    messages = [{"role": "user", "content": "Hi"}]
    assert llm.render(messages, thinking=thinking) == HEADER + tail


@pytest.mark.parametrize(
    ("template", "thinking", "says"),
    [("always", False, "always thinks"), ("never", True, "never thinks")],
)
def test_thinking_that_cannot_be_switched(
    template: str, thinking: bool, says: str, make: Make
) -> None:
    llm = make(template=template)
    with pytest.raises(OptionError, match=f"this model {says}; leave thinking out"):
        llm.render("Hi", thinking=thinking)
    with pytest.raises(OptionError, match=says):
        llm.stream("Hi", thinking=thinking)


def test_tools_may_come_bare(make: Make) -> None:
    llm = make()
    wrapped = {"type": "function", "function": WEATHER}
    text = llm.render("Hi", tools=[WEATHER])
    assert '\n{"type": "function", "function": {"name": "weather"' in text
    assert llm.render("Hi", tools=[wrapped]) == text
    assert llm.render("Hi", tools=[]) == llm.render("Hi", tools=None) == HEADER
    assert llm.request("Hi", tools=[WEATHER]).tools == (wrapped,)


@pytest.mark.parametrize("tool", ["weather", 5, None])
def test_what_is_no_tool_is_refused_in_one_line(tool: Any, make: Make) -> None:
    with pytest.raises(TemplateError, match=r"tools\[0\] is a .*, expected a JSON schema object"):
        make().stream("Hi", tools=[tool])


def test_a_base_model_says_what_to_do(make: Make) -> None:
    llm = make(FakeModel.saying([*b"hi"], prompt=1), template="none")
    assert llm.mode == "never"
    with pytest.raises(TokenizerError, match=r"no chat template .*raw=True"):
        llm.stream("Hi")
    assert llm.generate("x", raw=True).text == "hi"


def test_raw_sends_the_text_and_nothing_else(make: Make) -> None:
    llm = make()
    text = "<|im_start|>user\nHi"
    done = llm.generate(text, raw=True, max_tokens=2)
    assert model_of(llm).calls[0] == llm.tokenizer.encode(text) == [257, *b"user\nHi"]
    assert done.usage.prompt_tokens == 8


def test_thinking_opened_by_the_prompt_is_thinking(make: Make) -> None:
    llm = make(template="always")
    prompt = len(llm.tokenizer.encode(llm.render("Hi")))
    llm = make(FakeModel.saying([*b"hm", 260, *b"yes"], prompt=prompt), template="always")
    done = llm.generate("Hi")
    assert (done.thinking, done.text, done.usage.thinking_tokens) == ("hm", "yes", 3)


def test_a_budget_of_zero_is_no_thinking(make: Make) -> None:
    llm = make()
    for thinking in (None, True, False):
        request = llm.request("Hi", thinking=thinking, thinking_budget=0)
        assert request.prompt_ids == llm.request("Hi", thinking=False).prompt_ids


# --- streams -----------------------------------------------------------------------------


def test_stream_and_generate_agree(tiny: LLM) -> None:
    events = list(tiny.stream("Hi", seed=3, **DRAWN))
    done = tiny.generate("Hi", seed=3, **DRAWN)
    assert [event.kind for event in events].count("end") == 1
    last = events[-1].completion
    assert last is not None
    assert plain(last) == plain(done)
    assert "".join(e.text for e in events if e.kind == "answer") == done.text
    assert plain(tiny.generate("Hi", seed=4, **DRAWN)) != plain(done)


def test_progress_is_reported(tiny: LLM) -> None:
    reports: list[tuple[int, int]] = []
    list(tiny.stream("x" * 50, raw=True, max_tokens=1, progress=lambda *r: reports.append(r)))
    assert reports == [(50, 50)]


def settled() -> int:
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to every cache made."""
    made: list[weakref.ref[Any]] = []
    make_cache = Transformer.make_cache

    def record(self: Transformer, **options: Any) -> Any:
        cache = make_cache(self, **options)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(Transformer, "make_cache", record)
    return made


@pytest.mark.parametrize("events_taken", [0, 1, 5])
def test_closing_midway_frees_the_memory(
    events_taken: int, tiny: LLM, caches: list[weakref.ref[Any]]
) -> None:
    tiny.generate("Hi", seed=1, **DRAWN)
    before = settled()
    events: Any = tiny.stream("x" * 400, raw=True, seed=1, **DRAWN)
    for _ in range(events_taken):
        next(events)
    assert caches[-1]() is not None
    if events_taken:
        assert mx.get_active_memory() > before + 250_000
    events.close()
    del events
    assert mx.get_active_memory() - before < TRACE
    assert caches[-1]() is None
    if events_taken:
        assert mx.get_cache_memory() == 0  # nor does MLX keep it for later


def test_memory_does_not_grow(tiny: LLM, caches: list[weakref.ref[Any]]) -> None:
    held = []
    for seed in range(50):
        options: dict[str, Any] = {"presence_penalty": 0.5} if seed % 2 else {}
        tiny.generate("x" * (40 + seed), raw=True, max_tokens=4, seed=seed, **options)
        held.append(settled() if seed in (1, 49) else 0)
        assert mx.get_cache_memory() < 10_000  # scalars, freed while the device was still at it
    assert held[49] - held[1] < TRACE
    assert [cache() for cache in caches] == [None] * 50


def test_a_forgotten_stream_blocks_nobody(tiny: LLM) -> None:
    expected = plain(tiny.generate("Hi", seed=1, **DRAWN))
    forgotten = tiny.stream("Hello", raw=True, seed=2, **DRAWN)
    next(forgotten)
    next(forgotten)
    assert plain(tiny.generate("Hi", seed=1, **DRAWN)) == expected
    rest = [event for event in forgotten if event.completion is not None]
    whole = tiny.generate("Hello", raw=True, seed=2, **DRAWN)
    assert rest[0].completion is not None
    assert plain(rest[0].completion) == plain(whole)


def finishes(work: Callable[[], Any], seconds: float = 30) -> Any:
    """The result of work done on a thread of its own; fails where it hangs."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as exc:  # noqa: BLE001  # handed to the test
            result.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout=seconds)


def test_a_forgotten_stream_collected_amid_a_step_blocks_nobody(make: Make) -> None:
    """Garbage collection may run anywhere, on the thread that holds the lock as well."""

    def collect(model: FakeModel) -> None:
        if len(model.calls) == 6:
            gc.collect()

    model = counting(before_step=collect)
    llm = make(model)

    def work() -> Completion:
        cycle: list[Any] = [llm.stream("x", raw=True, max_tokens=10)]
        next(cycle[0])
        cycle.append(cycle)  # only the collector can tell that nobody needs it
        del cycle
        return llm.generate("x", raw=True, max_tokens=10)

    gc.collect()
    gc.disable()
    try:
        done = finishes(work)
    finally:
        gc.enable()
    assert len(done.token_ids) == 10


def test_a_reply_may_be_made_while_another_reports_progress(make: Make) -> None:
    llm = make()
    inner: list[Completion] = []

    def progress(done: int, total: int) -> None:
        inner.append(llm.generate("y", raw=True, max_tokens=3))

    def work() -> list[Event]:
        return list(llm.stream("x", raw=True, max_tokens=3, progress=progress))

    events = finishes(work)
    assert len(inner[0].token_ids) == len(events[-1].completion.token_ids) == 3


def test_threads_stream_what_each_would_alone(tiny: LLM) -> None:
    def options(seed: int) -> dict[str, Any]:
        extra = {"presence_penalty": 1.0, "repetition_penalty": 1.1} if seed % 2 else {}
        return {**DRAWN, **extra, "max_tokens": 25, "seed": seed}

    alone = [plain(tiny.generate("Hi", **options(seed))) for seed in range(3)]
    found: dict[int, Any] = {}

    def run(seed: int) -> None:
        found[seed] = plain(tiny.generate("Hi", **options(seed)))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(3)] == alone
    assert len(set(alone)) == 3


def test_a_stream_may_move_between_threads(tiny: LLM) -> None:
    """As web frameworks do that pull a generator through a pool of threads."""
    options: dict[str, Any] = {
        **DRAWN,
        "seed": 1,
        "presence_penalty": 1.0,
        "repetition_penalty": 1.2,
        "logit_bias": {70: 1.0},
    }
    expected = list(tiny.stream("Hi", **options))
    events = tiny.stream("Hi", **options)
    found: list[Event] = []
    while event := finishes(lambda: next(events, None)):
        found.append(event)
    assert without_end(found) == without_end(expected)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_error_amid_a_step_ends_the_stream_and_only_that(
    kind: type[BaseException], make: Make
) -> None:
    def fail(model: FakeModel) -> None:
        if len(model.calls) == 3:
            model.calls.append([])
            raise kind

    model = counting(before_step=fail)
    llm = make(model)
    events = llm.stream("x", raw=True, max_tokens=10)
    with pytest.raises(kind):
        list(events)
    assert next(events, None) is None
    cache = weakref.ref(model.caches.pop())
    assert cache() is None
    done = finishes(lambda: llm.generate("x", raw=True, max_tokens=10))
    assert len(done.token_ids) == 10


def test_an_interrupt_between_steps_frees_the_memory(
    tiny: LLM, caches: list[weakref.ref[Any]]
) -> None:
    tiny.generate("Hi", seed=1, **DRAWN)
    before = settled()

    def interrupted() -> None:
        for _ in tiny.stream("x" * 400, raw=True, seed=1, **DRAWN):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert settled() - before < TRACE
    assert caches[-1]() is None


# --- astream -----------------------------------------------------------------------------


async def collect_events(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing was left undone by an event loop, nor complained about in its log."""
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield
    gc.collect()
    complaints = [r.getMessage() for r in caplog.records if r.name == "asyncio"]
    assert [one for one in complaints if "took" not in one] == []  # slow callbacks are no matter


def flush(llm: LLM) -> None:
    """Wait for everything that astream has queued."""
    llm._worker.submit(lambda: None).result(timeout=30)


@pytest.mark.usefixtures("quiet")
def test_astream_gives_the_events_of_stream(tiny: LLM) -> None:
    expected = list(tiny.stream("Hi", seed=3, **DRAWN))
    found = asyncio.run(collect_events(tiny.astream("Hi", seed=3, **DRAWN)))
    assert without_end(found) == without_end(expected)
    assert found[-1].completion is not None
    assert expected[-1].completion is not None
    assert plain(found[-1].completion) == plain(expected[-1].completion)


@pytest.mark.usefixtures("quiet")
def test_several_astreams_at_once(tiny: LLM) -> None:
    async def main() -> list[list[Event]]:
        streams = (tiny.astream("Hi", seed=seed, **DRAWN) for seed in range(4))
        return await asyncio.gather(*(collect_events(one) for one in streams))

    for seed, events in enumerate(asyncio.run(main())):
        assert without_end(events) == without_end(list(tiny.stream("Hi", seed=seed, **DRAWN)))


@pytest.mark.usefixtures("quiet")
def test_astreams_take_turns(make: Make) -> None:
    """None waits for another to end."""
    llm = make()
    order: list[str] = []

    async def follow(name: str) -> None:
        async for _ in llm.astream("x", raw=True, max_tokens=20):
            order.append(name)  # noqa: PERF401  # as it happens, not at the end

    async def main() -> None:
        await asyncio.gather(follow("a"), follow("b"))

    asyncio.run(main())
    assert "b" in order[:4]
    assert "a" in order[-4:]
    assert "a" in order[:4]


@pytest.mark.usefixtures("quiet")
def test_cancelling_stops_the_work(make: Make) -> None:
    """Also while a step runs: it ends, and no other follows."""
    running, release = threading.Event(), threading.Event()

    def block(model: FakeModel) -> None:
        if len(model.calls) == 4:
            running.set()
            release.wait(timeout=30)

    model = counting(before_step=block)
    llm = make(model)
    kept: list[BaseException] = []  # whose traceback holds every frame it went through

    async def main() -> None:
        task = asyncio.create_task(collect_events(llm.astream("x", raw=True, max_tokens=400)))
        await asyncio.get_running_loop().run_in_executor(None, running.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        kept.append(caught.value)
        release.set()

    asyncio.run(main())
    flush(llm)
    assert len(model.calls) == 5  # the one that was running
    cache = weakref.ref(model.caches.pop())
    assert cache() is None


@pytest.mark.usefixtures("quiet")
def test_cancelling_stops_a_long_prompt(make: Make) -> None:
    """It may take minutes to read: no chunk follows the one that runs."""
    running, release = threading.Event(), threading.Event()

    def block(model: FakeModel) -> None:
        running.set()
        release.wait(timeout=30)

    model = counting(config=FakeConfig(context_length=9000), before_step=block)
    llm = make(model)
    reports: list[tuple[int, int]] = []

    async def main() -> None:
        events = llm.astream("x" * 8000, raw=True, progress=lambda *r: reports.append(r))
        task = asyncio.create_task(collect_events(events))
        await asyncio.get_running_loop().run_in_executor(None, running.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()

    asyncio.run(main())
    flush(llm)
    assert [len(call) for call in model.calls] == [2048]
    assert reports == []
    whole = asyncio.run(
        collect_events(
            llm.astream("x" * 4000, raw=True, max_tokens=1, progress=lambda *r: reports.append(r))
        )
    )
    assert whole[-1].kind == "end"
    assert reports == [(2048, 4000), (4000, 4000)]


@pytest.mark.usefixtures("quiet")
def test_cancelling_twice_still_closes(make: Make) -> None:
    """Impatient callers cancel again; the work must not be left behind for it."""
    running, release = threading.Event(), threading.Event()

    def block(model: FakeModel) -> None:
        if len(model.calls) == 2:
            running.set()
            release.wait(timeout=30)

    model = counting(before_step=block)
    llm = make(model)

    async def main() -> None:
        task = asyncio.create_task(collect_events(llm.astream("x", raw=True, max_tokens=400)))
        await asyncio.get_running_loop().run_in_executor(None, running.wait, 30)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        release.set()
        await asyncio.wait([task])

    asyncio.run(main())
    flush(llm)
    assert len(model.calls) == 3


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("closes", [True, False])
def test_breaking_out_stops_the_work(closes: bool, make: Make) -> None:
    model = counting()
    llm = make(model)

    async def main() -> None:
        events: Any = llm.astream("x", raw=True, max_tokens=400)
        async for _ in events:
            break
        if closes:
            await events.aclose()

    asyncio.run(main())
    gc.collect()
    flush(llm)
    calls = len(model.calls)
    assert calls <= 4
    flush(llm)
    assert len(model.calls) == calls
    cache = weakref.ref(model.caches.pop())
    assert cache() is None


@pytest.mark.usefixtures("quiet")
def test_an_event_loop_may_close_at_any_time(make: Make) -> None:
    """With one stream cancelled, one broken out of, one suspended and one not begun."""
    model = counting()
    llm = make(model)
    kept: list[Any] = []

    async def main() -> None:
        task = asyncio.create_task(collect_events(llm.astream("x", raw=True, max_tokens=400)))
        async for _ in llm.astream("y", raw=True, max_tokens=400):
            break
        kept.append(llm.astream("z", raw=True, max_tokens=400))
        await anext(kept[0])
        kept.append(llm.astream("z", raw=True, max_tokens=400))
        del task

    asyncio.run(main())
    kept.clear()
    gc.collect()
    flush(llm)
    calls = len(model.calls)
    flush(llm)
    assert len(model.calls) == calls < 100


@pytest.mark.usefixtures("quiet")
def test_an_event_loop_that_closes_waits_for_no_step(make: Make) -> None:
    """A stream is broken out of, and one cancelled, while a long step runs."""
    running, release = threading.Event(), threading.Event()

    def block(model: FakeModel) -> None:
        if len(model.calls) == 6:
            running.set()
            release.wait(timeout=30)

    model = counting(before_step=block)
    llm = make(model)

    async def main() -> None:
        broken = llm.astream("x", raw=True, max_tokens=400)
        await anext(broken)
        task = asyncio.create_task(collect_events(llm.astream("y", raw=True, max_tokens=400)))
        await asyncio.get_running_loop().run_in_executor(None, running.wait, 30)
        assert not task.done()

    try:
        finishes(lambda: asyncio.run(main()), seconds=10)
    finally:
        release.set()
    flush(llm)
    assert len(model.calls) == 7


@pytest.mark.usefixtures("quiet")
def test_astream_works_in_one_event_loop_after_another(make: Make) -> None:
    llm = make()
    lengths = [
        len(asyncio.run(collect_events(llm.astream("x", raw=True, max_tokens=3)))) for _ in range(3)
    ]
    assert len(set(lengths)) == 1
    assert lengths[0] > 1


@pytest.mark.usefixtures("quiet")
def test_errors_come_out_of_astream(make: Make) -> None:
    def fail(model: FakeModel) -> None:
        if len(model.calls) == 3:
            raise RuntimeError("the device gave up")

    llm = make(counting(before_step=fail))
    with pytest.raises(OptionError, match="unknown option 'tmperature'"):
        asyncio.run(collect_events(llm.astream("x", tmperature=1)))
    assert model_of(llm).calls == []
    with pytest.raises(RuntimeError, match="the device gave up"):
        asyncio.run(collect_events(llm.astream("x", raw=True, max_tokens=10)))


@pytest.mark.usefixtures("quiet")
def test_the_event_loop_stays_free_during_a_step(make: Make) -> None:
    running, release = threading.Event(), threading.Event()

    def block(model: FakeModel) -> None:
        running.set()
        assert release.wait(timeout=30)

    llm = make(counting(before_step=block))

    async def main() -> int:
        task = asyncio.create_task(collect_events(llm.astream("x", raw=True, max_tokens=2)))
        await asyncio.get_running_loop().run_in_executor(None, running.wait, 30)
        release.set()  # would never be reached if the step ran here
        return len(await task)

    assert finishes(lambda: asyncio.run(main())) > 1


# --- the end of the process --------------------------------------------------------------

LEAVES = """
import sys
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.llm import LLM, load
llm = LLM.from_folder(sys.argv[1])
events = llm.stream("x" * 300, raw=True, seed=1, max_tokens=100)
print(next(events).kind)
{how}
"""


def leave(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", LEAVES.format(how=how), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
        check=False,
    )


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [("", 0, ""), ("sys.exit(3)", 3, ""), ("raise ValueError('oops')", 1, "ValueError: oops")],
)
def test_a_process_may_end_amid_a_stream(how: str, code: int, last: str, checkpoint: Path) -> None:
    """A step in flight at exit has hung in OpenBLAS' own shutdown."""
    done = leave(checkpoint, how)
    assert done.returncode == code
    assert done.stdout.strip() in ("answer", "end")
    assert done.stderr.strip().rpartition("\n")[2] == last


def test_the_fake_says_its_end() -> None:
    """FakeModel.saying, which much here relies on."""
    model = FakeModel.saying([1, 2], prompt=3)
    cache = model.make_cache()
    places = [[5, 5, 5], [1], [2]]
    said = [
        int(mx.argmax(model.hidden_states(mx.array([ids]), cache)[0, -1]).item()) for ids in places
    ]
    assert said == [1, 2, EOS]


# --- speculation -------------------------------------------------------------------------


def repeating() -> FakeModel:
    return FakeModel(lambda ids: ord("a") + len(ids) % 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speculation": "guess"}, "speculation is 'guess'; expected one of off, lookup, draft"),
        ({"speculation": True}, "speculation is True; expected one of"),
        ({"speculation": "draft"}, "needs a draft model"),
    ],
    ids=str,
)
def test_speculation_that_cannot_be(options: dict[str, Any], says: str, make: Make) -> None:
    with pytest.raises(OptionError, match=says):
        make().stream("Hi", **options)


def test_who_proposes_by_default(make: Make) -> None:
    llm, draft = make(repeating()), make(repeating())
    assert llm.request("Hi").speculation == "lookup"
    assert llm.request("Hi", speculation=False).speculation == "off"
    assert llm.request("Hi", draft=draft).speculation == "draft"
    llm.draft = draft
    assert llm.request("Hi").speculation == "draft"
    assert llm.request("Hi", speculation="lookup").speculation == "lookup"


def test_a_draft_must_speak_the_same_tokens(make: Make, tmp_path: Path) -> None:
    llm = make()
    with pytest.raises(OptionError, match="the draft model has 300 tokens, the model 288; choose"):
        llm.draft = make(FakeModel(lambda ids: 0, config=FakeConfig(vocab_size=300)))
    assert llm.draft is None
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))
    foreign = LLM(counting(), Tokenizer.from_folder(tmp_path), {})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"token 0 is .* to the draft model, .* to the model"):
        llm.stream("Hi", draft=foreign)


def test_load_with_a_draft(checkpoint: Path) -> None:
    llm = load(checkpoint, draft=checkpoint)
    assert llm.draft is not None
    plain = llm.generate("Hi", speculation=False, temperature=0, max_tokens=20)
    assert llm.generate("Hi", temperature=0, max_tokens=20).token_ids == plain.token_ids


def test_proposed_and_accepted_are_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "best", lambda self, survival: min(4, len(survival)))
    done = make(repeating()).generate("abcdabcdabcd", temperature=0, max_tokens=40)
    assert 0 < done.accepted_tokens <= done.proposed_tokens
    assert len(done.token_ids) == 40
