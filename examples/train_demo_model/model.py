"""A compact Qwen3 for training, dense or mixture-of-experts.

The arithmetic is that of transformers' Qwen3ForCausalLM and Qwen3MoeForCausalLM; parameters carry
the same names, except that the experts of a layer are stacked (see export.py). Weights are kept
in float32 by the optimizer and used here in bfloat16; the residual stream stays in float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """The fields of config.json that shape the model; num_experts 0 means dense."""

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 640
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096
    num_experts: int = 0
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 128

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


VARIANTS: dict[str, dict[str, int]] = {
    "dense": {},
    "moe": {"num_experts": 16, "num_hidden_layers": 5},
}


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; the result is bfloat16."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).bfloat16()


def rope_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, each (length, head_dim), bfloat16."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x (B, heads, L, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def causal_mask(length: int) -> Tensor:
    """(length, length): 0 where a position may look, a large negative number elsewhere."""
    return torch.full((length, length), -1e4, dtype=torch.bfloat16).triu(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Plain attention: on a CPU in bfloat16 this is faster than torch's fused kernel.

    q (B, heads, L, head_dim); k, v (B, kv_heads, S, head_dim); mask (L, S) or (B, 1, L, S).
    The query heads that share keys are stacked along L, so nothing is repeated.
    """
    batch, heads, length, head_dim = q.shape
    kv_heads = k.shape[1]
    stacked = q.reshape(batch, kv_heads, heads // kv_heads * length, head_dim)
    scores = (stacked * head_dim**-0.5) @ k.mT
    scores = scores + torch.cat([mask] * (heads // kv_heads), dim=-2)
    return (scores.softmax(dim=-1) @ v).view(batch, heads, length, head_dim)


class Attention(nn.Module):
    """Grouped-query attention with q_norm and k_norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps)
        self.k_norm = RMSNorm(self.head_dim, eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, self.heads, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim))
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q.transpose(1, 2), *rope), rotate(k.transpose(1, 2), *rope)
        if cache is not None:
            k, v = cache.update(k, v)
        mask = causal_mask(length) if cache is None else cache.mask(length)
        out = attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """The experts of one layer, stacked: each weight is (num_experts, out, in)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, hidden, inner = (
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.gate_proj = nn.Parameter(torch.empty(count, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(count, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, inner))

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x (N, hidden): rows sorted by expert, counts[e] of them for expert e."""
        gates, ups, downs = self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind()
        out = []
        for expert, rows in enumerate(x.split(counts)):
            inner = F.silu(F.linear(rows, gates[expert])) * F.linear(rows, ups[expert])
            out.append(F.linear(inner, downs[expert]))
        return torch.cat(out)


class MoE(nn.Module):
    """Top-k routing with normalised weights; keeps the load-balancing loss of its last input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_experts
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        self.balance_loss = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        scores = F.linear(x, self.gate.weight).float().softmax(dim=-1)  # (N, num_experts)
        weights, chosen = scores.topk(self.top_k, dim=-1)  # (N, top_k)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.num_experts)
        rows = self.experts(x[order // self.top_k], counts.tolist())
        rows = rows * weights.flatten()[order, None].bfloat16()
        out = torch.zeros(x.shape, dtype=torch.float32).index_add(
            0, order // self.top_k, rows.float()
        )
        share = counts.float() / counts.sum()
        self.balance_loss = self.num_experts * (share * scores.mean(dim=0)).sum()
        return out.view(shape)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MoE(config) if config.num_experts else MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class KVCache:
    """Keys and values of one layer for a left-padded batch.

    start (B,): the first position of each sequence that is not padding.
    """

    def __init__(self, start: Tensor) -> None:
        self.start = start
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def offset(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, kv_heads, L, head_dim); return everything so far."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Drop the sequences that are not in rows (their indices)."""
        self.start = self.start[rows]
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def mask(self, length: int) -> Tensor:
        """(B, 1, length, offset): what each of the last `length` positions may see."""
        positions = torch.arange(self.offset)
        own = positions[-length:, None]
        seen = (positions <= own) & (positions >= self.start[:, None, None])
        seen = seen | (positions == own)  # padding sees itself: no empty softmax
        return torch.where(seen, 0.0, -1e4).bfloat16()[:, None]


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen3(nn.Module):
    """Token ids in, logits out; the head is tied to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        tables = rope_tables(config.max_position_embeddings, config.head_dim, config.rope_theta)
        self.register_buffer("cos", tables[0], persistent=False)
        self.register_buffer("sin", tables[1], persistent=False)

    def hidden(self, token_ids: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        """token_ids (B, L) -> the normalised last hidden states (B, L, hidden), bfloat16."""
        offset = caches[0].offset if caches else 0
        end = offset + token_ids.shape[1]
        rope = self.cos[offset:end], self.sin[offset:end]
        x = self.model.embed_tokens(token_ids).float()
        for index, layer in enumerate(self.model.layers):
            x = layer(x, rope, caches[index] if caches else None)
        return self.model.norm(x)

    def forward(self, token_ids: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        """token_ids (B, L) -> logits (B, L, vocab_size), bfloat16."""
        return F.linear(self.hidden(token_ids, caches), self.model.embed_tokens.weight)

    def loss(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy where targets (B, L) is not -100."""
        wanted = targets >= 0
        logits = F.linear(self.hidden(token_ids)[wanted], self.model.embed_tokens.weight)
        return F.cross_entropy(logits.float(), targets[wanted])

    def balance_loss(self) -> Tensor:
        """Mean load-balancing loss of the last forward pass; 1 is perfect balance."""
        losses = [layer.mlp.balance_loss for layer in self.model.layers]
        return torch.stack(losses).mean()
