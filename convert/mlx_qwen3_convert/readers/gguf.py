"""GGUF files, one or in parts: weights, config and tokenizer all come from there.

    gguf_container   the file format
    gguf_blocks      block types as integers with scales
    gguf_metadata    config.json, generation_config.json
    gguf_tokenizer   tokenizer.json, tokenizer_config.json

llama.cpp's converter does not permute Qwen3's query and key rows: only names change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlx_qwen3.errors import ConfigError, TokenizerError, WeightsError
from mlx_qwen3_convert.readers.affine import IntegerMatrix, Integers, affine_layout
from mlx_qwen3_convert.readers.base import Source, SourceTensor
from mlx_qwen3_convert.readers.gguf_blocks import (
    BLOCK_TYPES,
    FILE_TYPES,
    FLOAT_TYPES,
    OTHER_TYPES,
    BlockType,
)
from mlx_qwen3_convert.readers.gguf_container import GgufContainer, GgufTensor, read_containers
from mlx_qwen3_convert.readers.gguf_metadata import build_config, build_generation_config
from mlx_qwen3_convert.readers.gguf_tokenizer import write_tokenizer
from mlx_qwen3_convert.readers.licence import gguf_licence
from mlx_qwen3_convert.readers.source import (
    FloatMatrix,
    Matrix,
    MatrixSource,
    expert_parts,
    main_format,
)
from mlx_qwen3_convert.readers.stored import Files, Stored, not_finite

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Below blk.N and model.layers.N. Stacks get the names that `expert_parts` takes apart.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER = re.compile(r"(\w+)\.(weight|bias)")


def open_gguf(file: Path) -> Source:
    """file: a .gguf file, or any part of a split one. Raises WeightsError, ConfigError."""
    return GgufSource(read_containers(file))


class GgufSource(MatrixSource):
    """A model in GGUF files."""

    def __init__(self, containers: list[GgufContainer]) -> None:
        self._metadata, self._file = containers[0].metadata, containers[0].file
        files = Files()
        matrices = {m.tensor.name: m for m in _matrices(containers, files)}
        config = self._build_config(matrices)
        name = FILE_TYPES.get(self._metadata.get("general.file_type", -1))
        super().__init__(f"GGUF {name or main_format(matrices)}", matrices, config, files)

    @property
    def generation_config(self) -> Mapping[str, Any] | None:
        """Every token that ends a turn, and sampling settings where the file has them."""
        return build_generation_config(self._metadata)

    @property
    def licence(self) -> Mapping[str, str]:
        """As the metadata say."""
        return gguf_licence(self._metadata)

    def write_side_files(self, folder: Path) -> list[str]:
        """Rebuild the tokenizer. Raises TokenizerError when it is not Qwen's."""
        try:
            return write_tokenizer(self._metadata, folder)
        except TokenizerError as exc:
            raise TokenizerError(f"{self._file}: {exc}") from exc

    def _build_config(self, matrices: Mapping[str, Matrix]) -> dict[str, Any]:
        embedding = matrices.get("model.embed_tokens.weight")
        if embedding is None:
            raise WeightsError(f"{self._file}: no token_embd.weight; expected a whole model")
        try:
            return build_config(
                self._metadata,
                vocab_size=embedding.tensor.shape[0],
                tied="lm_head.weight" not in matrices,
                bias="model.layers.0.self_attn.q_proj.bias" in matrices,
            )
        except ConfigError as exc:
            raise ConfigError(f"{self._file}: {exc}") from exc


class GgufMatrix(IntegerMatrix):
    """A matrix of blocks; stored: its bytes."""

    __slots__ = ("_kind", "_stored")

    def __init__(self, name: str, stored: Stored, kind: BlockType) -> None:
        self._stored, self._kind = stored, kind
        width = stored.width // kind.nbytes * kind.weights
        self.tensor = SourceTensor(
            name,
            (stored.num_rows, width),
            kind.name,
            "float16",
            stored.nbytes,
            affine_layout(kind.bits, kind.group_size, width),
        )

    def parts(self) -> Iterable[Stored]:
        return (self._stored,)

    def integers(self, start: int, stop: int) -> Integers:
        kind, rows = self._kind, stop - start
        blocks = self._stored.read(start, stop).reshape(-1, kind.nbytes)
        values, scales, biases = kind.decode(blocks)
        if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
            raise not_finite(self._stored.name, self._stored.file)
        shape = (rows, self.tensor.shape[1])
        groups = (rows, self.tensor.shape[1] // kind.group_size)
        return Integers(
            values.reshape(shape), scales.reshape(groups), biases.reshape(groups), kind.group_size
        )


def _matrices(containers: Iterable[GgufContainer], files: Files) -> Iterator[Matrix]:
    for container in containers:
        for tensor in container.tensors:
            kind = BLOCK_TYPES.get(tensor.type)
            stored = _stored(tensor, kind, files)
            if stored.offset + stored.nbytes > container.size:
                raise WeightsError(
                    f"{tensor.file}: cut short: {container.size} bytes, tensor {tensor.name} ends "
                    f"at {stored.offset + stored.nbytes}; download it again"
                )
            for name, part in expert_parts(_published_name(tensor), stored):
                yield FloatMatrix(name, part) if kind is None else GgufMatrix(name, part, kind)


def _stored(tensor: GgufTensor, kind: BlockType | None, files: Files) -> Stored:
    """The tensor as floats, or as the bytes of its blocks."""
    dtype, shape = FLOAT_TYPES.get(tensor.type), tensor.shape
    if kind is not None:
        blocks, rest = divmod(shape[-1], kind.weights)
        if rest or len(shape) < 2:
            raise WeightsError(f"{tensor.file}: tensor {tensor.name} of shape {shape} in blocks")
        dtype, shape = "U8", (*shape[:-1], blocks * kind.nbytes)
    if dtype is None:
        known = [*FLOAT_TYPES.values(), *(one.name for one in BLOCK_TYPES.values())]
        raise WeightsError(
            f"{tensor.file}: tensor {tensor.name} is in "
            f"{OTHER_TYPES.get(tensor.type, f'type {tensor.type}')}, which is not supported; "
            f"expected {', '.join(known)}"
        )
    return Stored(files, tensor.name, tensor.file, tensor.offset, dtype, shape)


def _published_name(tensor: GgufTensor) -> str:
    """The Hugging Face name. Raises WeightsError for a tensor that Qwen3 has not."""
    layer, outer = _LAYER.fullmatch(tensor.name), _OUTER.fullmatch(tensor.name)
    if layer and layer[2] in _LAYER_NAMES:
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
    if outer and outer[1] in _NAMES:
        return f"{_NAMES[outer[1]]}.{outer[2]}"
    raise WeightsError(f"{tensor.file}: tensor {tensor.name} is not part of a Qwen3 model")
