"""Muon for matrices, Adam for the rest; float32 master weights, bfloat16 in the model."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from quantization import fake_quantize
from torch import Tensor, nn

# Newton-Schulz coefficients from Keller Jordan's Muon.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, about: (N, rows, columns), bfloat16."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Optimizer:
    """Owns the float32 master weights of a bfloat16 model and both optimizers' state.

    quantize: write the model's matrices rounded as the shipped 4-bit format rounds them
    (straight through: gradients still reach the master weights).
    """

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float) -> None:
        self.parameters = dict(model.named_parameters())
        self.master = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        self.muon_lr, self.adam_lr = muon_lr, adam_lr
        self.quantize = False
        self.steps = 0
        self.groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        self.others: list[str] = []
        for name, weight in self.master.items():
            is_matrix = weight.ndim >= 2 and "embed_tokens" not in name
            if is_matrix and not name.endswith("mlp.gate.weight"):
                self.groups[weight.shape[-2:]].append(name)
            else:
                self.others.append(name)
        self.momentum = {
            n: torch.zeros_like(self.master[n]) for g in self.groups.values() for n in g
        }
        self.first = {n: torch.zeros_like(self.master[n]) for n in self.others}
        self.second = {n: torch.zeros_like(self.master[n]) for n in self.others}
        model.bfloat16()

    def step(self, scale: float) -> None:
        """One update from the model's gradients, at `scale` times the peak learning rates."""
        self.steps += 1
        for names in self.groups.values():
            self._muon(names, self.muon_lr * scale)
        for name in self.others:
            self._adam(name, self.adam_lr * scale)
        self.write()

    def _muon(self, names: list[str], lr: float, beta: float = 0.95, decay: float = 0.01) -> None:
        nesterov = []
        for name in names:
            gradient = self.parameters[name].grad.float()
            momentum = self.momentum[name].lerp_(gradient, 1 - beta)
            mixed = gradient.lerp_(momentum, beta)
            nesterov.append(mixed.view(-1, *mixed.shape[-2:]))
        updates = orthogonalise(torch.cat(nesterov))
        rows, columns = updates.shape[-2:]
        rate = lr * max(1.0, rows / columns) ** 0.5
        for name, update in zip(names, updates.split([len(n) for n in nesterov]), strict=True):
            weight = self.master[name]
            weight.mul_(1 - lr * decay).add_(update.float().view_as(weight), alpha=-rate)

    def _adam(self, name: str, lr: float, betas: tuple[float, float] = (0.9, 0.98)) -> None:
        gradient = self.parameters[name].grad.float()
        first = self.first[name].lerp_(gradient, 1 - betas[0])
        second = self.second[name].lerp_(gradient.square(), 1 - betas[1])
        root = (second / (1 - betas[1] ** self.steps)).sqrt_().add_(1e-10)
        self.master[name].addcdiv_(first, root, value=-lr / (1 - betas[0] ** self.steps))

    @torch.no_grad()
    def write(self) -> None:
        """Copy the master weights into the model and clear its gradients."""
        for name, parameter in self.parameters.items():
            weight = self.master[name]
            if self.quantize and weight.ndim >= 2 and not name.endswith("mlp.gate.weight"):
                weight = fake_quantize(weight)
            parameter.copy_(weight)
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        names = ("master", "momentum", "first", "second", "steps")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.write()
