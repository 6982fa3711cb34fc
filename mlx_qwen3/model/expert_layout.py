"""Where the bytes of every expert lie in a checkpoint, and what they become in memory.

Whatever the layout (MLX's and transformers 5's stacked tensors, one tensor for each expert and
matrix in the published one), each matrix of an expert is one run of bytes in a file: rows of a
stacked tensor, or a tensor of its own. So experts are read straight from the checkpoint. A second
file with the experts one behind the other was tried and is not worth its 16 GB for the 30B-A3B:
tests/bench/streamed_experts.py measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_qwen3.model.checkpoint import TensorInfo
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.inventory import Inventory
from mlx_qwen3.model.linear import Quantization


@dataclass(frozen=True)
class Piece:
    """A run of bytes in a file. dtype: in safetensors' spelling."""

    file: Path
    offset: int
    nbytes: int
    dtype: str


@dataclass(frozen=True)
class Origin:
    """A matrix of all experts: one stacked tensor, or a tensor for each of them."""

    tensors: tuple[TensorInfo, ...]
    experts: int

    def piece(self, expert: int) -> Piece:
        """Where that expert's share is."""
        stacked = len(self.tensors) == 1
        info = self.tensors[0 if stacked else expert]
        nbytes = info.nbytes // self.experts if stacked else info.nbytes
        return Piece(info.file, info.offset + nbytes * expert * stacked, nbytes, info.dtype)


@dataclass(frozen=True)
class PartLayout:
    """One array of an expert (its weight, scales or biases).

    shape, dtype: of one expert, in memory. origins: what it is made of, the first on top.
    """

    shape: tuple[int, ...]
    dtype: mx.Dtype
    origins: tuple[Origin, ...]

    @property
    def nbytes(self) -> int:
        """Of one expert, in memory."""
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True)
class MatricesLayout:
    """What an ExpertMatrices is made of: its arrays by name."""

    parts: dict[str, PartLayout]
    quantization: Quantization | None = None


@dataclass(frozen=True)
class LayerLayout:
    """The experts of one layer. gate_up: see ResidentExperts."""

    experts: int
    gate_up: tuple[MatricesLayout, ...]
    down: MatricesLayout

    @property
    def matrices(self) -> tuple[MatricesLayout, ...]:
        """All of them."""
        return (*self.gate_up, self.down)

    @property
    def expert_bytes(self) -> int:
        """Of one expert, in memory."""
        return sum(part.nbytes for one in self.matrices for part in one.parts.values())

    def pieces(self, expert: int) -> Iterator[Piece]:
        """All of its bytes."""
        for one in self.matrices:
            for part in one.parts.values():
                yield from (origin.piece(expert) for origin in part.origins)


@dataclass(frozen=True)
class ExpertFinder:
    """Finds the experts of layers, as CheckpointSource fuses them. dtype: the policy's."""

    config: ModelConfig
    inventory: Inventory
    dtype: mx.Dtype

    def layer(self, name: str) -> LayerLayout:
        """The experts of the sparse layer `name`. Raises WeightsError naming the tensor."""
        hidden, width = self.config.hidden_size, self.config.moe_intermediate_size
        gate_up = self._gate_up(name, width, hidden)
        down = self._matrices(name, "down_proj", hidden, width)
        return LayerLayout(self.config.num_experts, gate_up, down)

    def _gate_up(self, name: str, width: int, hidden: int) -> tuple[MatricesLayout, ...]:
        stacked = f"{name}.experts.gate_up_proj"
        if stacked in self.inventory:
            return (self._stacked(stacked, (2 * width, hidden)),)
        gate = self._matrices(name, "gate_proj", width, hidden)
        up = self._matrices(name, "up_proj", width, hidden)
        if gate.quantization != up.quantization or "global_scale" in gate.parts:
            return (gate, up)
        parts = {part: _above(gate.parts[part], up.parts[part]) for part in gate.parts}
        return (MatricesLayout(parts, gate.quantization),)

    def _matrices(self, name: str, part: str, out_dims: int, in_dims: int) -> MatricesLayout:
        """From MLX's, transformers 5's or the published layout."""
        switch, stacked = f"{name}.switch_mlp.{part}", f"{name}.experts.{part}"
        if self.inventory.is_packed(switch):
            return self._packed(switch, out_dims, in_dims)
        for one in (f"{switch}.weight", stacked):
            if one in self.inventory:
                return self._stacked(one, (out_dims, in_dims))
        names = [f"{name}.experts.{one}.{part}.weight" for one in range(self.config.num_experts)]
        infos = tuple(self.inventory.claim_floats(one, (out_dims, in_dims)) for one in names)
        return self._dense(infos, (out_dims, in_dims))

    def _stacked(self, name: str, shape: tuple[int, ...]) -> MatricesLayout:
        info = self.inventory.claim_floats(name, (self.config.num_experts, *shape))
        return self._dense((info,), shape)

    def _dense(self, infos: tuple[TensorInfo, ...], shape: tuple[int, ...]) -> MatricesLayout:
        origin = Origin(infos, self.config.num_experts)
        return MatricesLayout({"weight": PartLayout(shape, self.dtype, (origin,))})

    def _packed(self, name: str, out_dims: int, in_dims: int) -> MatricesLayout:
        quantization = self.inventory.quantization(name, in_dims)
        groups = (out_dims, in_dims // quantization.group_size)
        packed = (out_dims, in_dims * quantization.bits // 32)
        parts = {"weight": self._part(f"{name}.weight", packed, mx.uint32)}
        if quantization.mode != "affine":
            parts["scales"] = self._part(f"{name}.scales", groups, mx.uint8)
        else:
            for part in ("scales", "biases"):
                parts[part] = self._part(f"{name}.{part}", groups, self.dtype)
        if f"{name}.global_scale" in self.inventory:
            parts["global_scale"] = self._part(f"{name}.global_scale", (), mx.float32)
        return MatricesLayout(parts, quantization)

    def _part(self, name: str, shape: tuple[int, ...], dtype: mx.Dtype) -> PartLayout:
        info = self.inventory.claim(name, (self.config.num_experts, *shape))
        return PartLayout(shape, dtype, (Origin((info,), self.config.num_experts),))


def _above(top: PartLayout, below: PartLayout) -> PartLayout:
    """Rows of both, those of `top` first."""
    shape = (top.shape[0] + below.shape[0], *top.shape[1:])
    return PartLayout(shape, top.dtype, top.origins + below.origins)
