"""Pipeline parallel: each process has some of the layers, and a token passes all of them in turn.

The last process has the first layers and rank 0 the last ones, with the head: what leaves the
layers is where tokens are drawn (as mlx-lm does it). One hidden state per token and process is
sent, so a slow network matters little; but only one host works at a time, so it is memory that
this adds, not speed.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.linear import AnyLinear
from mlx_qwen3.model.peers import Peers
from mlx_qwen3.model.placement import layer_of
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.transformer import TokenIds, Transformer
from mlx_qwen3.model.weights import CheckpointSource


class Stage(Transformer):
    """Some layers of a model, between those of its neighbours. peers: as in Transformer."""

    peers: Peers

    def hidden_states(self, token_ids: TokenIds, cache: Cache | None = None) -> mx.array:
        """As in Transformer on rank 0; elsewhere what this stage hands on."""
        ids = token_ids if isinstance(token_ids, mx.array) else mx.array(token_ids)
        cache = self.make_cache() if cache is None else cache
        x = self.run_layers(self._arriving(ids), cache)
        if self.peers.rank == 0:
            return self.norm(x)
        sent = self.peers.send(x, self.peers.rank - 1)
        # Whoever reads a prompt waits for the cache alone: then x must have been sent.
        last = cache.layers[-1]
        last.advance(0, mx.depends(last.state(), [sent]))
        return sent

    def logits(self, hidden_states: mx.array) -> mx.array:
        """As in Transformer on rank 0; elsewhere zeros, made when the hidden states are sent."""
        if self.peers.rank == 0:
            return super().logits(hidden_states)
        shape = (*hidden_states.shape[:-1], self.config.vocab_size)
        nothing: mx.array = mx.depends([mx.zeros(shape, self.dtype)], [hidden_states])[0]
        return nothing

    def _arriving(self, ids: mx.array) -> mx.array:
        if self.peers.rank == self.peers.size - 1:
            return self.embed_tokens.rows(ids)
        shape = (*ids.shape, self.config.hidden_size)
        return self.peers.receive(shape, self.dtype, self.peers.rank + 1)


class StageSource(CheckpointSource):
    """A checkpoint of which one stage's tensors are read."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        policy: ComputePolicy,
        peers: Peers,
        layers: range,
    ) -> None:
        super().__init__(config, checkpoint, policy)
        self._layers = layers
        ends = {"model.embed_tokens": peers.rank == peers.size - 1, "lm_head": peers.rank == 0}
        ends["model.embed_tokens"] |= config.tie_word_embeddings and peers.rank == 0
        self._absent = tuple(name for name, here in ends.items() if not here)

    def linear(self, name: str, out_dims: int, in_dims: int, *, bias: bool = False) -> AnyLinear:
        """The projection, or a stand-in for one that another stage has."""
        if name in self._absent:
            return _Elsewhere(name)
        return super().linear(name, out_dims, in_dims, bias=bias)

    def _is_needless(self, name: str) -> bool:
        layer = layer_of(name)
        others = layer is not None and layer not in self._layers
        ends = tuple(one.removeprefix("model.") for one in self._absent)
        return others or name.removeprefix("model.").startswith(ends) or super()._is_needless(name)


class _Elsewhere(AnyLinear):
    """The embedding or the head, on a stage that has no use for it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.bias = None
        self._name = name

    def __call__(self, x: mx.array) -> mx.array:
        """Not here."""
        raise RuntimeError(f"{self._name} is on another stage of the pipeline")

    def rows(self, ids: mx.array) -> mx.array:
        """Not here."""
        return self(ids)
