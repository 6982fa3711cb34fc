"""The token loop: the same tokens however it is fed, one step ahead, nothing left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3.generation.loop import Token, TokenLoop
from mlx_qwen3.generation.sampling import Sampler, SamplingParams
from mlx_qwen3.model.step import CompiledStep, DecodeStep, PlainStep
from mlx_qwen3.model.transformer import Transformer
from tests.checkpoints import write_checkpoint
from tests.fakes_model import FakeModel
from tests.model.tiny_models import TINY_MODELS

Models = Callable[[str], Transformer]

STEPS: dict[str, Callable[[Transformer], DecodeStep]] = {
    "plain": PlainStep,
    "compiled": lambda model: CompiledStep(model, after=0),
}
every_step = pytest.mark.parametrize("form", STEPS)
PROMPT = list(b"The quick brown fox jumps over the lazy dog, and the dog sleeps on.")
FORCED = list(b"\n\nNo more time.")
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.3}
CACHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotating": {"max_kv_size": 24},
    "8 bits": {"kv_bits": 8},
    "rotating, 8 bits": {"max_kv_size": 24, "kv_bits": 8},
}


def make_loop(
    model: Transformer,
    *,
    prompt: list[int] = PROMPT,
    written: tuple[int, ...] | list[int] = (),
    chunk: int = 2048,
    cache: dict[str, Any] | None = None,
    **options: Any,
) -> TokenLoop:
    """A loop that has read the prompt and what was written after it."""
    params = SamplingParams.from_options({"temperature": 0, **options})
    sampler = Sampler(params, model.config.vocab_size, seed=11)
    sampler.observe_prompt(prompt)
    if written:
        sampler.observe(mx.array(list(written)))
    loop = TokenLoop(model, model.make_cache(**(cache or {})), sampler, chunk=chunk)
    loop.feed([*prompt, *written])
    return loop


def take(loop: TokenLoop, count: int) -> list[int]:
    return [loop.next().token_id for _ in range(count)]


# --- prefill -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "rotating"])
@pytest.mark.parametrize("chunk", [1, 3, 7, len(PROMPT) - 1, len(PROMPT), 100])
def test_any_chunk_size_gives_the_same_tokens(kind: str, chunk: int, tiny_model: Models) -> None:
    model = tiny_model("dense")
    options: dict[str, Any] = {"cache": CACHES[kind], "temperature": 0.8, "logprobs": 2}
    whole, chunked = make_loop(model, **options), make_loop(model, chunk=chunk, **options)
    for _ in range(12):
        one, other = whole.next(), chunked.next()
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]


@pytest.mark.parametrize("length", [1, 4, 5, 8, 9, 23])
def test_chunks_cover_the_prompt_and_only_the_last_runs_the_head(length: int) -> None:
    model = FakeModel(lambda ids: 7)
    reports: list[tuple[int, int]] = []
    loop = TokenLoop(
        model, model.make_cache(), Sampler(SamplingParams(temperature=0), 288, 0), chunk=4
    )
    loop.feed(range(length), lambda done, total: reports.append((done, total)))
    assert [one for call in model.calls for one in call] == list(range(length))
    assert max(map(len, model.calls)) <= 4
    assert model.heads == 1
    assert [total for _, total in reports] == [length] * len(model.calls)
    done = [one for one, _ in reports]
    assert done == sorted(set(done))
    assert reports[-1] == (length, length)


# --- steps -------------------------------------------------------------------------------


def test_each_step_runs_ahead_and_the_last_does_not() -> None:
    model = FakeModel(lambda ids: ids[-1] + 1)
    loop = TokenLoop(model, model.make_cache(), Sampler(SamplingParams(temperature=0), 288, 0))
    loop.feed([10])
    assert model.calls == [[10]]
    assert loop.next() == Token(11)
    assert model.calls == [[10], [11]]  # what follows 11 is already under way
    assert loop.next(last=True) == Token(12)
    assert model.calls == [[10], [11]]
    with pytest.raises(RuntimeError, match="feed the prompt first"):
        loop.next()


def test_nothing_to_say_before_a_prompt() -> None:
    model = FakeModel(lambda ids: 1)
    loop = TokenLoop(model, model.make_cache(), Sampler(SamplingParams(), 288, 0))
    with pytest.raises(RuntimeError, match="feed the prompt first"):
        loop.next()


def test_penalties_see_every_token_in_time(tiny_model: Models) -> None:
    """One step ahead, with the token before it counted: against a loop that is never ahead."""
    model = tiny_model("dense")
    ahead = take(make_loop(model, **PENALTIES), 16)
    written: list[int] = []
    for _ in range(16):
        loop = make_loop(model, written=written, **PENALTIES)
        written.append(loop.next(last=True).token_id)
    assert ahead == written
    assert ahead != take(make_loop(model), 16)


def test_the_same_tokens_with_and_without_logprobs(tiny_model: Models) -> None:
    model = tiny_model("moe")
    plain = take(make_loop(model, temperature=1.0), 10)
    reported = make_loop(model, temperature=1.0, logprobs=3)
    tokens = [reported.next() for _ in range(10)]
    assert [token.token_id for token in tokens] == plain
    assert all(token.logprob is not None and len(token.top) == 3 for token in tokens)


# --- forced tokens -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, PENALTIES], ids=["plain", "penalties"])
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("before", [0, 1, 9])
def test_forcing_equals_starting_afresh(
    before: int, kind: str, options: dict[str, Any], tiny_model: Models
) -> None:
    """Token for token: as if the forced tokens had been written all along."""
    model = tiny_model("gqa-1")  # its head_dim can be packed
    loop = make_loop(model, cache=CACHES[kind], **options)
    written = take(loop, before)
    loop.force(FORCED)
    fresh = make_loop(model, written=written + FORCED, cache=CACHES[kind], **options)
    forced = [loop.next() for _ in range(14)]
    assert forced == [fresh.next() for _ in range(14)]


def test_forcing_drops_the_step_in_flight() -> None:
    model = FakeModel(lambda ids: ids[-1] + 1)
    loop = TokenLoop(model, model.make_cache(), Sampler(SamplingParams(temperature=0), 288, 0))
    loop.feed([10])
    assert take(loop, 2) == [11, 12]
    loop.force([50, 60])
    assert take(loop, 2) == [61, 62]
    assert model.caches[0].token_ids == [10, 11, 12, 50, 60, 61, 62]


def test_forced_tokens_count_for_the_penalties() -> None:
    """And the token that was dropped does not."""
    ranked = [float(-one) for one in range(288)]  # 0 is best, then 1, ...
    model = FakeModel(lambda ids: ranked)
    params = SamplingParams(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    loop = TokenLoop(model, model.make_cache(), Sampler(params, 288, 0))
    loop.feed([100])
    assert loop.next() == Token(0)  # in flight: 1
    loop.force([2, 2])
    assert take(loop, 3) == [1, 3, 0]


# --- memory ------------------------------------------------------------------------------


def settled() -> int:
    """Bytes that MLX holds once nothing is under way."""
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()


@every_step
def test_a_dropped_loop_frees_everything_at_once(
    form: str, tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the step in flight, whose buffers would otherwise outlive it."""
    model = tiny_model("dense")
    monkeypatch.setattr(model, "step", STEPS[form](model))
    take(make_loop(model, prompt=PROMPT * 30, **PENALTIES), 5)  # a trace stays
    before = settled()
    loop = make_loop(model, prompt=PROMPT * 30, **PENALTIES)
    take(loop, 5)
    cache = weakref.ref(loop._cache)
    assert mx.get_active_memory() > before + 500_000
    del loop
    assert mx.get_active_memory() == before
    assert cache() is None


