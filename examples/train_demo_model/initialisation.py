"""Weights to start from, with the circuit for copying already in place.

Most of what the demo model does is copying: digits, names, fields of a tool's response. A small
transformer copies with a pair of heads (Olsson et al. 2022, "In-context Learning and Induction
Heads"): one finds the previous token, the next looks for places whose previous token is the
current one and says what followed. Finding this pair takes a training from random weights longer
than everything that builds on it, so it is planted, in the spirit of mimetic initialisation
(Trockman & Kolter 2023); training then bends it as it likes.
"""

from __future__ import annotations

import torch
from model import Attention, Qwen3
from torch import Tensor, nn

EMBEDDING_STD = 0.06
CONSTANT = 6 * EMBEDDING_STD  # one channel is the same in every token: what positions work on
NEAR = 7  # so many of the fastest rotary frequencies tell neighbours apart
FAR = 14  # from this one on they turn slowly enough to compare tokens far apart
SHARPNESS = 1.5


@torch.no_grad()
def initialise(model: Qwen3) -> None:
    """Random weights, outputs to the residual stream near zero, and the copying heads."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        std = parameter.shape[-1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            std *= 0.02
        nn.init.normal_(parameter, std=std)
    embedding = model.model.embed_tokens.weight
    nn.init.normal_(embedding, std=EMBEDDING_STD)
    embedding[:, 0] = CONSTANT
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    current, previous = (_projection(first) for _ in range(2))
    _plant_previous_token_head(first, current, previous, model.config.rope_theta)
    for group in range(first.kv_heads):
        _plant_induction_head(second, group, current, previous)


def _projection(attention: Attention) -> Tensor:
    """A random orthonormal (head_dim, hidden) that does not see the constant channel."""
    hidden = attention.q_proj.weight.shape[1]
    rows = torch.linalg.qr(torch.randn(hidden, attention.head_dim))[0].T
    rows[:, 0] = 0
    return rows


def _rows(attention: Attention, head: int) -> slice:
    return slice(head * attention.head_dim, (head + 1) * attention.head_dim)


def _plant_previous_token_head(
    attention: Attention, current: Tensor, previous: Tensor, theta: float
) -> None:
    """Head 0 looks one back; it moves what `current` reads to where `previous` reads."""
    half = attention.head_dim // 2
    frequencies = theta ** (-torch.arange(half) / half)
    near = (torch.arange(half) < NEAR).float()
    query = torch.cat((near * frequencies.cos(), -near * frequencies.sin()))
    key = torch.cat((near, torch.zeros(half)))
    rows = _rows(attention, 0)
    for projection, vector in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[rows] *= 0.1
        projection.weight[rows, 0] += vector
    attention.v_proj.weight[rows] = current
    attention.o_proj.weight[:, rows] = 2 * EMBEDDING_STD * previous.T


def _plant_induction_head(
    attention: Attention, group: int, current: Tensor, previous: Tensor
) -> None:
    """The first head of a group matches current to previous tokens and copies what it finds."""
    half = attention.head_dim // 2
    far = (torch.arange(half) >= FAR).float().repeat(2)[:, None]
    head = group * (attention.heads // attention.kv_heads)
    content = _projection(attention)
    attention.q_proj.weight[_rows(attention, head)] = far * current
    attention.k_proj.weight[_rows(attention, group)] = far * previous
    attention.v_proj.weight[_rows(attention, group)] = content
    attention.o_proj.weight[:, _rows(attention, head)] = 6 * EMBEDDING_STD * content.T
    attention.q_norm.weight.fill_(SHARPNESS)
    attention.k_norm.weight.fill_(SHARPNESS)
