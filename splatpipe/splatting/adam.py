"""Adam over the Gaussians' parameters, with rows that can be zeroed, appended and left out of a step.

Kingma & Ba 2015, the same numbers as `torch.optim.Adam`. On the CPU one fused, parallel kernel per
parameter; elsewhere torch's foreach operations.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from splatpipe.splatting.raster import pool
from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.lanes import larger, load, select, splat, square_root, store

State = dict[str, torch.Tensor]
_CHUNK_FLOATS = 1 << 17


@kernel
def _update(param, grad, mean, square, start, stop, rates):
    """One Adam step of elements start to stop - 1.

    rates: beta1, 1 - beta1, beta2, 1 - beta2 (0.001 is not 1 - 0.999 in float32), step size,
    1 / sqrt(correction2), eps.
    """
    beta1, new1, beta2, new2, size, correction, eps = (
        rates[0],
        rates[1],
        rates[2],
        rates[3],
        rates[4],
        rates[5],
        rates[6],
    )
    i = start
    while i + 8 <= stop:
        g = load(grad, i)
        m = beta1 * load(mean, i) + new1 * g
        v = beta2 * load(square, i) + new2 * (g * g)
        # moments of rows that are never seen decay towards denormal numbers, which are slow: end at 0
        m = select(larger(m, -m) > 1e-30, m, splat(0.0))
        store(mean, i, m)
        store(square, i, v)
        store(param, i, load(param, i) - size * m / (square_root(v) * correction + eps))
        i += 8
    for k in range(i, stop):
        g = grad[k]
        m = beta1 * mean[k] + new1 * g
        mean[k] = m if abs(m) > np.float32(1e-30) else np.float32(0)
        square[k] = beta2 * square[k] + new2 * g * g
        param[k] -= size * mean[k] / (math.sqrt(square[k]) * correction + eps)


@kernel
def _update_rows(param, grad, mean, square, first, last, width, used, visible, every, rates):
    """The first `used` of `width` columns of rows first to last - 1, of visible rows or of `every` row."""
    for row in range(first, last):
        if every or visible[row]:
            at = row * width
            _update(param, grad, mean, square, at, at + used, rates)


class Adam:
    """Adam with one step counter for all parameters; `param.grad` None means that it rests.

    `params` maps names to contiguous leaf tensors whose first axis counts Gaussians. The dict is kept, not
    copied: a tensor put in place of another is trained from then on. `lrs` maps the same names to learning
    rates and may be changed at any time; `state[name]` holds "exp_avg" and "exp_avg_sq".
    """

    def __init__(
        self,
        params: dict[str, torch.Tensor],
        lrs: dict[str, float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
    ) -> None:
        if params.keys() != lrs.keys():
            raise ValueError(f"lrs has {sorted(lrs)}, but params {sorted(params)}")
        self.params, self.lrs, self.betas, self.eps = params, dict(lrs), betas, eps
        self.steps = 0
        self.state: dict[str, State] = {name: _zeros(param) for name, param in params.items()}

    def step(self, visible: torch.Tensor | None = None, active: Mapping[str, int] | None = None) -> None:
        """Move every parameter that has a gradient.

        `visible` (N,) bool: rows that are False keep parameters and moments (gsplat's SelectiveAdam).
        `active` {name: k}: only the first k entries along the parameter's second axis have ever had a
        gradient, so the others need no step; for shN, the SH coefficients in use. This is exact as long
        as k never falls.
        """
        self.steps += 1
        for name, param in self.params.items():
            if param.grad is None:
                continue
            used = param.shape[1] if param.ndim > 1 else 1
            if active is not None and name in active:
                used = min(used, active[name])
            if param.device.type == "cpu":
                self._step_cpu(name, param, used, visible)
            else:
                self._step_torch(name, param, visible)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for param in self.params.values():
            param.grad = None

    def zero_rows(self, index: torch.Tensor) -> None:
        """Both moments of these rows (an index or a mask) become 0, for every parameter."""
        for state in self.state.values():
            for moment in state.values():
                moment[index] = 0

    def append_zero_rows(self, count: int) -> None:
        """Make room for `count` Gaussians more, which the caller appends to every tensor in `params`."""
        for state in self.state.values():
            for key, moment in state.items():
                state[key] = torch.cat([moment, moment.new_zeros(count, *moment.shape[1:])])

    def state_dict(self) -> dict[str, Any]:
        """Steps, learning rates and moments; the tensors are the live ones, not copies."""
        return {"steps": self.steps, "lrs": dict(self.lrs), "state": {k: dict(v) for k, v in self.state.items()}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Raises ValueError if names or shapes differ."""
        for name, param in self.params.items():
            for key in ("exp_avg", "exp_avg_sq"):
                moment = saved["state"].get(name, {}).get(key)
                if moment is None or moment.shape != param.shape:
                    found = "nothing" if moment is None else tuple(moment.shape)
                    raise ValueError(f"saved {key} of {name} must have shape {tuple(param.shape)}, found {found}")
        self.steps, self.lrs = saved["steps"], dict(saved["lrs"])
        self.state = {
            name: {key: saved["state"][name][key].detach().to(param.device, copy=True) for key in self.state[name]}
            for name, param in self.params.items()
        }

    def _corrections(self, name: str) -> tuple[float, float]:
        """Step size, and one over the square root of the second correction."""
        first, second = (1 - beta**self.steps for beta in self.betas)
        return self.lrs[name] / first, 1 / math.sqrt(second)

    def _step_cpu(self, name: str, param: torch.Tensor, used: int, visible: torch.Tensor | None) -> None:
        if len(param) == 0 or used == 0:
            return
        state, grad = self.state[name], param.grad
        assert grad is not None
        if not param.is_contiguous() or param.dtype != torch.float32 or param.shape != state["exp_avg"].shape:
            raise ValueError(
                f"{name} must be contiguous float32 of shape {tuple(state['exp_avg'].shape)}, "
                f"not {param.dtype} of shape {tuple(param.shape)}"
            )
        tensors = (param, grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
        flat = [t.detach().numpy().reshape(-1) for t in tensors]
        beta1, beta2 = self.betas
        rates = np.array([beta1, 1 - beta1, beta2, 1 - beta2, *self._corrections(name), self.eps], np.float32)
        width = param[0].numel()
        columns = used * (width // param.shape[1]) if param.ndim > 1 else 1
        if visible is None and columns == width:
            ranges = pool.spans(param.numel(), -(-param.numel() // _CHUNK_FLOATS))
            pool.run(lambda chunk: _update(*flat, *ranges[chunk], rates), len(ranges))
            return
        rows = np.zeros(1, np.bool_) if visible is None else visible.numpy()
        ranges = pool.spans(len(param), -(-len(param) * columns // _CHUNK_FLOATS))
        pool.run(
            lambda chunk: _update_rows(*flat, *ranges[chunk], width, columns, rows, visible is None, rates),
            len(ranges),
        )

    @torch.no_grad()
    def _step_torch(self, name: str, param: torch.Tensor, visible: torch.Tensor | None) -> None:
        beta1, beta2 = self.betas
        size, correction = self._corrections(name)
        moments = self.state[name]["exp_avg"], self.state[name]["exp_avg_sq"]
        mean, square, gradient = *moments, param.grad
        assert gradient is not None
        if visible is not None:
            mean, square, gradient = mean[visible], square[visible], gradient[visible]
        mean = torch.lerp(mean, gradient, 1 - beta1)
        square = beta2 * square + (1 - beta2) * gradient * gradient
        change = -size * mean / (square.sqrt() * correction + self.eps)
        if visible is None:
            param += change
            moments[0].copy_(mean)
            moments[1].copy_(square)
        else:
            param[visible] += change
            moments[0][visible], moments[1][visible] = mean, square


def _zeros(param: torch.Tensor) -> State:
    """Fresh moments; their memory is contiguous whatever the parameter's is."""
    return {key: torch.zeros(param.shape, dtype=param.dtype, device=param.device) for key in ("exp_avg", "exp_avg_sq")}