@every_step
@pytest.mark.parametrize("cache", [{}, {"max_kv_size": 1500}], ids=["plain", "rotating"])
def test_a_step_writes_in_place(
    cache: dict[str, Any], form: str, tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that overlap must not copy the context: a real one is gigabytes."""
    model = tiny_model("gqa-1")
    monkeypatch.setattr(model, "step", STEPS[form](model))
    loop = make_loop(model, prompt=[one % 250 for one in range(2000)], cache=cache)
    take(loop, 3)
    layer = loop._cache.layers[0]
    capacity = layer.capacity
    for _ in range(10):
        mx.synchronize()
        mx.reset_peak_memory()
        active = mx.get_active_memory()
        loop.next()
        mx.synchronize()
        assert mx.get_peak_memory() - active < layer.nbytes // 8
    assert layer.capacity == capacity  # else growing would have been measured


def test_freed_memory_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that grew leave smaller ones behind, which MLX would keep for ever."""
    model = FakeModel(lambda ids: 1)
    loop = TokenLoop(model, model.make_cache(), Sampler(SamplingParams(temperature=0), 288, 0))
    loop.feed([1])
    clears: list[int] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: clears.append(len(model.calls)))
    take(loop, 520)
    assert clears == [257, 513]


# --- threads and exceptions --------------------------------------------------------------


