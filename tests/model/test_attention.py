"""Attention in parts: the same numbers, and few scores at once."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_qwen3.device import Device
from mlx_qwen3.model.attention import FEWEST_ROWS, Mask, attend_in_parts, tile
from mlx_qwen3.model.policy import ComputePolicy

MASKS = {
    "causal": "causal",
    "none": None,
    "window": mx.random.uniform(shape=(70, 90), key=mx.random.key(1)) < 0.7,
}


def tensors(length: int, kept: int, width: int = 16) -> tuple[mx.array, mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(0), 3)
    shapes = ((2, 8, length, width), (2, 4, kept, width), (2, 4, kept, width))
    return tuple(  # type: ignore[return-value]
        mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("score_bytes", [None, 1, 40_000, 120_000, 1 << 30])
def test_parts_give_the_numbers_of_the_whole(mask: str, score_bytes: int | None) -> None:
    queries, keys, values = tensors(70, 90)
    chosen: Mask = MASKS[mask]
    whole = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.25, mask=chosen)
    parts = attend_in_parts(queries, keys, values, scale=0.25, mask=chosen, score_bytes=score_bytes)
    assert parts.shape == whole.shape
    assert mx.max(mx.abs(parts - whole)).item() < 1e-5


def test_heads_are_taken_apart_before_rows() -> None:
    assert tile(1000, 10, 100_000) == (10, 10)
    assert tile(1000, 100, 100_000) == (1, 100)
    assert tile(1000, 200, 100_000) == (1, 100)
    assert tile(100_000, 200, 100_000) == (1, FEWEST_ROWS)


@pytest.mark.skipif(Device.current().backend != "cpu", reason="kernels of a GPU hold no scores")
def test_a_long_prompt_does_not_hold_its_scores() -> None:
    score_bytes = ComputePolicy.for_device(Device.current()).score_bytes
    assert score_bytes is not None
    queries, keys, values = tensors(1024, 8192)
    mx.eval(queries, keys, values)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(
        attend_in_parts(
            queries, keys, values, scale=1.0, mask="causal", score_bytes=score_bytes // 4
        )
    )
    # MLX has up to ten operations under way.
    assert mx.get_peak_memory() - before < 2 * 8 * 1024 * 8192 * 4 // 4
