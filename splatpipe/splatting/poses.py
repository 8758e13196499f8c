"""Small corrections of camera poses, learned while the Gaussians are.

A correction is applied to the Gaussians in front of the rasteriser, so that no rasteriser has to give gradients with
respect to cameras. The view-dependent colour is evaluated here, from the true direction: neither rotating the camera
about its centre nor the move of the Gaussians that stands for it may change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.splatting.harmonics import sh_colors
from splatpipe.splatting.model import Params
from splatpipe.splatting.per_photograph import RowParameter

_TOLERANCE = 1e-9  # of singular values, relative to the largest


def camera_centers(viewmats: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, 3) of world-to-camera matrices (C, 4, 4)."""
    return -np.einsum("cji,cj->ci", viewmats[:, :3, :3], viewmats[:, :3, 3])


class Poses:
    """Corrections of C cameras, (C, 6): rotation vector in radians about the camera's centre, and shift; world axes.

    A correction D stands for the camera `viewmat @ D` with D(x) = R (x - c) + c + t. What moves all cameras as one
    (a common motion or scale of the scene) is taken out after every step: photographs cannot tell it from the
    Gaussians having moved, and hold-out cameras, which are not corrected, would be left behind.
    """

    def __init__(self, viewmats: NDArray[np.float64], device: torch.device) -> None:
        centers = camera_centers(viewmats)
        self._centers = torch.tensor(centers, dtype=torch.float32, device=device)
        self._common = torch.tensor(_common_motions(centers), dtype=torch.float32, device=device)
        self.rows = RowParameter(torch.zeros(len(centers), 6, device=device))

    def leaf(self, index: int) -> torch.Tensor:
        """The correction (6,) of a camera, for `moved`."""
        return self.rows.leaf(index)

    def moved(
        self, params: Params, index: int, correction: torch.Tensor, sh_degree: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means (N, 3), quats (N, 4) and colours (N, 3) that the uncorrected camera sees as the corrected one would."""
        center, shift = self._centers[index], correction[3:]
        quat = _unit_quaternion(correction[:3])
        rotation = _matrix(quat)
        means = (params["means"] - center) @ rotation.T + center + shift
        true_center = center - shift @ rotation
        colors = sh_colors(params["means"] - true_center, params["sh0"], params["shN"], sh_degree)
        return means, _product(quat, params["quats"]), colors

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the corrections of the cameras that were seen, and take out what is common to all."""
        if self.rows.step(rate):
            flat = self.rows.values.view(-1)
            flat -= self._common @ (self._common.T @ flat)

    def report(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """For each camera how far it was turned (degrees) and moved (training units)."""
        turned = torch.rad2deg(2 * torch.atan(self.rows.values[:, :3].norm(dim=1) / 2)).tolist()
        shifted = self.rows.values[:, 3:].norm(dim=1).tolist()
        rows = zip(names, turned, shifted, strict=True)
        return [{"image": name, "degrees": round(a, 4), "shift": round(b, 6)} for name, a, b in rows]

    def state_dict(self) -> dict[str, Any]:
        return self.rows.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.rows.load_state_dict(saved)


def _common_motions(centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """(6 C, at most 7) orthonormal: the corrections that a rotation, shift or scale of the whole scene amounts to."""
    around = centers - centers.mean(axis=0)
    motions = np.zeros((7, len(centers), 6))
    for axis in range(3):
        unit = np.eye(3)[axis]
        motions[axis, :, :3] = unit
        motions[axis, :, 3:] = np.cross(unit, around)
        motions[3 + axis, :, 3:] = unit
    motions[6, :, 3:] = around
    left, sizes, _ = np.linalg.svd(motions.reshape(7, -1).T, full_matrices=False)
    return np.ascontiguousarray(left[:, sizes > _TOLERANCE * sizes[0]])


def _unit_quaternion(rotation: torch.Tensor) -> torch.Tensor:
    """(4,) wxyz of a small rotation vector (3,): exact to third order, and smooth at zero."""
    quat = torch.cat([torch.ones_like(rotation[:1]), rotation / 2])
    return quat / quat.norm()


def _matrix(quat: torch.Tensor) -> torch.Tensor:
    w, x, y, z = quat
    rows = (
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
    )
    return torch.stack(rows)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Hamilton product of one quaternion (4,) with each of (N, 4)."""
    w, x, y, z = a
    rows = (
        torch.stack([w, -x, -y, -z]),
        torch.stack([x, w, -z, y]),
        torch.stack([y, z, w, -x]),
        torch.stack([z, -y, x, w]),
    )
    return b @ torch.stack(rows).T
