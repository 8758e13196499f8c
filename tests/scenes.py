"""Tiny scenes for tests: in memory as `Scene`, or on disk as a real COLMAP model (through pycolmap) with JPEGs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splatpipe.scene.arrays import Intrinsics, Scene, Similarity

Layout = Literal["aerial", "object", "facade", "line"]
EXAMPLE = Path(__file__).parents[1] / "examples" / "brighton_beach"


def look_at(center: Sequence[float], target: Sequence[float], up: Sequence[float] = (0, 0, 1)) -> NDArray[np.float64]:
    """(4, 4) world to camera, OpenCV axes (x right, y down, z forward)."""
    center, forward = np.asarray(center, float), np.subtract(target, center)
    forward = forward / np.linalg.norm(forward)
    hint = np.asarray(up, float)
    if abs(forward @ hint) > 0.99 * np.linalg.norm(hint):
        hint = np.array([0.0, 1.0, 0.0]) if abs(forward[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(forward, hint)
    right /= np.linalg.norm(right)
    viewmat = np.eye(4)
    viewmat[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    viewmat[:3, 3] = -viewmat[:3, :3] @ center
    return viewmat


def scene_from(
    points: NDArray[np.float64],
    viewmats: NDArray[np.float64],
    *,
    size: tuple[int, int] = (64, 48),
    focal: float = 60.0,
    share: float = 1.0,
    seed: int = 0,
    names: Sequence[str] | None = None,
    colors: NDArray[np.uint8] | None = None,
) -> Scene:
    """A scene with exact tracks: each camera observes `share` of the points that project into its image."""
    rng = np.random.default_rng(seed)
    width, height = size
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    camera_space = np.einsum("cij,pj->cpi", viewmats[:, :3, :3], points) + viewmats[:, None, :3, 3]
    z = camera_space[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = camera_space[..., :2] / z[..., None] * focal + K[:2, 2]
    seen = (z > 1e-9) & (xy >= 0).all(-1) & (xy < [width, height]).all(-1) & (rng.random(z.shape) < share)
    point, camera = np.nonzero(seen.T)
    offsets = np.concatenate([[0], np.cumsum(seen.sum(axis=0))]).astype(np.int64)
    n = len(viewmats)
    if colors is None:
        colors = rng.integers(30, 226, (len(points), 3)).astype(np.uint8)
    return Scene(
        model_dir=Path("memory/sparse/0"),
        image_dir=Path("memory/images"),
        intrinsics=(Intrinsics(1, "PINHOLE", width, height, (focal, focal, width / 2, height / 2)),),
        image_ids=np.arange(1, n + 1, dtype=np.int64),
        names=tuple(names) if names is not None else tuple(f"view_{i:04d}.jpg" for i in range(n)),
        intrinsics_index=np.zeros(n, np.int32),
        viewmats=np.asarray(viewmats, np.float64),
        Ks=np.tile(K, (n, 1, 1)),
        sizes=np.tile(np.array([size], np.int32), (n, 1)),
        point_ids=np.arange(1, len(points) + 1, dtype=np.int64),
        points=np.asarray(points, np.float64),
        colors=colors,
        errors=np.full(len(points), 0.5),
        track_offsets=offsets,
        track_cameras=camera.astype(np.int32),
        track_xy=xy[camera, point].astype(np.float32),
    )


def synthetic_scene(
    n_cameras: int = 24, n_points: int = 400, layout: Layout = "aerial", seed: int = 0, share: float = 0.8
) -> Scene:
    """A believable small scene, about 10 units across, z up."""
    rng = np.random.default_rng(seed)
    points, viewmats = _LAYOUTS[layout](n_cameras, n_points, rng)
    return scene_from(points, viewmats, share=share, seed=seed)


def _aerial(n_cameras: int, n_points: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    points = rng.uniform([-5, -5, 0], [5, 5, 0.5], (n_points, 3))
    columns = max(int(np.ceil(np.sqrt(n_cameras))), 1)
    grid = [(i % columns, i // columns) for i in range(n_cameras)]
    places = (np.array(grid, float) + 0.5) / columns * 10 - 5
    places += rng.normal(0, 0.05, places.shape)
    return points, np.stack([look_at((x, y, 6), (x * 0.9, y * 0.9, 0), up=(0, 1, 0)) for x, y in places])


def _object(n_cameras: int, n_points: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    points = rng.normal(0, 1, (n_points, 3))
    angles = np.linspace(0, 2 * np.pi, n_cameras, endpoint=False)
    return points, np.stack([look_at((8 * np.cos(a), 8 * np.sin(a), 2), (0, 0, 0)) for a in angles])


def _facade(n_cameras: int, n_points: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    points = rng.uniform([-8, -0.2, 0], [8, 0.2, 5], (n_points, 3))
    return points, np.stack([look_at((x, -5, 1.7), (x, 0, 2.5)) for x in np.linspace(-8, 8, n_cameras)])


def _line(n_cameras: int, n_points: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    points = rng.uniform([0, -1, -1], [30, 1, 1], (n_points, 3))
    return points, np.stack([look_at((x, -4, 0), (x, 0, 0)) for x in np.linspace(0, 30, n_cameras)])


_LAYOUTS: dict[str, Callable[[int, int, np.random.Generator], tuple[NDArray, NDArray]]] = {
    "aerial": _aerial,
    "object": _object,
    "facade": _facade,
    "line": _line,
}


def scaled(scene: Scene, factor: float) -> Scene:
    """The same scene in other units."""
    similarity = Similarity(factor, (0.0, 0.0, 0.0))
    return replace(scene, points=similarity.apply(scene.points), viewmats=similarity.apply_viewmats(scene.viewmats))


def write_scene(
    folder: Path,
    scene: Scene | None = None,
    *,
    text: bool = False,
    model: str = "sparse/0",
    images: str = "images",
    camera_model: Literal["PINHOLE", "SIMPLE_RADIAL"] = "PINHOLE",
    noise: bool = False,
) -> Scene:
    """Write `scene` (default: `synthetic_scene()`) as a COLMAP model with one JPEG a camera, and return it.

    The JPEGs show the points as coloured discs (or noise, if asked for). SIMPLE_RADIAL gets a little distortion,
    which the JPEGs do not show.
    """
    scene = synthetic_scene() if scene is None else scene
    (folder / model).mkdir(parents=True, exist_ok=True)
    reconstruction = to_pycolmap(scene, camera_model)
    (reconstruction.write_text if text else reconstruction.write_binary)(str(folder / model))
    rng = np.random.default_rng(0)
    for i, name in enumerate(scene.names):
        path = folder / images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = scene.sizes[i]
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8) if noise else picture(scene, i)
        Image.fromarray(pixels).save(path, quality=92)
    return replace(scene, model_dir=folder / model, image_dir=folder / images)


def to_pycolmap(scene: Scene, camera_model: str = "PINHOLE"):  # type: ignore[no-untyped-def]
    """The scene as a pycolmap.Reconstruction."""
    import pycolmap

    reconstruction = pycolmap.Reconstruction()
    for one in scene.intrinsics:
        fx, fy, cx, cy = one.params
        params = [fx, fy, cx, cy] if camera_model == "PINHOLE" else [fx, cx, cy, 0.05]
        camera = pycolmap.Camera(
            camera_id=one.id, model=camera_model, width=one.width, height=one.height, params=params
        )
        reconstruction.add_camera_with_trivial_rig(camera)
    used = np.zeros(scene.n_cameras, int)
    point_of = np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))
    tracks: list[list[tuple[int, int]]] = [[] for _ in range(scene.n_points)]
    for point, camera in zip(point_of, scene.track_cameras, strict=True):
        tracks[point].append((int(scene.image_ids[camera]), int(used[camera])))
        used[camera] += 1
    for i, name in enumerate(scene.names):
        image = pycolmap.Image(
            name=name,
            keypoints=scene.track_xy[scene.track_cameras == i].astype(np.float64),
            camera_id=scene.intrinsics[scene.intrinsics_index[i]].id,
            image_id=int(scene.image_ids[i]),
        )
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(scene.viewmats[i, :3, :3]), scene.viewmats[i, :3, 3])
        reconstruction.add_image_with_trivial_frame(image, pose)
    for i, track in enumerate(tracks):
        elements = [pycolmap.TrackElement(image_id, index) for image_id, index in track]
        point = pycolmap.Point3D(
            xyz=scene.points[i], color=scene.colors[i], error=scene.errors[i], track=pycolmap.Track(elements)
        )
        reconstruction.add_point3D_with_id(int(scene.point_ids[i]), point)
    return reconstruction


def picture(scene: Scene, camera: int) -> NDArray[np.uint8]:
    """(H, W, 3) the points as discs over a grey ramp, nearest on top."""
    width, height = (int(v) for v in scene.sizes[camera])
    viewmat, K = scene.viewmats[camera], scene.Ks[camera]
    local = scene.points @ viewmat[:3, :3].T + viewmat[:3, 3]
    image = np.repeat(np.linspace(90, 160, height)[:, None, None], width, axis=1).repeat(3, axis=2).astype(np.uint8)
    radius_world = 0.02 * float(np.median(np.abs(scene.points - np.median(scene.points, axis=0))) * 2 + 1e-12)
    ys, xs = np.mgrid[:height, :width] + 0.5
    for p in np.argsort(-local[:, 2]):
        x, y, z = local[p]
        if z <= 1e-9:
            continue
        u, v = x / z * K[0, 0] + K[0, 2], y / z * K[1, 1] + K[1, 2]
        radius = max(K[0, 0] * radius_world / z, 1.0)
        if -radius < u < width + radius and -radius < v < height + radius:
            image[(xs - u) ** 2 + (ys - v) ** 2 < radius**2] = scene.colors[p]
    return image
