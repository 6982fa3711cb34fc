"""Tensor parallel: each process has a part of every matrix, and all of them work on each token.

Attention is split by heads, feed-forward parts and each expert by their intermediate dimension,
the vocabulary by tokens. So the first matrix of a block needs nobody, and behind the second one
sum makes the block whole: two exchanges of a layer (arXiv:1909.08053). Norms and routers, which
are small, are everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_qwen3.errors import PeerError
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.collective import SharedVocabulary, SummedExperts, SummedLinear
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.experts import Experts
from mlx_qwen3.model.linear import AnyLinear
from mlx_qwen3.model.peers import Peers
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.slices import Cut, read_part
from mlx_qwen3.model.weights import CheckpointSource

_ROWS, _COLUMNS = -2, -1
_VOCABULARY = ("embed_tokens", "lm_head")
_SUMMED = ("o_proj", "down_proj")
_TENSORS = ("weight", "scales", "biases", "bias")
_Spans = tuple[tuple[tuple[int, int], ...], int]  # as in Cut: spans, whole


@dataclass(frozen=True)
class Split:
    """Which part of a model the process `rank` of `size` has. Raises PeerError for no such split.

    With more processes than KV heads several have the same one.
    """

    config: ModelConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        config, counts = self.config, {"attention heads": self.config.num_attention_heads}
        layers = range(config.num_hidden_layers)
        if any(config.is_sparse(layer) for layer in layers):
            counts["rows of an expert"] = config.moe_intermediate_size
        if not all(config.is_sparse(layer) for layer in layers):
            counts["rows of a feed-forward part"] = config.intermediate_size
        for what, count in counts.items():
            if count % self.size:
                self._refuse(f"{count} {what}")
        heads = config.num_key_value_heads
        if heads % self.size and self.size % heads:
            self._refuse(f"{heads} key-value heads")

    def _refuse(self, what: str) -> None:
        raise PeerError(
            f"{self.size} processes cannot share {what} evenly; use another number of them (2, 4 "
            "and 8 suit most models), or --parallel pipeline"
        )

    @property
    def own(self) -> ModelConfig:
        """The config of this process's part. Of its vocabulary nothing changes."""
        config, size = self.config, self.size
        return replace(
            config,
            num_attention_heads=config.num_attention_heads // size,
            num_key_value_heads=max(config.num_key_value_heads // size, 1),
            intermediate_size=config.intermediate_size // size,
            moe_intermediate_size=config.moe_intermediate_size // size,
        )

    @property
    def vocabulary_share(self) -> int:
        """Rows of the embedding and the head that each process has; the last may have fewer."""
        return -(-self.config.vocab_size // self.size)

    @property
    def vocabulary(self) -> tuple[int, int]:
        """First and one past the last of this process's tokens."""
        share, every = self.vocabulary_share, self.config.vocab_size
        return min(self.rank * share, every), min((self.rank + 1) * share, every)

    def cut(self, tensor: str) -> Cut | None:
        """What this process has of a tensor, by its name; None for all of it."""
        names = tensor.split(".")
        # Stacked experts of transformers 5 are tensors by themselves.
        matrix, kind = names[-2:] if names[-1] in _TENSORS else (names[-1], "weight")
        if matrix not in _SPANS or (matrix in _SUMMED and kind == "bias"):
            return None
        spans, whole = _SPANS[matrix](self)
        return Cut(_COLUMNS if matrix in _SUMMED or kind == "bias" else _ROWS, spans, whole)

    def _even(self) -> _Spans:
        return ((self.rank, self.rank + 1),), self.size

    def _key_heads(self) -> _Spans:
        count = self.config.num_key_value_heads
        first = self.rank * count // self.size
        return ((first, first + max(count // self.size, 1)),), count

    def _gate_and_up(self) -> _Spans:
        """Gate rows above up rows."""
        spans = tuple((first, first + 1) for first in (self.rank, self.size + self.rank))
        return spans, 2 * self.size

    def _tokens(self) -> _Spans:
        return (self.vocabulary,), self.config.vocab_size


# How each matrix is cut, by the last part of its name.
_SPANS: dict[str, Callable[[Split], _Spans]] = {
    "q_proj": Split._even,
    "k_proj": Split._key_heads,
    "v_proj": Split._key_heads,
    "o_proj": Split._even,
    "gate_proj": Split._even,
    "up_proj": Split._even,
    "gate_up_proj": Split._gate_and_up,
    "down_proj": Split._even,
    "embed_tokens": Split._tokens,
    "lm_head": Split._tokens,
}


class ShardSource(CheckpointSource):
    """One process's part of a checkpoint. The model is built of `split.own`."""

    def __init__(
        self, split: Split, checkpoint: Checkpoint, policy: ComputePolicy, peers: Peers
    ) -> None:
        super().__init__(split.config, checkpoint, policy)
        self._split = split
        self._peers = peers

    def linear(self, name: str, out_dims: int, in_dims: int, *, bias: bool = False) -> AnyLinear:
        """The part of a projection, made whole where it has to be. Raises PeerError, too."""
        matrix = name.rpartition(".")[2]
        if matrix in _VOCABULARY:
            part = super().linear(name, out_dims, in_dims)
            start, share = self._split.vocabulary[0], self._split.vocabulary_share
            return SharedVocabulary(part, start, share, out_dims, self._peers)
        if matrix in _SUMMED:
            part = super().linear(name, out_dims, self._whole(in_dims, matrix, name))
            whole_bias = self.tensor(f"{name}.bias", (out_dims,)) if bias else None
            return SummedLinear(part, whole_bias, self._peers)
        return super().linear(name, self._whole(out_dims, matrix, name), in_dims, bias=bias)

    def experts(self, name: str) -> Experts:
        """This process's part of every expert of a layer."""
        return SummedExperts(super().experts(name), self._peers)

    def _read(self, name: str) -> mx.array:
        cut = self._split.cut(name)
        if cut is None:
            return super()._read(name)
        return read_part(name, self._checkpoint.info(name), cut)

    def _whole(self, dims: int, matrix: str, name: str) -> int:
        """How long a dimension of this process's part is in the checkpoint."""
        if self._split.cut(f"{name}.weight") is None:
            return dims
        if matrix in ("k_proj", "v_proj"):
            return self._split.config.num_key_value_heads * self._split.config.head_dim
        return dims * self._split.size
