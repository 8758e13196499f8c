"""Parameters of which each photograph has its own: a row moves when its photograph was seen, and only then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

BETAS = (0.9, 0.999)
EPS = 1e-15


class RowParameter:
    """`values` (C, ...) float32, one row for each of C photographs, moved by Adam with a step count for each row.

    One count for all would let a row drift on by its momentum while its photograph waits for its next turn.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)
        self._steps = torch.zeros(len(values), dtype=torch.int64)
        self._leaves: list[tuple[int, torch.Tensor]] = []

    def leaf(self, index: int) -> torch.Tensor:
        """The row of a photograph, ready to collect a gradient for `step`."""
        leaf = self.values[index].detach().clone().requires_grad_(True)
        self._leaves.append((index, leaf))
        return leaf

    @torch.no_grad()
    def step(self, rate: float) -> bool:
        """Move the rows whose leaves have a gradient and forget the leaves; whether there were any."""
        gradients: dict[int, torch.Tensor] = {}
        for index, leaf in self._leaves:
            if leaf.grad is not None:
                gradients[index] = gradients[index] + leaf.grad if index in gradients else leaf.grad
        self._leaves.clear()
        for index, gradient in gradients.items():
            self._steps[index] += 1
            first, second = (1 - beta ** int(self._steps[index]) for beta in BETAS)
            mean = self._mean[index].lerp_(gradient, 1 - BETAS[0])
            square = self._square[index].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            self.values[index] -= rate / first * mean / (square.sqrt() / math.sqrt(second) + EPS)
        return bool(gradients)

    def state_dict(self) -> dict[str, Any]:
        """The live tensors, not copies."""
        return {"values": self.values, "mean": self._mean, "square": self._square, "steps": self._steps}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for mine, theirs in zip(self.state_dict().values(), saved.values(), strict=True):
            mine.copy_(theirs)
