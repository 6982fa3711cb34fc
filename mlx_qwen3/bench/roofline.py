"""The roofline of decoding: how fast memory can be read, and how much of it a token needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen3.model.config import ModelConfig

BUFFER = 512 << 20  # bytes: many times the largest cache of a processor or GPU
_PASSES = 5
# Where the experts of a layer lie, in our models and in mlx-lm's.
_EXPERTS = {"experts", "switch_mlp"}


@dataclass(frozen=True)
class Bandwidth:
    """What MLX reaches here. passed_by: which of the passes was the fastest."""

    bytes_per_second: float
    passed_by: str
    buffer_bytes: int


def measure_bandwidth(buffer_bytes: int = BUFFER) -> Bandwidth:
    """The fastest of three simple passes over a float32 buffer, each the best of five.

    What MLX's own kernels reach is the roof a model has; on a CPU backend the memory could do
    more. buffer_bytes: at least a few times the caches, or it measures those.
    """
    columns = 4096
    matrix = mx.ones((max(buffer_bytes // 4 // columns, 1), columns))
    vector = mx.ones((columns, 1))
    mx.eval(matrix, vector)
    passes: dict[str, tuple[Callable[[], mx.array], int]] = {
        "sum": (matrix.sum, matrix.nbytes),
        "matrix times vector": (lambda: matrix @ vector, matrix.nbytes),
        "copy": (lambda: matrix + 1, 2 * matrix.nbytes),
    }
    rates = {name: nbytes / _fastest(run) for name, (run, nbytes) in passes.items()}
    name = max(rates, key=lambda one: rates[one])
    return Bandwidth(rates[name], name, matrix.nbytes)


def _fastest(run: Callable[[], mx.array]) -> float:
    """Seconds."""
    seconds = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        mx.eval(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights in memory, and of those that one step with one token reads.

    dtype: of its norms, which is that of its activations.
    """

    nbytes: int
    read: int
    dtype: str


def describe_weights(parameters: Mapping[str, mx.array], config: ModelConfig) -> Weights:
    """parameters: by dotted name, as in memory, ours or mlx-lm's.

    Of the experts those chosen are read, of an embedding that is not also the head one row.
    """
    norm = next(tensor for name, tensor in parameters.items() if name.endswith("norm.weight"))
    return Weights(
        nbytes=sum(tensor.nbytes for tensor in parameters.values()),
        read=sum(_read(name.split("."), tensor, config) for name, tensor in parameters.items()),
        dtype=str(norm.dtype).rsplit(".", 1)[-1],
    )


def _read(parts: list[str], tensor: mx.array, config: ModelConfig) -> int:
    if "embed_tokens" in parts and not config.tie_word_embeddings:
        return tensor.nbytes // tensor.shape[0]
    if _EXPERTS & set(parts):
        return tensor.nbytes * config.num_experts_per_tok // tensor.shape[0]  # those in memory
    return tensor.nbytes
