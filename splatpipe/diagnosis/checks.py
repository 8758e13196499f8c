"""What can be known of a patch without training: is the data whole, and what is unusual about it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splatpipe.diagnosis.datasets import distances
from splatpipe.machine import usable_cores
from splatpipe.patches.footprints import footprints
from splatpipe.scene.arrays import Scene
from splatpipe.splatting.spacing import gsplat_sizes, lichtfeld_sizes, neighbour_distances

FAR = 30.0  # times the median distance from the median position; skies and mountains stay well below
TURNED = 1e-3  # deviation from a rotation that is more than rounding
EVIDENCE = 10  # names kept of each sort


@dataclass(frozen=True)
class Facts:
    """Counts, and the first names of each sort. Lengths in training units."""

    cameras: int
    points: int
    unreadable: dict[str, str]  # image -> why it cannot be decoded
    wrong_size: tuple[str, ...]  # images whose shape is not their camera's
    bad_poses: tuple[str, ...]  # images whose pose is not finite or no rotation
    broken_points: int  # coordinates that are not finite
    duplicate_points: int
    outliers: int  # points farther than FAR
    farthest: float  # times the median distance
    scene_scale: float  # 1.1 x the largest distance of a camera to the mean camera
    camera_distance: float  # median camera to the points' median; splatpipe normalises it to about 1
    spacing: float  # median distance of a point to its neighbours
    relative_size: float  # median of initial sigma over that distance, at the attempt's init_scaling
    extent: float  # largest axis of the 1-99 percentile range
    seen_share: float  # median share of the cameras that see a point
    blind: dict[str, tuple[str, ...]]  # rung -> images that see no initial Gaussian

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def blind_at(self, init_scaling: float) -> tuple[str, ...]:
        """Those of the largest rung not above `init_scaling`."""
        below = [rung for rung in self.blind if float(rung) <= init_scaling * (1 + 1e-9)]
        return self.blind[below[-1]] if below else next(iter(self.blind.values()), ())


def examine(scene: Scene, broken_points: int, init_scaling: float, rungs: Sequence[float], trainer: str) -> Facts:
    """Decode every image and measure the patch. `scene` is in training coordinates."""
    far = distances(scene)
    neighbours = neighbour_distances(scene.points)
    unit = lichtfeld_sizes(neighbours) if trainer == "lichtfeld" else gsplat_sizes(neighbours)
    apart = neighbours.mean(axis=1)
    rungs = sorted({*rungs, init_scaling})
    seen = footprints(scene.points, unit, scene.viewmats, scene.Ks, scene.sizes, rungs)
    low, high = np.quantile(scene.points, (0.01, 0.99), axis=0)
    unreadable, sizes = decode_all(scene.image_dir, scene.names)
    copies = scene.n_points - len(np.unique(scene.points, axis=0))
    known = apart > 0
    return Facts(
        cameras=scene.n_cameras,
        points=scene.n_points,
        unreadable=unreadable,
        wrong_size=tuple(_misshapen(scene, sizes)),
        bad_poses=tuple(scene.names[i] for i in _bad_poses(scene)),
        broken_points=broken_points,
        duplicate_points=copies,
        outliers=int((far > FAR).sum()),
        farthest=float(far.max(initial=0)),
        scene_scale=_scene_scale(scene),
        camera_distance=float(np.median(np.linalg.norm(scene.centers - np.median(scene.points, axis=0), axis=1))),
        spacing=float(np.median(apart)),
        relative_size=float(np.median(init_scaling * unit[known] / apart[known])) if known.any() else 0.0,
        extent=float((high - low).max()),
        seen_share=float(np.median(seen.seen_share)),
        blind={
            f"{rung:g}": tuple(scene.names[i] for i in np.flatnonzero(row == 0))
            for rung, row in zip(rungs, seen.visible, strict=True)
        },
    )


def decode_all(folder: Path, names: Sequence[str]) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Images that cannot be decoded to their last row, with the reason; and (width, height) of the others."""

    def decode(name: str) -> tuple[int, int] | str:
        try:
            with Image.open(folder / name) as image:
                image.load()
                return image.size
        except Exception as error:  # Pillow raises whatever its decoders do
            return str(error) or type(error).__name__

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = dict(zip(names, pool.map(decode, names), strict=True))
    bad = {name: said.replace(str(folder), folder.name) for name, said in found.items() if isinstance(said, str)}
    return bad, {name: size for name, size in found.items() if not isinstance(size, str)}


def _misshapen(scene: Scene, sizes: dict[str, tuple[int, int]]) -> list[str]:
    """Images that are not their camera's shape; all of them smaller by one factor is fine."""
    ratios = {
        name: (sizes[name][0] / width, sizes[name][1] / height)
        for name, (width, height) in zip(scene.names, scene.sizes.tolist(), strict=True)
        if name in sizes
    }
    if not ratios:
        return []
    common = np.median(np.array(list(ratios.values())), axis=0)
    return [name for name, ratio in ratios.items() if np.abs(np.array(ratio) / common - 1).max() > 0.02]


def _bad_poses(scene: Scene) -> list[int]:
    rotations = scene.viewmats[:, :3, :3]
    finite = np.isfinite(scene.viewmats).all(axis=(1, 2))
    deviation = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    turned = (deviation > TURNED) | (np.linalg.det(rotations) < 0)
    return np.flatnonzero(~finite | turned).tolist()


def _scene_scale(scene: Scene) -> float:
    return float(1.1 * np.linalg.norm(scene.centers - scene.centers.mean(axis=0), axis=1).max())
