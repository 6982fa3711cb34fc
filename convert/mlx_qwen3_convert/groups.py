"""The parts of a loaded model that are quantized alike, and what quantizing them does to it.

A group is what must share a format: q, k and v; gate and up; otherwise one matrix, or one stack
of experts. Its weights are replaced by what their quantized form unpacks to: the model computes
what the quantized one would, in the layout it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.experts import ExpertMatrices, ResidentExperts, SparseMLP
from mlx_qwen3.model.linear import AnyLinear, Linear
from mlx_qwen3.model.transformer import Transformer, TransformerLayer
from mlx_qwen3_convert.formats import Format
from mlx_qwen3_convert.recipes import Recipe

EMBED, HEAD, ROUTER = "embed", "head", "router"
Holder = Linear | ExpertMatrices


@dataclass(frozen=True)
class Group:
    """layer: its number, None outside of the layers. paths: as recipes spell them."""

    part: str
    layer: int | None
    paths: tuple[str, ...]
    holders: tuple[Holder, ...] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """For people: "3 gate_up", "embed"."""
        return self.part if self.layer is None else f"{self.layer} {self.part}"

    @property
    def columns(self) -> int:
        """Inputs of its matrices, which groups of weights run along."""
        return self.holders[0].weight.shape[-1]

    def weights(self) -> list[mx.array]:
        """What is in the model now."""
        return [holder.weight for holder in self.holders]

    def replace(self, weights: Sequence[mx.array]) -> None:
        """Put these into the model."""
        for holder, weight in zip(self.holders, weights, strict=True):
            holder.weight = weight


def find_groups(model: Transformer) -> list[Group]:
    """Every group of a model, in the order in which tokens meet them, the routers included.

    Raises OptionError for a model that is quantized already.
    """
    groups = [_group(EMBED, None, "model", ("embed_tokens",), [model.embed_tokens])]
    for index, layer in enumerate(model.layers):
        groups += _layer_groups(index, layer)
    if not model.config.tie_word_embeddings:
        groups.append(_group(HEAD, None, "", ("lm_head",), [model.lm_head]))
    return groups


def _layer_groups(index: int, layer: TransformerLayer) -> Iterator[Group]:
    name = f"model.layers.{index}"
    attention = layer.self_attn
    qkv = ("q_proj", "k_proj", "v_proj")
    yield _group("qkv", index, f"{name}.self_attn", qkv, attention.qkv_proj.parts)
    yield _group("o", index, f"{name}.self_attn", ("o_proj",), [attention.o_proj])
    gate_up = ("gate_proj", "up_proj")
    mlp = layer.mlp
    if not isinstance(mlp, SparseMLP):
        yield _group("gate_up", index, f"{name}.mlp", gate_up, mlp.gate_up_proj.parts)
        yield _group("down", index, f"{name}.mlp", ("down_proj",), [mlp.down_proj])
        return
    experts = mlp.experts
    assert isinstance(experts, ResidentExperts)
    yield _group(ROUTER, index, f"{name}.mlp", ("gate",), [mlp.router])
    yield _group("gate_up", index, f"{name}.mlp.experts", gate_up, experts.gate_up)
    yield _group("down", index, f"{name}.mlp.experts", ("down_proj",), [experts.down])


def _group(
    part: str,
    layer: int | None,
    prefix: str,
    names: Sequence[str],
    holders: Sequence[AnyLinear | ExpertMatrices],
) -> Group:
    paths = tuple(f"{prefix}.{name}" if prefix else name for name in names)
    found = [
        holder
        for holder in holders
        if isinstance(holder, Linear)
        or (isinstance(holder, ExpertMatrices) and holder.quantization is None)
    ]
    if len(found) < len(holders):
        raise OptionError(
            f"{paths[0]} is quantized already; measuring needs floating point weights: "
            "start from the original, or convert with --recipe bf16 first"
        )
    return Group(part, layer, paths, tuple(found))


def rounded(weight: mx.array, stored: Format, dtype: mx.Dtype) -> mx.array:
    """What a weight is after it was stored in this format, with scales in `dtype`.

    A row that is no whole number of groups stays as it is, as in a conversion.
    """
    if stored is None or weight.shape[-1] % stored.group_size:
        return weight
    arguments = stored.arguments()
    packed, scales, *rest = mx.quantize(weight.astype(dtype), **arguments)
    if not rest:
        return mx.dequantize(packed, scales, dtype=weight.dtype, **arguments)
    # The model unpacks in its own dtype, which may be wider than that of the file.
    scales, biases = (part.astype(dtype).astype(weight.dtype) for part in (scales, rest[0]))
    return mx.dequantize(packed, scales, biases, **arguments)


def apply_recipe(groups: Sequence[Group], recipe: Recipe, dtype: mx.Dtype) -> list[list[mx.array]]:
    """Make the model compute what its conversion by this recipe would.

    Returns the weights that were there, for `restore`.
    """
    before = [group.weights() for group in groups]
    for group in groups:
        stored = recipe.format_of(group.paths[0])
        group.replace([rounded(weight, stored, dtype) for weight in group.weights()])
        mx.eval(group.weights())
    return before


def restore(groups: Sequence[Group], before: Sequence[Sequence[mx.array]]) -> None:
    """Undo `apply_recipe`."""
    for group, weights in zip(groups, before, strict=True):
        group.replace(weights)
