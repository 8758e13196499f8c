"""Gradient clipping that follows the scene: a limit relative to what each parameter group's gradient usually is.

An absolute limit would mean something else for every scene, image size and parameter group, and Adam forgives any
constant factor anyway; what it does not forgive is one step far above the others (after P. Seetharaman et al.,
"AutoClip: Adaptive Gradient Clipping", 2020, with a running mean in the place of a percentile).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

MEMORY = 0.99  # share of the running mean that one step leaves
LEARN = 10  # steps with a gradient before a group is limited


class GradientClip:
    """Scales down, group by group, gradients whose norm exceeds `factor` times the group's running mean norm."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._sums: dict[str, tuple[float, float, int]] = {}  # weighted sum of norms, sum of weights, steps

    def __call__(self, params: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
        """Clip the gradients of `params` in place; the names of the groups that were above their limit.

        A norm that is not finite is left to the training's own guard, and counts for nothing.
        """
        groups = {name: value.grad for name, value in params.items() if value.grad is not None}
        if not groups:
            return ()
        norms = torch.stack([gradient.norm() for gradient in groups.values()]).tolist()
        clipped = []
        for (name, gradient), norm in zip(groups.items(), norms, strict=True):
            if not 0 < norm < float("inf"):
                continue
            total, weight, steps = self._sums.get(name, (0.0, 0.0, 0))
            limit = self.factor * total / weight if steps >= LEARN else norm
            if norm > limit:
                gradient.mul_(limit / norm)
                clipped.append(name)
            kept = min(norm, limit)
            self._sums[name] = (MEMORY * total + (1 - MEMORY) * kept, MEMORY * weight + 1 - MEMORY, steps + 1)
        return tuple(clipped)

    def state_dict(self) -> dict[str, list[float]]:
        """Plain numbers, for a checkpoint."""
        return {name: list(values) for name, values in self._sums.items()}

    def load_state_dict(self, saved: Mapping[str, list[float]]) -> None:
        """Go on from `state_dict()`."""
        self._sums = {name: (total, weight, int(steps)) for name, (total, weight, steps) in saved.items()}
