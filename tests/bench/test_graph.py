"""Kernels counted on a graph, against what mlx-lm's layers are known to launch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen3.bench.graph import Kernels, launches
from mlx_qwen3.bench.peer import MlxLmRunner
from mlx_qwen3.bench.runner import OwnRunner
from mlx_qwen3.bench.shapes import shape_config, write_checkpoint
from mlx_qwen3.releases import find

X = mx.ones((4, 8))
W = mx.ones((8,))


def mx_quantized() -> list[mx.array]:
    """Packed already: nothing of it is left to launch."""
    packed = list(mx.quantize(mx.ones((4, 32)), group_size=32, bits=4))
    mx.eval(packed)
    return packed


CASES: dict[str, tuple[Callable[[], mx.array], int]] = {
    "one addition": (lambda: X + X, 1),
    "a shared input counts once": (lambda: (X + X) * (X + 1) + 2, 4),
    "views are free": (lambda: (X + X).reshape(2, 16).swapaxes(0, 1)[:3, None], 1),
    "a split is free": (lambda: sum(mx.split(X * 2, 2), mx.array(0.0)), 3),
    "each input of a concatenation is copied": (lambda: mx.concatenate([X, X, X]), 3),
    "a write at an array offset takes two": (
        lambda: mx.slice_update(X, W[None], mx.array([1]), axes=[0]),
        2,
    ),
    "a norm is one": (lambda: mx.fast.rms_norm(X, W, 1e-6) + 1, 2),
    "rope is one": (
        lambda: mx.fast.rope(X[None, None], 8, traditional=False, base=1e4, scale=1.0, offset=3),
        1,
    ),
    "what an offset is made of counts": (
        lambda: mx.fast.rope(
            X[None, None],
            8,
            traditional=False,
            base=1e4,
            scale=1.0,
            offset=mx.argmax(X),
        ),
        2,
    ),
    "unpacking is one": (
        lambda: mx.dequantize(*mx_quantized(), group_size=32, bits=4) + 1,
        2,
    ),
    "attention is one": (
        lambda: mx.fast.scaled_dot_product_attention(
            X[None, None] * 2, X[None, None] * 3, X[None, None], scale=1.0
        ),
        3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_counts(name: str) -> None:
    mx.eval(X, W)
    build, count = CASES[name]
    assert launches(lambda: [build()], decomposed=True).total() == count


def test_fast_operations_are_back_whatever_happens() -> None:
    before = mx.fast.rms_norm
    with pytest.raises(ZeroDivisionError):
        launches(lambda: 1 / 0, decomposed=True)  # type: ignore[arg-type, return-value]
    assert mx.fast.rms_norm is before
    assert mx.fast.rms_norm(X, W, 1e-6).shape == X.shape


@pytest.fixture(scope="module", params=["0.6b", "30b-a3b"])
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = shape_config(find(request.param).release, layers=3, hidden=64, vocab=300)
    return write_checkpoint(config, 4, tmp_path_factory.mktemp("graph") / str(request.param))


PER_LAYER = {"0.6b": 19, "30b-a3b": 30}  # of mlx-lm, read off its code
OWN_PER_LAYER = {"0.6b": 15, "30b-a3b": 20}  # what fusing leaves


def test_mlx_lms_launches_are_those_known_from_its_code(shape: Path) -> None:
    kernels = MlxLmRunner(shape).kernels()
    assert kernels.per_layer == PER_LAYER[shape.name]
    assert kernels.total == kernels.outside + 3 * kernels.per_layer
    assert 1 < kernels.outside < 10


def test_ours_are_fewer(shape: Path) -> None:
    kernels = OwnRunner(shape).kernels()
    assert kernels is not None
    assert kernels.per_layer == OWN_PER_LAYER[shape.name]
    assert 1 < kernels.outside < 10


def test_outside_is_what_the_layers_do_not_launch() -> None:
    assert Kernels(total=453, per_layer=16, layers=28).outside == 5
