"""The gates, against their formulas: too alike for the references to tell two of them apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.model.activations import gated


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_gate_is_its_formula(name: str, compiled: bool) -> None:
    gate, up = np.linspace(-8, 8, 401, dtype=np.float32), np.linspace(3, -2, 401, dtype=np.float32)
    expected = [FORMULAS[name](float(x)) * float(y) for x, y in zip(gate, up, strict=True)]
    actual = gated(name, compiled=compiled)(mx.array(gate), mx.array(up))
    np.testing.assert_allclose(np.array(actual), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_16_bits_in_are_16_bits_out(name: str) -> None:
    x = mx.array([-1.0, 2.0], mx.bfloat16)
    assert gated(name, compiled=False)(x, x).dtype == mx.bfloat16
