"""Caches: the same attention however it is chunked, trimmed or forgotten, in bounded memory."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3.errors import CacheFullError, OptionError
from mlx_qwen3.model.cache import Cache, LayerCache, QuantizedLayerCache, make_layer_cache
from mlx_qwen3.model.transformer import Transformer
from tests.model.tiny_models import LONG

Array = NDArray[Any]
Models = Callable[[str], Transformer]
MakeCache = Callable[[Transformer], Cache]

TOLERANCE = 1e-3  # of the logits' standard deviation
TOKEN_IDS = list(LONG.encode())
# Models whose head_dim a quantization group divides.
NAMES = ["yarn", "yarn-moe", "gqa-1"]

CACHES: dict[str, MakeCache] = {
    "plain": lambda model: model.make_cache(),
    "rotating": lambda model: model.make_cache(max_kv_size=24, keep=4),
    "quantized-8": lambda model: model.make_cache(kv_bits=8),
    "quantized-4": lambda model: model.make_cache(kv_bits=4),
    "rotating-8": lambda model: model.make_cache(max_kv_size=24, keep=4, kv_bits=8),
}
every_cache = pytest.mark.parametrize("kind", CACHES)
every_model = pytest.mark.parametrize("name", NAMES)


def run(model: Transformer, token_ids: list[int], cache: Cache) -> Array:
    """The logits of the last token, (vocab_size,)."""
    return np.array(model(mx.array([token_ids]), cache=cache)[0, -1])


def chunks(length: int, longest: int, seed: int) -> Iterator[tuple[int, int]]:
    sizes, start = random.Random(seed), 0
    while start < length:
        stop = min(length, start + sizes.randint(1, longest))
        yield start, stop
        start = stop


def error(actual: Array, expected: Array) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / expected.std())


# --- on models ---------------------------------------------------------------------------


@every_cache
@every_model
def test_chunks_of_any_size_give_the_same(name: str, kind: str, tiny_model: Models) -> None:
    model = tiny_model(name)
    # Four bits amplify which of two neighbouring values a tiny difference rounds to.
    tolerance = TOLERANCE if kind in ("plain", "rotating") else 0.2
    reference = run(model, TOKEN_IDS, CACHES[kind](model))
    for longest in (1, 5, 50):
        cache = CACHES[kind](model)
        for start, stop in chunks(len(TOKEN_IDS), longest, seed=longest):
            logits = run(model, TOKEN_IDS[start:stop], cache)
        assert cache.offset == len(TOKEN_IDS)
        assert error(logits, reference) <= tolerance


@every_cache
@pytest.mark.parametrize("trimmed", [1, 3, 17, 60])
def test_trim_and_continue_is_a_fresh_start(kind: str, trimmed: int, tiny_model: Models) -> None:
    """As a rejected proposal or an edited message does it."""
    model = tiny_model("yarn")
    kept, wrong, right = TOKEN_IDS[:25], [7] * trimmed, TOKEN_IDS[25:40]
    fresh, cache = CACHES[kind](model), CACHES[kind](model)
    for token in kept:
        run(model, [token], fresh)
        run(model, [token], cache)
    run(model, wrong, cache)
    assert cache.trimmable >= trimmed
    cache.trim(trimmed)
    assert cache.offset == fresh.offset == len(kept)
    for token in right:
        expected = run(model, [token], fresh)
        assert error(run(model, [token], cache), expected) <= 1e-5


@every_cache
def test_everything_can_be_taken_back_while_nothing_is_forgotten(
    kind: str, tiny_model: Models
) -> None:
    model = tiny_model("yarn")
    cache = CACHES[kind](model)
    run(model, [1, 2, 3], cache)
    cache.trim(3)
    assert cache.offset == 0
    assert error(run(model, [4, 5], cache), run(model, [4, 5], CACHES[kind](model))) <= 1e-5


@every_cache
def test_trimming_too_much_is_refused(kind: str, tiny_model: Models) -> None:
    model = tiny_model("yarn")
    cache = CACHES[kind](model)
    run(model, [1, 2, 3], cache)
    for tokens in (4, -1):
        with pytest.raises(OptionError, match="3"):
            cache.trim(tokens)
    assert cache.offset == 3


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_what_was_forgotten_cannot_be_taken_back(kv_bits: int | None, tiny_model: Models) -> None:
    """But what can be is enough to go on as if the rest had never been read."""
    model = tiny_model("yarn")
    caches = [model.make_cache(max_kv_size=24, keep=4, kv_bits=kv_bits) for _ in range(2)]
    long, short = caches
    token_ids = TOKEN_IDS * 9
    for start in range(0, len(token_ids), 20):
        run(model, token_ids[start : start + 20], long)
    possible = long.trimmable
    assert 0 < possible < long.offset - 24
    with pytest.raises(OptionError):
        long.trim(possible + 1)
    assert long.offset == len(token_ids)
    long.trim(possible)
    assert long.offset == len(token_ids) - possible
    run(model, token_ids[: long.offset], short)
    for token in TOKEN_IDS[:3]:
        assert error(run(model, [token], long), run(model, [token], short)) < (
            TOLERANCE if kv_bits is None else 0.1
        )


def test_a_draft_can_always_be_taken_back() -> None:
    """Even right after old tokens were dropped."""
    cache = LayerCache(max_size=24, keep=4)
    for offset in range(1, 900):
        cache.update(*[mx.ones((1, 1, 1, 32))] * 2)
        assert cache.trimmable >= min(offset, 64)


@every_model
def test_a_rotating_cache_is_the_plain_one_while_it_fits(name: str, tiny_model: Models) -> None:
    model = tiny_model(name)
    plain, rotating = model.make_cache(), model.make_cache(max_kv_size=30, keep=4)
    for token in TOKEN_IDS[:30]:
        expected = run(model, [token], plain)
        assert error(run(model, [token], rotating), expected) <= 1e-5
    last = TOKEN_IDS[30:31]
    assert error(run(model, last, rotating), run(model, last, plain)) > TOLERANCE


@every_model
def test_quantized_caches_stay_close(name: str, tiny_model: Models) -> None:
    """Less so in a mixture: a token near the border may be sent to another random expert."""
    model = tiny_model(name)
    token_ids = mx.array([TOKEN_IDS])
    plain = model(token_ids, cache=model.make_cache())

    def spread(kv_bits: int) -> float:
        """Root mean square, in standard deviations of the logits."""
        away = model(token_ids, cache=model.make_cache(kv_bits=kv_bits)) - plain
        return float(mx.sqrt(mx.mean(away**2)) / mx.std(plain))

    eight, four = spread(8), spread(4)
    assert 1e-5 < eight < (0.15 if "moe" in name else 0.05)
    assert 3 * eight < four < 0.5


def test_bytes_are_those_of_the_buffers(tiny_model: Models) -> None:
    model = tiny_model("yarn")  # 3 layers, 2 KV heads of 32
    per_token = 3 * 2 * 2 * 32
    assert model.make_cache().nbytes == 0
    sizes = {}
    for bits in (None, 8, 4):
        cache = model.make_cache(kv_bits=bits)
        run(model, TOKEN_IDS, cache)
        capacity = cache.layers[0].capacity
        assert len(TOKEN_IDS) <= capacity <= 2 * 256
        groups = 0 if bits is None else 2 * 4 * per_token // 32  # a scale and a bias each
        assert cache.nbytes == capacity * (per_token * (bits or 32) // 8 + groups)
        assert cache.nbytes == sum(buffer.nbytes for buffer in cache.state())
        sizes[bits] = cache.nbytes
    assert sizes[4] < sizes[8] < sizes[None] / 2


@every_cache
def test_a_full_cache_says_so_before_anything_is_lost(kind: str, tiny_model: Models) -> None:
    model = tiny_model("yarn")
    limits = {"quantized-8": {"kv_bits": 8}, "quantized-4": {"kv_bits": 4}}.get(kind, {})
    if kind.startswith("rotating"):
        limits = {"max_kv_size": 24}
    cache = model.make_cache(max_tokens=10, **limits)
    run(model, TOKEN_IDS[:8], cache)
    with pytest.raises(CacheFullError, match="10"):
        run(model, TOKEN_IDS[8:11], cache)
    assert cache.offset == 8
    fresh = model.make_cache(**limits)
    run(model, TOKEN_IDS[:8], fresh)
    expected = run(model, TOKEN_IDS[8:10], fresh)
    assert error(run(model, TOKEN_IDS[8:10], cache), expected) <= 1e-5


def test_a_sliding_layer_keeps_little(tiny_model: Models) -> None:
    """Window 8 in every layer: a long text does not grow its cache."""
    model = tiny_model("sliding-moe")
    cache = model.make_cache()
    for _ in range(40):
        mx.eval(model(mx.array([TOKEN_IDS[:32]]), cache=cache))
    assert cache.offset == 1280
    assert max(layer.capacity for layer in cache.layers) <= 512


def test_impossible_caches_are_refused(tiny_model: Models) -> None:
    model = tiny_model("yarn")
    for bits in (3, 16, 0):
        with pytest.raises(OptionError, match=str(bits)):
            model.make_cache(kv_bits=bits)
    for size in (0, -1, 4):
        with pytest.raises(OptionError, match=str(size)):
            model.make_cache(max_kv_size=size, keep=4)
    with pytest.raises(OptionError, match="head_dim"):
        tiny_model("dense").make_cache(kv_bits=8)  # head_dim 16: no group divides it


# --- one layer, against attention written out --------------------------------------------


def attention(
    queries: Array, keys: Array, values: Array, visible: Callable[[int, int], bool]
) -> Array:
    """(heads, L, head_dim) of a whole sequence, in float64; each head has its own keys."""
    length = queries.shape[1]
    allowed = np.array([[visible(q, k) for k in range(length)] for q in range(length)])
    scores = queries @ keys.swapaxes(-1, -2) / math.sqrt(queries.shape[-1])
    scores = np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights @ values / weights.sum(axis=-1, keepdims=True)


def rotating(max_size: int | None, keep: int) -> Callable[[int, int], bool]:
    """The first `keep` tokens and the most recent others, `max_size` in all; None: all."""

    def visible(query: int, key: int) -> bool:
        if key > query or max_size is None:
            return key <= query
        return key < keep or query - key < max_size - keep or query < max_size

    return visible


def attend(cache: LayerCache, parts: list[Array], longest: int, seed: int) -> Array:
    outputs = []
    for start, stop in chunks(parts[0].shape[1], longest, seed):
        arrays = [mx.array(part[None, :, start:stop].astype(np.float32)) for part in parts]
        mask = cache.mask(stop - start)
        outputs.append(cache.attend(*arrays, scale=1 / math.sqrt(parts[0].shape[-1]), mask=mask)[0])
    return np.array(mx.concatenate(outputs, axis=1))


@pytest.mark.parametrize("longest", [1, 3, 30, 480])
@pytest.mark.parametrize(("max_size", "keep"), [(None, 0), (8, 0), (12, 4), (100, 4), (9, 8)])
def test_attention_is_what_it_says(max_size: int | None, keep: int, longest: int) -> None:
    """Long enough to forget several times over."""
    random_state = np.random.default_rng(longest)
    parts = [random_state.standard_normal((2, 480, 32)) for _ in range(3)]
    expected = attention(*parts, rotating(max_size, keep))
    plain = LayerCache(max_size=max_size, keep=keep)
    assert np.abs(attend(plain, parts, longest, seed=keep) - expected).max() < 1e-4
    packed = QuantizedLayerCache(bits=8, group_size=32, max_size=max_size, keep=keep)
    assert np.abs(attend(packed, parts, longest, seed=keep) - expected).max() < 0.1
    if max_size is not None:
        assert plain.capacity <= 1024
        assert plain.offset == 480


@pytest.mark.parametrize("heads", [2, 4, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_keys_serve_groups_of_heads(heads: int, bits: int) -> None:
    """One query at a time multiplies packed keys; many at once unpack them: the same numbers."""
    keys = mx.random.split(mx.random.key(heads), 3)
    queries = mx.random.normal((2, heads, 12, 64), key=keys[0])
    new = [mx.random.normal((2, 2, 12, 64), key=key) for key in keys[1:]]
    one, many = QuantizedLayerCache(bits=bits), QuantizedLayerCache(bits=bits)
    whole = many.attend(queries, *new, scale=0.125, mask=many.mask(12))
    steps = [
        one.attend(
            queries[:, :, i : i + 1],
            *(part[:, :, i : i + 1] for part in new),
            scale=0.125,
            mask=one.mask(1),
        )
        for i in range(12)
    ]
    assert error(np.array(mx.concatenate(steps, axis=2)), np.array(whole)) < 1e-4


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_update_returns_everything_kept(kv_bits: int | None) -> None:
    cache = make_layer_cache(head_dim=32, kv_bits=kv_bits)
    keys = mx.random.normal((1, 2, 300, 32), key=mx.random.key(0))
    tolerance = 1e-6 if kv_bits is None else 0.05
    for start, stop in chunks(300, 40, seed=1):
        kept, values = cache.update(keys[:, :, start:stop], -keys[:, :, start:stop])
        assert kept.dtype == values.dtype == keys.dtype
        assert mx.abs(kept - keys[:, :, :stop]).max().item() < tolerance
        assert mx.abs(values + keys[:, :, :stop]).max().item() < tolerance


# --- memory and work ---------------------------------------------------------------------


def step(cache: LayerCache, tokens: int = 1) -> None:
    new = mx.ones((1, 1, tokens, 32))
    cache.update(new, new)
    mx.eval(cache.state())


@pytest.mark.parametrize("kv_bits", [None, 4])
def test_growth_is_said_before_it_happens(kv_bits: int | None) -> None:
    cache = make_layer_cache(head_dim=32, kv_bits=kv_bits)
    step(cache, 8)
    grew = 0
    for _ in range(2000):
        growth, before = cache.growth, cache.nbytes
        step(cache, 1)
        assert cache.nbytes == before + growth
        grew += growth > 0
    assert grew >= 4


@pytest.mark.parametrize("kv_bits", [None, 4])
def test_growing_copies_a_constant_multiple(kv_bits: int | None) -> None:
    """20,000 tokens, 8 at a time: few moves, and together a few times the final size."""
    cache = make_layer_cache(head_dim=32, kv_bits=kv_bits)
    capacities = []
    for _ in range(2500):
        step(cache, 8)
        if not capacities or cache.capacity != capacities[-1]:
            capacities.append(cache.capacity)
    assert capacities[-1] >= 20_000
    assert capacities[-1] <= 1.3 * 20_000
    assert len(capacities) <= 30
    assert sum(capacities) <= 6 * 20_000


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("max_size", [None, 16])
def test_a_step_writes_in_place(kv_bits: int | None, max_size: int | None) -> None:
    """A step that copied its buffers would need their size once more at its peak."""
    cache = make_layer_cache(head_dim=32, kv_bits=kv_bits, max_size=max_size)
    step(cache, 260)  # within a block of the next growth or forgetting
    for _ in range(8):
        before, capacity = mx.get_active_memory(), cache.capacity
        mx.reset_peak_memory()
        step(cache)
        assert cache.capacity == capacity
        assert mx.get_peak_memory() - before < cache.nbytes / 4


def test_a_model_step_writes_in_place(tiny_model: Models) -> None:
    """The whole forward pass, as decoding does it: caches, views and masks included."""
    model = tiny_model("yarn")
    cache = model.make_cache()
    for _ in range(20):
        mx.eval(model(mx.array([TOKEN_IDS]), cache=cache)[:, -1], cache.state())
    for _ in range(8):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(model(mx.array([[5]]), cache=cache), cache.state())
        assert mx.get_peak_memory() - before < cache.nbytes / 4


def test_a_rotating_cache_stays_its_size(tiny_model: Models) -> None:
    model = tiny_model("yarn")
    cache = model.make_cache(max_kv_size=64, keep=4)
    sizes = set()
    for _ in range(30):
        run(model, TOKEN_IDS, cache)
        sizes.add(cache.nbytes)
    assert cache.offset == 30 * len(TOKEN_IDS)
    assert max(sizes) <= 512 * 3 * 2 * 2 * 32 * 4


def test_what_fills_a_buffer_keeps_nothing_else_alive() -> None:
    """Keys and values are views of larger products; a prompt of 256 tokens fills a new buffer."""
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    layer = LayerCache()
    heads = mx.ones((1, 64, 256, 32)) * 2
    layer.update(heads[:, :2], heads[:, 2:4])
    mx.eval(layer.state())
    del heads
    mx.synchronize()
    # Against the 2 MB of `heads`; a little is MLX's own and comes and goes.
    assert mx.get_active_memory() - before <= layer.nbytes + 100_000
