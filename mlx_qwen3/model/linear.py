"""Projections: dense or quantized, alone or several of the same input in one multiplication.

One token each of several sequences, (B, 1, in), is multiplied row by row, as each sequence alone
would be: what a reply says must not depend on who else is being answered. Kernels for packed
matrices do that by themselves while rows are few (on Metal up to six); products of dense ones
round differently with the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

# Bytes of weights unpacked at once when a quantized matrix is multiplied dense.
_UNPACK_BYTES = 64 << 20
# Where unpacking pays, a matrix that is no larger unpacked stays so beside its packed form, and
# is multiplied dense even by one row: tiny models are slow to unpack and slow to multiply packed.
# No release has matrices this small.
_KEEP_BYTES = 2 << 20


@dataclass(frozen=True)
class Quantization:
    """How a tensor is packed: MLX's mode, bits per weight, weights per scale."""

    group_size: int
    bits: int
    mode: str = "affine"

    def arguments(self) -> dict[str, Any]:
        """The keywords mx.quantize and its kin take."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


class AnyLinear(Module):
    """A projection, wherever its matrix is and however it is stored."""

    bias: mx.array | None

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., in) -> (..., out)."""
        raise NotImplementedError

    @property
    def out_dims(self) -> int:
        """Rows of the matrix."""
        raise NotImplementedError

    def rows(self, ids: mx.array) -> mx.array:
        """Rows of the matrix, as an embedding table is read: (...) -> (..., in)."""
        raise NotImplementedError


class Linear(AnyLinear):
    """y = x W^T + b, W: (out, in)."""

    def __init__(self, weight: mx.array, bias: mx.array | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., in) -> (..., out)."""
        matrix = _for_rows_of(x, self.weight.T)
        return x @ matrix if self.bias is None else mx.addmm(self.bias, x, matrix)

    @property
    def out_dims(self) -> int:
        """Rows of the matrix."""
        return self.weight.shape[0]

    def rows(self, ids: mx.array) -> mx.array:
        """Rows of the matrix, as an embedding table is read: (...) -> (..., in)."""
        return self.weight[ids]


class QuantizedLinear(AnyLinear):
    """As Linear, with W packed: weight (out, in * bits / 32) uint32, scales (out, groups).

    dtype: what W is unpacked to; None: the dtype of the scales, or MLX's own for 8-bit scales.
    dense_from: from how many rows of x on unpacking W and multiplying dense is faster than the
    quantized kernel; None: never. The device decides (policy.py).
    """

    def __init__(
        self,
        weight: mx.array,
        scales: mx.array,
        biases: mx.array | None,
        quantization: Quantization,
        bias: mx.array | None = None,
        *,
        dtype: mx.Dtype | None = None,
        dense_from: int | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.scales = scales
        self.biases = biases
        self.bias = bias
        self.quantization = quantization
        self.dtype = dtype
        self.dense_from = dense_from
        self._kept: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., in) -> (..., out)."""
        if self._multiplies_dense(x):
            y = self._dense(x)
        else:
            y = mx.quantized_matmul(
                x,
                self.weight,
                self.scales,
                self.biases,
                transpose=True,
                **self.quantization.arguments(),
            )
        return y if self.bias is None else y + self.bias

    def _multiplies_dense(self, x: mx.array) -> bool:
        if self.dense_from is None:
            return False
        if self._stays_unpacked(x.dtype):
            return True
        return not _is_step_of_many(x) and x.size // x.shape[-1] >= self.dense_from

    def _stays_unpacked(self, dtype: mx.Dtype) -> bool:
        groups: int = self.scales.size
        return groups * self.quantization.group_size * dtype.size <= _KEEP_BYTES

    @property
    def out_dims(self) -> int:
        """Rows of the matrix."""
        return self.weight.shape[0]

    def rows(self, ids: mx.array) -> mx.array:
        """Rows of the matrix, unpacked: (...) -> (..., in)."""
        return self._unpack(ids)

    def _unpack(self, rows: Any) -> mx.array:
        biases = None if self.biases is None else self.biases[rows]
        return mx.dequantize(
            self.weight[rows],
            self.scales[rows],
            biases,
            dtype=self.dtype,
            **self.quantization.arguments(),
        )

    def _keep(self) -> mx.array:
        """The whole matrix, unpacked the first time; then, for any thread may be the next."""
        if self._kept is None:
            kept = self._unpack(slice(None))
            mx.eval(kept)
            self._kept = kept
        return self._kept

    def _dense(self, x: mx.array) -> mx.array:
        """Multiply dense, a block of rows at a time so that the unpacked copy stays small."""
        if self._stays_unpacked(x.dtype):
            return x @ _for_rows_of(x, self._keep().T)
        step = max(256, _UNPACK_BYTES // (x.shape[-1] * x.dtype.size))
        if step >= self.out_dims:
            return x @ self._unpack(slice(None)).T
        blocks = [
            x @ self._unpack(slice(start, start + step)).T
            for start in range(0, self.out_dims, step)
        ]
        return mx.concatenate(blocks, axis=-1)


def _is_step_of_many(x: mx.array) -> bool:
    """Whether the rows of x are one token each of several sequences: (B, 1, in)."""
    return x.ndim == 3 and x.shape[1] == 1 and x.shape[0] > 1


def _for_rows_of(x: mx.array, matrix: mx.array) -> mx.array:
    """The matrix as often as x has sequences of one token each, so that MLX multiplies them one by
    one; it would join them into one product."""
    return mx.broadcast_to(matrix, (x.shape[0], *matrix.shape)) if _is_step_of_many(x) else matrix


def nbytes(module: Module) -> int:
    """Bytes of all weights of a module."""
    arrays: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in arrays)


