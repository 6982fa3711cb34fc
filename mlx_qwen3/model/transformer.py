"""The Qwen3 transformer, dense and mixture of experts: token_ids + cache -> logits.

Reads top to bottom: a model is an embedding, layers and a head; a layer is attention and a
feed-forward part. Modules are built from a `TensorSource` (weights.py), which knows where tensors
come from and how they are packed; nothing here knows about files.

Reference: transformers' Qwen3ForCausalLM and Qwen3MoeForCausalLM.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_qwen3.model.attention import Mask
from mlx_qwen3.model.cache import Cache, LayerCache, kv_group_size, make_layer_cache
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.experts import Experts, ExpertTraffic, SparseMLP
from mlx_qwen3.model.linear import AnyLinear, ParallelLinear, nbytes
from mlx_qwen3.model.operations import Operations, RMSNorm
from mlx_qwen3.model.peers import Peers
from mlx_qwen3.model.rope import Rope, Rotation
from mlx_qwen3.model.step import DecodeStep, PlainStep

TokenIds = mx.array | list[list[int]]


class TensorSource(Protocol):
    """Where a model's parts come from, by the names of the Hugging Face checkpoint."""

    @property
    def operations(self) -> Operations:
        """The small operations, as this device runs them best."""
        ...

    def tensor(self, name: str, shape: tuple[int, ...]) -> mx.array:
        """A tensor in the model's dtype."""
        ...

    def linear(self, name: str, out_dims: int, in_dims: int, *, bias: bool = False) -> AnyLinear:
        """The projection `name`.weight, with `name`.bias if asked for."""
        ...

    def experts(self, name: str) -> Experts:
        """All experts of the sparse layer `name`."""
        ...

    def settle(self, module: Module) -> None:
        """`module` is complete: load its tensors now and let go of what they were made from."""
        ...


class Transformer(Module):
    """A causal language model.

    step: one token after what is in a cache, and the logits of the next (step.py).
    peers: the processes that the model is spread over; None: it is all here.
    layers: which of its layers are here; None: all.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: TensorSource,
        peers: Peers | None = None,
        layers: range | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.peers = peers
        self._held = range(config.num_hidden_layers) if layers is None else layers
        self.operations = source.operations
        self.rope = rope = make_rope(config, source)
        self.embed_tokens = source.linear(
            "model.embed_tokens", config.vocab_size, config.hidden_size
        )
        source.settle(self.embed_tokens)
        self.layers = [
            TransformerLayer(config, index, rope.attention_factor, source) for index in self._held
        ]
        self.norm = make_norm("model.norm", config, source)
        if not config.tie_word_embeddings:
            self.lm_head = source.linear("lm_head", config.vocab_size, config.hidden_size)
        source.settle(self)
        self.step: DecodeStep = PlainStep(self)

    def __call__(self, token_ids: TokenIds, cache: Cache | None = None) -> mx.array:
        """Logits of every position.

        token_ids: (B, L) int, all sequences equally long; with a cache, the tokens that follow
        what is in it. Returns (B, L, vocab_size) in the model's dtype.
        Raises CacheFullError when the cache is too small.
        """
        return self.logits(self.hidden_states(token_ids, cache))

    def hidden_states(self, token_ids: TokenIds, cache: Cache | None = None) -> mx.array:
        """What the head reads, after the last norm: (B, L) -> (B, L, hidden_size)."""
        ids = token_ids if isinstance(token_ids, mx.array) else mx.array(token_ids)
        cache = self.make_cache() if cache is None else cache
        return self.norm(self.run_layers(self.embed_tokens.rows(ids), cache))

    def run_layers(self, x: mx.array, cache: Cache) -> mx.array:
        """The layers that are here: (B, L, hidden_size) -> the same."""
        masks: dict[tuple[int | None, int], Mask] = {}
        rotation = self.rope.at(cache.position, x.shape[1])
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            kind = (layer_cache.max_size, layer_cache.keep)
            if kind not in masks:
                masks[kind] = layer_cache.mask(x.shape[1])
            x = layer(x, layer_cache, rotation, masks[kind])
        return x

    @property
    def dtype(self) -> mx.Dtype:
        """Of activations and logits."""
        return self.norm.weight.dtype

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(..., hidden_size) -> (..., vocab_size)."""
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head(hidden_states)

    def bytes_per_token(self) -> int:
        """Bytes of weights one decode step reads: of a sparse layer, the chosen experts only."""
        layers = sum(layer.bytes_per_token() for layer in self.layers)
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return layers + nbytes(self.norm) + nbytes(head)

    def kv_bytes_per_token(self, kv_bits: int | None = None) -> int:
        """Bytes of keys and values that one token adds to a cache of all layers."""
        config = self.config
        width = 2 * len(self._held) * config.num_key_value_heads * config.head_dim
        bits: float = self.dtype.size * 8
        if kv_bits is not None:  # and a scale and a bias for each group
            bits = kv_bits + 2 * bits / kv_group_size(config.head_dim)
        return int(width * bits / 8)

    @property
    def expert_traffic(self) -> ExpertTraffic | None:
        """What was read of streamed experts so far; None where all weights are in memory."""
        mlps = (layer.mlp for layer in self.layers)
        parts = [mlp.traffic for mlp in mlps if isinstance(mlp, SparseMLP) and mlp.traffic]
        return sum(parts, ExpertTraffic()) if parts else None

    def make_cache(
        self,
        *,
        max_kv_size: int | None = None,
        keep: int = 4,
        kv_bits: int | None = None,
        max_tokens: int | None = None,
    ) -> Cache:
        """An empty cache for this model.

        max_kv_size: attend to the first `keep` tokens and the most recent others, this many in
        all; None: to every token. kv_bits: pack keys and values to 4 or 8 bits.
        max_tokens: refuse more than this many tokens. Raises OptionError for impossible values.
        """
        layers = []
        for index in self._held:
            window = self.config.window(index)
            slides = window is not None and (max_kv_size is None or window <= max_kv_size)
            layers.append(
                make_layer_cache(
                    head_dim=self.config.head_dim,
                    max_size=window if slides else max_kv_size,
                    keep=0 if slides or max_kv_size is None else keep,
                    kv_bits=kv_bits,
                    max_tokens=max_tokens,
                    score_bytes=self.operations.score_bytes,
                )
            )
        return Cache(layers)


