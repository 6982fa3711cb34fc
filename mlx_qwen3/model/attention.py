"""Attention of many queries where a device keeps every score in memory: a part at a time.

Metal and CUDA have kernels that never hold the scores of a prompt. MLX's CPU backend holds one for
each query and key of every head: gigabytes for a chunk of a long prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

Mask = mx.array | str | None

FEWEST_ROWS = 16  # queries at once; fewer make products that are mostly overhead


def attend_in_parts(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: Mask,
    score_bytes: int | None,
) -> mx.array:
    """`mx.fast.scaled_dot_product_attention` with at most about `score_bytes` of scores at once.

    queries: (B, num_heads, L, head_dim); keys, values: (B, num_kv_heads, N, head_dim); mask: None,
    "causal" or a boolean (L, N). score_bytes: None: all at once, as kernels without scores want.
    Returns (B, num_heads, L, head_dim).
    """
    batch, heads, length, _ = queries.shape
    kv_heads, kept = keys.shape[1:3]
    group = heads // kv_heads  # query heads that share a KV head
    row_bytes = batch * group * kept * queries.dtype.size
    at_once, rows = kv_heads, length
    if score_bytes is not None:
        at_once, rows = tile(row_bytes, length, score_bytes)

    def attend(head: int, start: int, after: Sequence[mx.array]) -> mx.array:
        """KV heads from `head` on, queries from `start` on."""
        part = queries[:, head * group : (head + at_once) * group, start : start + rows]
        if after:  # else MLX would begin all parts, and hold the scores of all
            part = mx.depends([part], list(after[-1:]))[0]
        seen = kept - length + min(start + rows, length) if mask == "causal" else kept
        return mx.fast.scaled_dot_product_attention(
            part,
            keys[:, head : head + at_once, :seen],
            values[:, head : head + at_once, :seen],
            scale=scale,
            mask=mask[start : start + rows] if isinstance(mask, mx.array) else mask,
        )

    if at_once >= kv_heads and rows >= length:
        return attend(0, 0, [])
    done: list[mx.array] = []
    for head in range(0, kv_heads, at_once):
        for start in range(0, length, rows):
            done.append(attend(head, start, done))
    in_row = -(-length // rows)
    heads_of = [done[first : first + in_row] for first in range(0, len(done), in_row)]
    return mx.concatenate([mx.concatenate(parts, axis=2) for parts in heads_of], axis=1)


def tile(row_bytes: int, length: int, score_bytes: int) -> tuple[int, int]:
    """KV heads, and queries of each, whose scores are held at a time.

    row_bytes: scores of one query and KV head. Heads are taken apart first: MLX multiplies them
    one by one in any case, and products of few rows are slower.
    """
    heads = score_bytes // (row_bytes * length)
    return max(heads, 1), length if heads else max(FEWEST_ROWS, score_bytes // row_bytes)
