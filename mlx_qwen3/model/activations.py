"""The gate of the feed-forward part: act(gate) * up.

Written out rather than taken from mlx.nn, whose activations are compiled: on a CPU backend
compiling starts a C++ compiler on a user's first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import mlx.core as mx

Activation = Callable[[mx.array, mx.array], mx.array]


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


_BY_NAME: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
}


def gated(hidden_act: str, *, compiled: bool) -> Activation:
    """act(gate) * up for a config's hidden_act; both arguments and the result: (..., width).

    compiled: fuse it into one kernel (a gain on a GPU).
    """
    return _compiled(hidden_act) if compiled else partial(_gate, _BY_NAME[hidden_act])


@cache
def _compiled(hidden_act: str) -> Activation:
    """Kept for good: MLX finds compiled code by the address of the Python function, and would
    take the code of a function that is gone for that of another at the same address."""
    return mx.compile(partial(_gate, _BY_NAME[hidden_act]), shapeless=True)


def _gate(act: Callable[[mx.array], mx.array], gate: mx.array, up: mx.array) -> mx.array:
    return act(gate) * up