class TransformerLayer(Module):
    """Attention and feed-forward part, each behind a norm and around a residual.

    attention_factor: see Rope.
    """

    def __init__(
        self, config: ModelConfig, index: int, attention_factor: float, source: TensorSource
    ) -> None:
        super().__init__()
        name = f"model.layers.{index}"
        self.input_layernorm = make_norm(f"{name}.input_layernorm", config, source)
        self.self_attn = Attention(config, f"{name}.self_attn", attention_factor, source)
        self.post_attention_layernorm = make_norm(
            f"{name}.post_attention_layernorm", config, source
        )
        sparse = config.is_sparse(index)
        self.mlp = (_sparse_mlp if sparse else MLP)(config, f"{name}.mlp", source)
        source.settle(self)

    def __call__(self, x: mx.array, cache: LayerCache, rotation: Rotation, mask: Mask) -> mx.array:
        """x: (B, L, hidden_size) -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), cache, rotation, mask)
        return x + self.mlp(self.post_attention_layernorm(x))

    def bytes_per_token(self) -> int:
        """Bytes of weights read for one token."""
        idle = self.mlp.idle_bytes() if isinstance(self.mlp, SparseMLP) else 0
        return nbytes(self) - idle


class Attention(Module):
    """Grouped-query attention with a norm on each head's queries and keys.

    Queries and keys are normed and rotated together: half the operations for the same numbers.
    """

    def __init__(
        self, config: ModelConfig, name: str, attention_factor: float, source: TensorSource
    ) -> None:
        super().__init__()
        self._heads = config.num_attention_heads
        self._head_dim = config.head_dim
        self._scale = attention_factor**2 / config.head_dim**0.5
        heads = {
            "q_proj": config.num_attention_heads,
            "k_proj": config.num_key_value_heads,
            "v_proj": config.num_key_value_heads,
        }
        self._rotated = heads["q_proj"] + heads["k_proj"]
        self.qkv_proj = ParallelLinear(
            [
                source.linear(
                    f"{name}.{part}",
                    count * config.head_dim,
                    config.hidden_size,
                    bias=config.attention_bias,
                )
                for part, count in heads.items()
            ]
        )
        self.o_proj = source.linear(
            f"{name}.o_proj",
            config.hidden_size,
            config.num_attention_heads * config.head_dim,
            bias=config.attention_bias,
        )
        self.qk_norm = _query_key_norm(config, name, source)

    def __call__(self, x: mx.array, cache: LayerCache, rotation: Rotation, mask: Mask) -> mx.array:
        """x: (B, L, hidden_size) -> the same."""
        batch, length, _ = x.shape
        heads = self.qkv_proj.joined(x).reshape(batch, length, -1, self._head_dim)
        values = heads[:, :, self._rotated :].swapaxes(1, 2)  # (B, num_kv_heads, L, head_dim)
        rotated = rotation(self.qk_norm(heads[:, :, : self._rotated]).swapaxes(1, 2))
        queries, keys = rotated[:, : self._heads], rotated[:, self._heads :]
        out = cache.attend(queries, keys, values, scale=self._scale, mask=mask)
        return self.o_proj(out.swapaxes(1, 2).reshape(batch, length, -1))


class MLP(Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, name: str, source: TensorSource) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.intermediate_size
        self.gate_up_proj = ParallelLinear(
            [source.linear(f"{name}.{part}", width, hidden) for part in ("gate_proj", "up_proj")]
        )
        self.down_proj = source.linear(f"{name}.down_proj", hidden, width)
        self._gate = source.operations.gate

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, L, hidden_size) -> the same."""
        return self.down_proj(self._gate(*self.gate_up_proj(x)))


def make_rope(config: ModelConfig, source: TensorSource) -> Rope:
    """The positions of a model, for all its layers."""
    return Rope(config.head_dim, config.rope_parameters, written_out=source.operations.written_out)


def make_norm(name: str, config: ModelConfig, source: TensorSource) -> RMSNorm:
    """The norm `name`.weight over the hidden states."""
    weight = source.tensor(f"{name}.weight", (config.hidden_size,))
    return source.operations.rms_norm(weight, config.rms_norm_eps)


def _query_key_norm(config: ModelConfig, name: str, source: TensorSource) -> RMSNorm:
    """One norm for the heads of queries and keys: (num_heads + num_kv_heads, head_dim)."""
    counts = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
    weight = mx.concatenate(
        [
            mx.broadcast_to(
                source.tensor(f"{name}.{part}.weight", (config.head_dim,)),
                (count, config.head_dim),
            )
            for part, count in counts.items()
        ]
    )
    return source.operations.rms_norm(weight, config.rms_norm_eps)


def _sparse_mlp(config: ModelConfig, name: str, source: TensorSource) -> SparseMLP:
    return SparseMLP(
        source.linear(f"{name}.gate", config.num_experts, config.hidden_size),
        source.experts(name),
        top_k=config.num_experts_per_tok,
        norm_topk_prob=config.norm_topk_prob,
    )
