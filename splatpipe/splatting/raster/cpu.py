"""The CPU rasteriser: `gsplat.rasterization` for pinhole cameras and RGB, in Numba, with its derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from splatpipe.splatting.raster.camera import pack_camera
from splatpipe.splatting.raster.view import Floats, Frame, Gaussians, View
from splatpipe.splatting.raster.workspace import GradientBuffers

_gradients = GradientBuffers()
_NOTHING = np.zeros(8, np.float32)


def _flat(tensor: torch.Tensor) -> Any:
    return tensor.detach().numpy().reshape(-1)


def _gaussians(means: Any, quats: Any, scales: Any, opacities: Any, base: Any, rest: Any) -> Gaussians:
    """The kernels' view of the inputs; `rest` None means that `base` holds all coefficients."""
    geometry = _flat(means), _flat(quats), _flat(scales), _flat(opacities)
    stride = base[0].numel()
    if rest is None:
        return Gaussians(*geometry, _flat(base), stride, _flat(base), stride, 3)
    return Gaussians(*geometry, _flat(base), stride, _flat(rest), rest[0].numel(), 0)


class _Rasterize(torch.autograd.Function):
    """Inputs in the order of `forward`; gradients for the last six."""

    @staticmethod
    def forward(ctx, frame, cameras, backgrounds, means, quats, scales, opacities, base, rest):  # type: ignore
        n, count = len(means), len(cameras)
        renders = torch.empty(count, frame.height, frame.width, 3)
        alphas = torch.empty(count, frame.height, frame.width, 1)
        radii = torch.empty(count, n, 2, dtype=torch.int32)
        means2d, depths = torch.empty(count, n, 2), torch.empty(count, n)
        gaussians = _gaussians(means, quats, scales, opacities, base, rest)
        views = []
        for k, camera in enumerate(cameras):
            view = View(frame, gaussians, camera, backgrounds[k])
            view.render(*(_flat(output[k]) for output in (renders, alphas, radii, means2d, depths)))
            views.append(view)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(means, quats, scales, opacities, base, rest)  # complains if changed in place
            ctx.views = views
            ctx.set_materialize_grads(False)
        else:
            for view in views:
                view.release()
        ctx.mark_non_differentiable(radii, means2d, depths)
        return renders, alphas, radii, means2d, depths, sum(view.intersections for view in views)

    @staticmethod
    def backward(ctx, v_renders, v_alphas, *_):  # type: ignore
        inputs = ctx.saved_tensors
        frame = ctx.views[0].frame
        tensors, flat = _gradient_tensors(frame, inputs)
        for k, view in enumerate(ctx.views):
            image = _of_camera(v_renders, k, 3 * frame.width * frame.height)
            alpha = _of_camera(v_alphas, k, frame.width * frame.height)
            if k == 0:
                view.backward(image, alpha, flat)
            else:
                more, flat_more = _gradient_tensors(frame, inputs)
                view.backward(image, alpha, flat_more)
                for mine, theirs in zip(tensors, more, strict=True):
                    if mine is not None and theirs is not None:
                        mine += theirs
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *(t if want else None for t, want in zip(tensors, wanted, strict=True))


def _of_camera(gradient: torch.Tensor | None, k: int, size: int) -> Floats:
    if gradient is None:
        return np.zeros(size, np.float32)
    return _flat(gradient[k].contiguous())


def _gradient_tensors(frame: Frame, inputs: Any) -> tuple[list[torch.Tensor | None], list[Floats]]:
    """Buffers for the gradients of means, quats, scales, opacities, base and rest: as tensors, and flat."""
    *geometry, base, rest = inputs
    pairs: list[Any] = [_gradients.take(tuple(t.shape), t[0].numel()) for t in geometry]
    in_base = 3 + 3 * frame.bands if rest is None else 3
    pairs.append(_gradients.take(tuple(base.shape), in_base))
    if rest is None:
        pairs.append((None, pairs[-1][1]))
    elif frame.bands:
        pairs.append(_gradients.take(tuple(rest.shape), 3 * frame.bands))
    else:
        pairs.append((None, _NOTHING))
    return [tensor for tensor, _ in pairs], [flat for _, flat in pairs]


def rasterize(
    frame: Frame,
    viewmats: torch.Tensor,
    Ks: torch.Tensor,
    backgrounds: torch.Tensor | None,
    gaussians: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Render checked inputs; see `raster.rasterization`."""
    shades = np.zeros((len(viewmats), 3), np.float32) if backgrounds is None else backgrounds.detach().numpy()
    if len(gaussians[0]) == 0 or len(viewmats) == 0:
        return _empty(frame, shades, len(gaussians[0]))
    cameras = [
        pack_camera(v, k, frame.width, frame.height, frame.planes, frame.eps2d, frame.antialiased)
        for v, k in zip(viewmats.detach().numpy(), Ks.detach().numpy(), strict=True)
    ]
    renders, alphas, radii, means2d, depths, isects = _Rasterize.apply(  # type: ignore[no-untyped-call]
        frame, cameras, shades, *gaussians
    )
    return renders, alphas, {"radii": radii, "means2d": means2d, "depths": depths, "n_isects": isects}


def _empty(frame: Frame, shades: Floats, n: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Nothing to draw: the backgrounds."""
    count = len(shades)
    renders = torch.from_numpy(shades).view(count, 1, 1, 3).expand(count, frame.height, frame.width, 3).clone()
    meta = {
        "radii": torch.zeros(count, n, 2, dtype=torch.int32),
        "means2d": torch.zeros(count, n, 2),
        "depths": torch.zeros(count, n),
        "n_isects": 0,
    }
    return renders, torch.zeros(count, frame.height, frame.width, 1), meta