class ParallelLinear(Module):
    """Several projections of one input (q, k, v; gate, up), in one multiplication if possible.

    Quantization groups run along the input, so stacking the outputs is exact. Parts that are
    packed differently stay apart and are multiplied one by one.
    """

    def __init__(self, parts: Sequence[AnyLinear]) -> None:
        super().__init__()
        sizes = [part.out_dims for part in parts]
        self._splits = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        fused = _fuse(parts)
        self.parts = list(parts) if fused is None else [fused]

    def __call__(self, x: mx.array) -> list[mx.array]:
        """x: (..., in) -> one (..., out_i) for each part."""
        if len(self.parts) > 1:
            return [part(x) for part in self.parts]
        return list(mx.split(self.parts[0](x), self._splits, axis=-1))

    def joined(self, x: mx.array) -> mx.array:
        """x: (..., in) -> all outputs side by side: (..., sum of out_i)."""
        outputs = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=-1)


def _fuse(parts: Sequence[AnyLinear]) -> AnyLinear | None:
    """One projection with the outputs of all, or None when they are packed differently."""
    if len({part.bias is None for part in parts}) > 1:
        return None
    if all(isinstance(part, Linear) for part in parts):
        return Linear(_stack(parts, "weight"), _stack_optional(parts, "bias"))
    first = parts[0]
    if not isinstance(first, QuantizedLinear) or not all(
        isinstance(part, QuantizedLinear) and part.quantization == first.quantization
        for part in parts
    ):
        return None
    return QuantizedLinear(
        _stack(parts, "weight"),
        _stack(parts, "scales"),
        _stack_optional(parts, "biases"),
        first.quantization,
        _stack_optional(parts, "bias"),
        dtype=first.dtype,
        dense_from=first.dense_from,
    )


def _stack(parts: Sequence[AnyLinear], name: str) -> mx.array:
    return mx.concatenate([getattr(part, name) for part in parts], axis=0)


def _stack_optional(parts: Sequence[AnyLinear], name: str) -> mx.array | None:
    return None if getattr(parts[0], name) is None else _stack(parts, name)
