"""MLX's affine quantization in torch, for training with the rounding the shipped model has."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_SIZE = 64
BITS = 4


def fake_quantize(weight: Tensor, bits: int = BITS, group_size: int = GROUP_SIZE) -> Tensor:
    """weight (..., in) rounded to `bits` and back, as mx.quantize rounds it; float32."""
    groups = weight.reshape(-1, group_size)
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    levels = 2**bits - 1
    scale = ((high - low) / levels).clamp_min(1e-7)
    low_is_edge = low.abs() > high.abs()
    scale = torch.where(low_is_edge, scale, -scale)
    edge = torch.where(low_is_edge, low, high)
    zero = (edge / scale).round()  # the edge is represented exactly
    safe = torch.where(zero == 0, torch.ones_like(zero), zero)
    scale = torch.where(zero == 0, scale, edge / safe).bfloat16().float()
    bias = torch.where(zero == 0, torch.zeros_like(edge), edge).bfloat16().float()
    codes = ((groups - bias) / scale).round_().clamp_(0, levels)
    return codes.mul_(scale).add_(bias).reshape(weight.shape)
