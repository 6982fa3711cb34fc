"""The forms of a decode step: the same logits, whichever is taken."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import CacheFullError
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.step import COMPILE_AFTER, CompiledStep, DecodeStep, PlainStep
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import load_model
from tests.checkpoints import write_checkpoint
from tests.model.tiny_models import TINY_MODELS

PROMPT = list(b"A prompt of some length, to be continued.")
TOLERANCE = 1e-4  # of the logits' standard deviation


@pytest.fixture
def one_folder(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("gqa-1")


def start(model: Transformer, prompt: list[int] = PROMPT, **options: int) -> Cache:
    cache = model.make_cache(**options)
    model.hidden_states(mx.array([prompt]), cache)
    mx.eval(cache.state())
    return cache


def logits(step: DecodeStep, cache: Cache, count: int) -> np.ndarray:
    """Of `count` steps over the same tokens: (count, vocab_size)."""
    rows = []
    for number in range(count):
        rows.append(step(mx.array([65 + number % 50]), cache))
        mx.eval(rows[-1])
    return np.array(mx.concatenate(rows))


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() <= TOLERANCE * expected.std()


@pytest.mark.parametrize("name", ["dense", "moe", "yarn", "moe-some-dense", "sliding"])
def test_a_compiled_step_says_what_the_plain_one_says(
    name: str, tiny_model: Callable[[str], Transformer]
) -> None:
    model = tiny_model(name)
    expected = logits(PlainStep(model), start(model), 12)
    assert_equal(logits(CompiledStep(model, after=0), start(model), 12), expected)


def test_traces_are_few_and_serve_buffers_that_grow(one_folder: Path) -> None:
    model = load_model(one_folder, dtype="float32")
    step = CompiledStep(model, after=0)
    cache = start(model, [one % 250 for one in range(250)])
    expected = logits(PlainStep(model), start(model, [one % 250 for one in range(250)]), 300)
    assert_equal(logits(step, cache, 300), expected)
    assert cache.offset == 550
    assert step.traces == 3  # for buffers of 256, 512 and 768 tokens
    logits(step, start(model), 300)
    assert step.traces == 3


def test_what_it_cannot_serve_goes_the_plain_way(one_folder: Path) -> None:
    model = load_model(one_folder, dtype="float32")
    step = CompiledStep(model, after=0)
    for options in ({"kv_bits": 8}, {"max_kv_size": 48}):
        expected = logits(PlainStep(model), start(model, **options), 20)
        np.testing.assert_array_equal(logits(step, start(model, **options), 20), expected)
    assert step.traces == 0


def test_a_cache_may_be_trimmed_between_steps(one_folder: Path) -> None:
    model = load_model(one_folder, dtype="float32")
    step, cache = CompiledStep(model, after=0), start(model)
    first = logits(step, cache, 10)
    cache.trim(10)
    assert cache.offset == len(PROMPT)
    np.testing.assert_array_equal(logits(step, cache, 10), first)
    cache.trim(4)
    model.hidden_states(mx.array([[1, 2, 3]]), cache)  # and read with several tokens again
    assert cache.offset == len(PROMPT) + 9


def test_a_full_cache_is_refused(one_folder: Path) -> None:
    model = load_model(one_folder, dtype="float32")
    step = CompiledStep(model, after=0)
    cache = start(model, max_tokens=len(PROMPT) + 2)
    logits(step, cache, 2)
    with pytest.raises(CacheFullError, match="the cache is full"):
        step(mx.array([1]), cache)
    assert cache.offset == len(PROMPT) + 2


def test_short_replies_do_not_pay_for_a_trace(one_folder: Path) -> None:
    model = load_model(one_folder, dtype="float32")
    assert isinstance(model.step, CompiledStep)
    logits(model.step, start(model), COMPILE_AFTER)
    assert model.step.traces == 0
    logits(model.step, start(model), 1)
    assert model.step.traces == 1


def test_a_model_that_goes_takes_its_weights_along(one_folder: Path) -> None:
    gc.collect()
    before = mx.get_active_memory()
    model = load_model(one_folder, dtype="float32")
    model.step = CompiledStep(model, after=0)
    held = mx.get_active_memory() - before
    logits(model.step, start(model), 3)
    gone = weakref.ref(model)
    del model
    gc.collect()
    mx.synchronize()
    assert gone() is None
    assert mx.get_active_memory() - before < held // 20


def test_a_trace_is_never_lent_to_another_model(tmp_path: Path) -> None:
    """MLX finds traces by address, and addresses are used again."""
    for seed in range(4):
        folder = tmp_path / str(seed)
        write_checkpoint(folder, TINY_MODELS["gqa-1"].config | {"rope_theta": 10.0 ** (2 + seed)})
        model = load_model(folder, dtype="float32")
        expected = logits(PlainStep(model), start(model), 5)
        assert_equal(logits(CompiledStep(model, after=0), start(model), 5), expected)
        del model
        gc.collect()


def test_every_thread_may_take_steps(one_folder: Path) -> None:
    model = load_model(one_folder, dtype="float32")
    step = CompiledStep(model, after=0)
    expected = logits(step, start(model), 5)
    found: list[np.ndarray] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(logits(step, start(model), 5)))
        thread.start()
        thread.join()
    assert len(found) == 2
    for actual in found:
        np.testing.assert_array_equal(actual, expected)


def test_large_layers_are_not_compiled(one_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_qwen3.model.policy._CPU_HOST_BOUND", 1000)
    assert type(load_model(one_folder, dtype="float32").step) is PlainStep
    assert type(load_model(one_folder, dtype="bfloat16").step) is PlainStep


def test_bytes_per_token_count_the_chosen_experts_only(
    tiny_model: Callable[[str], Transformer],
) -> None:
    config, model = TINY_MODELS["moe"].config, tiny_model("moe")
    per_expert = 3 * config["moe_intermediate_size"] * config["hidden_size"] * 4
    idle = config["num_experts"] - config["num_experts_per_tok"]
    full = model.layers[0].mlp.experts
    assert per_expert * config["num_experts"] == sum(
        matrices.weight.nbytes for matrices in (*full.gate_up, full.down)
    )
    assert model.layers[0].mlp.idle_bytes() == per_expert * idle