def test_each_step_may_come_from_another_thread(tiny_model: Models) -> None:
    """MLX's streams belong to threads: what one leaves unevaluated, no other can finish."""
    model = tiny_model("dense")
    options: dict[str, Any] = {
        **PENALTIES,
        "temperature": 0.9,
        "logit_bias": {70: 1.5},
        "logprobs": 1,
    }
    loop = make_loop(model, **options)
    expected = [loop.next() for _ in range(6)]
    params = SamplingParams.from_options(options)
    sampler = Sampler(params, model.config.vocab_size, seed=11)
    sampler.observe_prompt(PROMPT)
    loop = TokenLoop(model, model.make_cache(), sampler)
    found: list[Token] = []

    def run(step: Callable[[], object]) -> None:
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()

    run(lambda: loop.feed(PROMPT))
    for _ in range(6):
        run(lambda: found.append(loop.next()))
    assert found == expected


def test_a_model_that_fails_midway() -> None:
    def fail(model: FakeModel) -> None:
        if len(model.calls) == 3:
            raise RuntimeError("the device gave up")

    model = FakeModel(lambda ids: ids[-1] + 1, before_step=fail)
    loop = TokenLoop(model, model.make_cache(), Sampler(SamplingParams(temperature=0), 288, 0))
    loop.feed([10])
    assert take(loop, 2) == [11, 12]
    with pytest.raises(RuntimeError, match="the device gave up"):
        loop.next()
    with pytest.raises(RuntimeError, match="feed the prompt first"):
        loop.next()


ENDS_AMID_A_STEP = """
import sys
from mlx_qwen3 import device
device.prepare()
from mlx_qwen3.generation.loop import TokenLoop
from mlx_qwen3.generation.sampling import Sampler, SamplingParams
from mlx_qwen3.model.weights import load_model
model = load_model(sys.argv[1])
loop = TokenLoop(model, model.make_cache(), Sampler(SamplingParams(temperature=0), 288, 0))
loop.feed([one % 250 for one in range(1500)])
"""


@pytest.mark.slow
def test_a_process_may_end_amid_a_step(tmp_path: Path) -> None:
    """OpenBLAS, shut down by the exit while MLX still multiplies, has waited for ever."""
    wide = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 64}
    config = TINY_MODELS["dense"].config | wide | {"max_position_embeddings": 2048}
    folder = write_checkpoint(tmp_path, config)
    for _ in range(5):  # every other one hung
        command = [sys.executable, "-c", ENDS_AMID_A_STEP, str(folder)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=60)
        assert done.returncode == 0
