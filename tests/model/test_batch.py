"""Several sequences in one step say what each says alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.batch import BatchedCache
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer

Models = Callable[[str], Transformer]

PROMPTS = [list(b"A first prompt."), list(b"Another, of another length, that goes on."), [7]]
CACHES: list[dict[str, Any]] = [{}, {"kv_bits": 8}, {"max_kv_size": 24}]


def prefilled(model: Transformer, prompt: list[int], options: dict[str, Any]) -> Cache:
    cache = model.make_cache(**options)
    model.hidden_states(mx.array([prompt]), cache)
    return cache


@pytest.mark.parametrize("kinds", [[{}, {}, {}], CACHES], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", ["gqa-1", "moe-defaults", "yarn", "sliding"])
def test_a_batch_says_what_its_sequences_say(
    name: str, kinds: list[dict[str, Any]], tiny_model: Models
) -> None:
    model = tiny_model(name)
    if any("kv_bits" in kind for kind in kinds) and model.config.head_dim % 32:
        kinds = [kind if "kv_bits" not in kind else {} for kind in kinds]
    alone = [prefilled(model, *pair) for pair in zip(PROMPTS, kinds, strict=True)]
    together = [prefilled(model, *pair) for pair in zip(PROMPTS, kinds, strict=True)]
    for number in range(20):
        tokens = [60 + number, 90 - number, 5 * number]
        expected = [
            np.array(model(mx.array([[token]]), cache)[0, -1])
            for token, cache in zip(tokens, alone, strict=True)
        ]
        actual = np.array(model(mx.array(tokens)[:, None], BatchedCache(together))[:, -1])
        assert np.array_equal(actual, np.stack(expected))  # the same bits
        if number == 11:  # one leaves, and comes back at another place
            order = [2, 0, 1]
            alone, together = [[caches[i] for i in order] for caches in (alone, together)]
    assert [cache.offset for cache in together] == [cache.offset for cache in alone]


def test_sequences_may_have_several_tokens_each(tiny_model: Models) -> None:
    model = tiny_model("gqa-1")
    alone = [prefilled(model, prompt, {}) for prompt in PROMPTS]
    together = [prefilled(model, prompt, {}) for prompt in PROMPTS]
    tokens = mx.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    expected = mx.concatenate([model(tokens[i : i + 1], cache) for i, cache in enumerate(alone)])
    actual = model(tokens, BatchedCache(together))
    assert mx.abs(actual - expected).max().item() < 1e-4 * mx.std(expected).item()


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(OptionError, match="no caches"):
        BatchedCache([])
