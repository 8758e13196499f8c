"""What stands in the viewer's scene: points, cores, buffers, cameras and a splat."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from splatpipe.patches.box import Box
from splatpipe.patches.outline import middle_of, rings_of
from splatpipe.report.placement import Placement
from splatpipe.report.scenery import Cameras, PatchScenery, bounds
from splatpipe.splatting.ply import Splats

AXES = np.eye(3)  # viser's z points up, as the cutting frame's does
GOLDEN = 0.618034  # turns of hue that keep neighbouring patches apart
SH_C0 = 0.28209479177387814
MOST_CAMERAS = 1500  # that a browser moves smoothly
FRUSTUM = 0.22  # length of a camera, in units of the viewer; the ground is 10 long

Color = tuple[int, int, int]


class Stage:
    """Draws a run into a viser scene. `on_camera(cameras, i)` is called when a camera is clicked."""

    def __init__(self, scene: Any, patches: Sequence[PatchScenery], on_camera: Callable[[Cameras, int], None]) -> None:
        self._scene, self._patches, self._on_camera = scene, patches, on_camera
        self.placement = Placement.of(patches, AXES)
        self._bounds = bounds(patches)
        count = sum(len(one.training.names) + len(one.holdout.names) for one in patches)
        self.every = max(-(-count // MOST_CAMERAS), 1)  # of so many cameras of a patch one is drawn
        self._splat: Any = None
        self.points, self.cores, self.names, self.buffers, self.cameras = (
            [handle for one, color in self._colored() for handle in draw(one, color)]
            for draw in (self._draw_points, self._draw_core, self._draw_name, self._draw_buffer, self._draw_cameras)
        )

    def show_splat(self, splats: Splats | None) -> None:
        """Replace the splat on show; takes scene coordinates, no SH bands."""
        if self._splat is not None:
            self._splat.remove()
            self._splat = None
        if splats is None or not len(splats):
            return
        placed = self.placement.splats(splats)
        self._splat = self._scene.add_gaussian_splats(
            "/splat",
            centers=placed.means,
            covariances=covariances(placed),
            rgbs=np.clip(0.5 + SH_C0 * placed.sh0[:, 0], 0, 1),
            opacities=(1 / (1 + np.exp(-placed.opacities.astype(np.float64))))[:, None].astype(np.float32),
        )

    def _colored(self) -> list[tuple[PatchScenery, Color]]:
        return [(one, patch_color(i)) for i, one in enumerate(self._patches)]

    def _draw_points(self, one: PatchScenery, color: Color) -> list[Any]:
        if not len(one.points):
            return []
        positions = self.placement.apply(one.points).astype(np.float32)
        name = f"/points/{one.id}"
        return [self._scene.add_point_cloud(name, positions, one.colors, point_size=0.025, precision="float32")]

    def _draw_core(self, one: PatchScenery, color: Color) -> list[Any]:
        return self._draw_shape(f"/cores/{one.id}", one.core, color, 0.03)

    def _draw_name(self, one: PatchScenery, color: Color) -> list[Any]:
        above = self._placed(middle_of(one.core, *self._bounds)[0][None], self._bounds[1][2])[0]
        return [self._scene.add_label(f"/names/{one.id}", one.id, position=above)]

    def _draw_buffer(self, one: PatchScenery, color: Color) -> list[Any]:
        pale = (color[0] // 2 + 120, color[1] // 2 + 120, color[2] // 2 + 120)
        return self._draw_shape(f"/buffers/{one.id}", one.buffered, pale, 0.015)

    def _draw_shape(self, name: str, shape: Box, color: Color, thickness: float) -> list[Any]:
        """The edges of its walls, from the scene's lower bound to the upper one."""
        lines = []
        for ring in rings_of(shape, *self._bounds):
            below, above = (self._placed(ring, bound[2]) for bound in self._bounds)
            pairs = ((below, np.roll(below, 1, axis=0)), (above, np.roll(above, 1, axis=0)), (below, above))
            lines += [np.stack(pair, axis=1) for pair in pairs]
        if not lines:
            return []
        segments = np.concatenate(lines).astype(np.float32)
        return [self._scene.add_line_segments(name, segments, color, thickness=thickness)]

    def _placed(self, places: NDArray[np.float64], height: float) -> NDArray[np.float64]:
        """(K, 3) in the viewer of ground places (K, 2) of the cutting frame at a height."""
        corners = np.column_stack([places, np.full(len(places), height)])
        return self.placement.apply(corners @ self._patches[0].frame.rotation)

    def _draw_cameras(self, one: PatchScenery, color: Color) -> list[Any]:
        handles = []
        for kind, cameras, shade in (("training", one.training, color), ("hold-out", one.holdout, (240, 240, 240))):
            for i in range(0, len(cameras.names), self.every):
                handle = self._frustum(f"/cameras/{one.id}/{kind}/{i}", cameras, i, shade)
                handle.on_click(lambda _, cameras=cameras, i=i: self._on_camera(cameras, i))
                handles.append(handle)
        return handles

    def _frustum(self, name: str, cameras: Cameras, i: int, color: Color) -> Any:
        """Numbers stand for names of images, which may be anything."""
        (width, height), K = cameras.sizes[i], cameras.Ks[i]
        axes = self.placement.rotation @ cameras.viewmats[i, :3, :3].T  # camera to viewer
        x, y, z, w = Rotation.from_matrix(axes).as_quat()
        return self._scene.add_camera_frustum(
            name,
            fov=float(2 * np.arctan(height / (2 * K[1, 1]))),
            aspect=float(width / height),
            scale=FRUSTUM,
            color=color,
            variant="filled",  # lines alone are hard to hit with a pointer
            wxyz=(w, x, y, z),
            position=self.placement.apply(cameras.centers[i]),
        )


def covariances(splats: Splats) -> NDArray[np.float32]:
    """(N, 3, 3) R S S^T R^T of each Gaussian."""
    rotations = Rotation.from_quat(splats.quats[:, [1, 2, 3, 0]].astype(np.float64)).as_matrix()
    spread = rotations * np.exp(splats.scales.astype(np.float64))[:, None, :]
    return (spread @ spread.transpose(0, 2, 1)).astype(np.float32)


def patch_color(i: int) -> Color:
    """RGB of patch number `i`, as in map.png."""
    r, g, b = colorsys.hsv_to_rgb((0.58 + i * GOLDEN) % 1, 0.72, 0.78)
    return round(255 * r), round(255 * g), round(255 * b)
