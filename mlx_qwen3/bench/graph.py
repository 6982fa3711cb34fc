"""How many kernels a step launches, counted on its graph before anything runs.

Counted as a GPU launches them: what moves no data (views, reshapes, broadcasts) is free, a write
at an array offset takes two launches, everything else one, and MLX's fast operations one each. On
a CPU backend those are decomposed while the graph is built, so they are counted as they are called.
Copies that a kernel makes of a strided input do not show in a graph and are not counted.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import mlx.core as mx

# Primitives that only describe their input anew, or read a file.
_VIEWS = (
    "AsStrided|Broadcast|BroadcastAxes|ExpandDims|Flatten|Reshape|Slice|Split|Squeeze|Transpose"
)
FREE = re.compile(rf"{_VIEWS}|Unflatten|View|Copy|Depends|Load|NumberOfElements|StopGradient")
_LAUNCHES = {"DynamicSlice": 2, "DynamicSliceUpdate": 2}

_NODE = re.compile(r'\{ (\d+) \[label ="([^"]*)"')
_EDGE = re.compile(r'" -> (\d+)$', re.MULTILINE)

Build = Callable[[], Sequence[mx.array]]


@dataclass(frozen=True)
class Kernels:
    """Launches of one step. per_layer: of one layer; outside: embedding, head and sampling."""

    total: int
    per_layer: float
    layers: int

    @property
    def outside(self) -> float:
        return self.total - self.per_layer * self.layers


@dataclass
class _FastCalls:
    """Calls of MLX's fast operations: how many, and what they read."""

    names: Counter[str] = field(default_factory=Counter)
    inputs: list[mx.array] = field(default_factory=list)

    def take(self, name: str, arguments: Sequence[Any], shape: tuple[int, ...]) -> mx.array:
        """Note a call; returns zeros in the place of its output, where the graph is cut.

        arguments: arrays and whatever else; the first decides the dtype.
        """
        self.names[name] += 1
        self.inputs += [one for one in arguments if isinstance(one, mx.array)]
        output = mx.zeros(shape, arguments[0].dtype)
        mx.eval(output)
        return output


def launches(build: Build, *, decomposed: bool) -> Counter[str]:
    """Kernels that evaluating what `build` returns would launch, by primitive.

    build: makes the graph; its inputs must be evaluated before. decomposed: the backend has no
    fast operations (CPU) and each call of one counts as one. Never pass a step under mx.compile
    then: what was traced meanwhile would compute nothing later.
    """
    if not decomposed:
        return _count(build())
    with _fast_operations_noted() as calls:
        outputs = build()
    return _count([*outputs, *calls.inputs]) + calls.names


def _count(arrays: Sequence[mx.array]) -> Counter[str]:
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    dot = text.getvalue()
    inputs = Counter(_EDGE.findall(dot))
    counts: Counter[str] = Counter()
    for node, name in _NODE.findall(dot):
        if not FREE.fullmatch(name):
            counts[name] += inputs[node] if name == "Concatenate" else _LAUNCHES.get(name, 1)
    return counts


@contextmanager
def _fast_operations_noted() -> Iterator[_FastCalls]:
    """MLX's fast operations replaced by ones that note the call, and put back in the end."""
    calls = _FastCalls()

    def like_first(name: str) -> Callable[..., mx.array]:
        return lambda x, *inputs, **options: calls.take(
            name, [x, *inputs, *options.values()], x.shape
        )

    def attention(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        return calls.take("attention", [q, k, v, *options.values()], (*q.shape[:-1], v.shape[-1]))

    def dequantize(
        w: mx.array,
        scales: mx.array,
        biases: mx.array | None = None,
        group_size: int = 64,
        **_: Any,
    ) -> mx.array:
        shape = (*scales.shape[:-1], scales.shape[-1] * group_size)
        return calls.take("dequantize", [scales, w, biases], shape)

    replaced: Mapping[str, tuple[ModuleType, Callable[..., mx.array]]] = {
        "rms_norm": (mx.fast, like_first("rms_norm")),
        "layer_norm": (mx.fast, like_first("layer_norm")),
        "rope": (mx.fast, like_first("rope")),
        "scaled_dot_product_attention": (mx.fast, attention),
        "dequantize": (mx, dequantize),
    }
    originals = {name: getattr(module, name) for name, (module, _) in replaced.items()}
    try:
        for name, (module, operation) in replaced.items():
            setattr(module, name, operation)
        yield calls
    finally:
        for name, original in originals.items():
            setattr(replaced[name][0], name, original)
