"""COLMAP models of any size: a city flown over in a grid, looking down and to four sides, with believable tracks.

    python benchmarks/synthetic_city.py OUT --cameras 5000 --points 2000000 --observations 12000000

Ground, roofs and walls have normals; a camera observes only surfaces that face it, and a random share of those,
so that tracks have the wanted mean length. All images are links to one grey JPEG, since splitting reads only sizes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.scene.arrays import Intrinsics
from splatpipe.scene.model import Model
from splatpipe.scene.writing import write_binary

WIDTH, HEIGHT, FOCAL = 1000, 750, 900.0
ALTITUDE = 80.0  # metres above ground
STEP = 25.0  # metres between stations of the flight grid; each station is five cameras
TILT = np.radians(40)  # of the oblique views, from straight down
FACING = 0.25  # smallest cosine between a surface's normal and the way to the camera
BIN = 10.0  # metres; points are looked up by square bins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cameras", type=int, default=1_000)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--observations", type=int, default=1_200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiles", type=int, default=1, help="so many copies side by side: faster to make")
    args = parser.parse_args()
    started = time.monotonic()
    n = args.tiles
    model = tiled(make_city(args.cameras // n, args.points // n, args.observations // n, args.seed), n)
    write_city(args.out, model)
    print(
        f"{args.out}: {len(model.names):,} cameras, {len(model.points):,} points, {len(model.obs_points):,} "
        f"observations in {time.monotonic() - started:.1f} s"
    )


def make_city(cameras: int, points: int, observations: int, seed: int = 0) -> Model:
    """A model with so many cameras and points, and about so many observations; metres, z up."""
    rng = np.random.default_rng(seed)
    stations = _stations(-(-cameras // 5))
    rotations, centers = _cameras(stations, rng)
    rotations, centers = rotations[:cameras], centers[:cameras]
    low, high = stations.min(axis=0) - ALTITUDE / 2, stations.max(axis=0) + ALTITUDE / 2
    xyz, normals = _surfaces(points, low, high, rng)
    seen = _observe(xyz, normals, rotations, centers, observations, rng)
    return _model(xyz, rotations, centers, *seen, rng)


def tiled(city: Model, n: int) -> Model:
    """`n` copies of a city in a row, each with cameras and points of its own."""
    if n == 1:
        return city
    from scipy.spatial.transform import Rotation

    rotations = Rotation.from_quat(city.quats, scalar_first=True).as_matrix()
    shift = np.array([np.ptp(city.points[:, 0]), 0.0, 0.0])
    cameras, points = len(city.names), len(city.point_ids)

    def copies(values: NDArray, step: float = 0) -> NDArray:
        return np.concatenate([values + values.dtype.type(step * i) for i in range(n)])

    return Model(
        cameras=city.cameras,
        image_ids=copies(city.image_ids, cameras),
        names=tuple(f"flight_{i:06d}.jpg" for i in range(n * cameras)),
        camera_ids=copies(city.camera_ids),
        quats=copies(city.quats),
        translations=np.concatenate([city.translations - i * (rotations @ shift) for i in range(n)]),
        obs_images=copies(city.obs_images, cameras),
        obs_points=copies(city.obs_points, points),
        obs_xy=copies(city.obs_xy),
        point_ids=copies(city.point_ids, points),
        points=np.concatenate([city.points + i * shift for i in range(n)]),
        colors=copies(city.colors),
        errors=copies(city.errors),
    )


def write_city(folder: Path, model: Model) -> None:
    """Model and images, as COLMAP leaves them."""
    from PIL import Image

    write_binary(folder / "sparse" / "0", model)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (120, 120, 120)).save(folder / "grey.jpg")
    for name in model.names:
        (images / name).unlink(missing_ok=True)
        (images / name).hardlink_to(folder / "grey.jpg")


def _stations(n: int) -> NDArray[np.float64]:
    """(n, 2) the flight grid, about square, flown in lines there and back."""
    columns = max(round(np.sqrt(n)), 1)
    line, place = np.arange(n) // columns, np.arange(n) % columns
    return np.stack([np.where(line % 2, columns - 1 - place, place), line], axis=1) * STEP


def _cameras(stations: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """(5 n, 3, 3) world to camera and (5 n, 3) centres: down, and tilted to four sides, a little unsteady."""
    n = len(stations)
    heights = ALTITUDE + rng.normal(0, 2, (n, 1))
    centers = np.repeat(np.concatenate([stations + rng.normal(0, 1, (n, 2)), heights], axis=1), 5, axis=0)
    azimuth = np.tile([0, 0, np.pi / 2, np.pi, 3 * np.pi / 2], n) + rng.normal(0, 0.03, 5 * n)
    tilt = np.tile([0, TILT, TILT, TILT, TILT], n) + rng.normal(0, 0.03, 5 * n)
    ca, sa, ct, st = np.cos(azimuth), np.sin(azimuth), np.cos(tilt), np.sin(tilt)
    zero = np.zeros_like(ca)
    forward = np.stack([st * ca, st * sa, -ct], axis=1)
    right = np.stack([sa, -ca, zero], axis=1)
    down = np.cross(forward, right)
    return np.stack([right, down, forward], axis=1), centers


def _surfaces(n: int, low: NDArray, high: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """(n, 3) points and their normals: half on the ground, the rest on roofs and walls of houses in blocks."""
    block, house = 40.0, 24.0
    xy = rng.uniform(low, high, (n, 2))
    cell = np.floor(xy / block)
    height = 6 + 18 * np.modf(np.abs(np.sin(cell @ [12.9898, 78.233]) * 43758.5453))[0]
    local = xy - (cell + 0.5) * block
    indoors = (np.abs(local) < house / 2).all(axis=1)
    wall = indoors & (rng.random(n) < 0.5)
    xyz = np.concatenate([xy, np.where(indoors, height, 0)[:, None]], axis=1)
    normals = np.tile([0.0, 0.0, 1.0], (n, 1))
    rows = np.flatnonzero(wall)
    axis, side = rng.integers(0, 2, len(rows)), rng.choice([-1.0, 1.0], len(rows))
    local[rows, axis] = side * house / 2
    xyz[rows, :2] = (cell[rows] + 0.5) * block + local[rows]
    xyz[rows, 2] = rng.uniform(0, height[rows])
    normals[rows] = 0
    normals[rows, axis] = side
    return xyz + rng.normal(0, 0.05, xyz.shape), normals


def _observe(
    xyz: NDArray, normals: NDArray, rotations: NDArray, centers: NDArray, observations: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
    """Camera, point and pixel of each observation, grouped by camera."""
    order, starts, origin, bins = _binned(xyz)
    visible = _count(xyz, normals, rotations, centers, (order, starts, origin, bins))
    share = min(observations / max(visible, 1), 1.0)
    cameras, points, pixels = [], [], []
    for i in range(len(centers)):
        index, pixel = _facing(xyz, normals, rotations[i], centers[i], order, starts, origin, bins)
        kept = rng.random(len(index)) < share
        cameras.append(np.full(int(kept.sum()), i, np.int32))
        points.append(index[kept])
        pixels.append(pixel[kept].astype(np.float32))
    return np.concatenate(cameras), np.concatenate(points), np.concatenate(pixels)


def _binned(xyz: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    origin = xyz[:, :2].min(axis=0)
    place = np.floor((xyz[:, :2] - origin) / BIN).astype(np.int64)
    bins = place.max(axis=0) + 1
    flat = place[:, 1] * bins[0] + place[:, 0]
    order = np.argsort(flat, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=int(bins.prod())))]), origin, bins


def _count(xyz: NDArray, normals: NDArray, rotations: NDArray, centers: NDArray, lookup: tuple) -> float:
    """About how many points all cameras could observe, from every 37th."""
    some = range(0, len(centers), max(len(centers) // 150, 1))
    counts = [len(_facing(xyz, normals, rotations[i], centers[i], *lookup)[0]) for i in some]
    return float(np.mean(counts)) * len(centers)


def _facing(
    xyz: NDArray,
    normals: NDArray,
    rotation: NDArray,
    center: NDArray,
    order: NDArray,
    starts: NDArray,
    origin: NDArray,
    bins: NDArray,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Points in the image whose surface faces the camera, and their pixels."""
    corners = np.array(
        [[x / FOCAL, y / FOCAL, 1.0] for x in (-WIDTH / 2, WIDTH / 2) for y in (-HEIGHT / 2, HEIGHT / 2)]
    )
    rays = corners @ rotation
    ground = center[:2] + rays[:, :2] * (center[2] / np.maximum(-rays[:, 2:], 0.15))
    first = np.clip(np.floor((np.minimum(ground.min(axis=0), center[:2]) - origin) / BIN), 0, bins - 1).astype(int)
    last = np.clip(np.floor((np.maximum(ground.max(axis=0), center[:2]) - origin) / BIN), 0, bins - 1).astype(int)
    rows = np.arange(first[1], last[1] + 1) * bins[0]
    index = np.concatenate([order[starts[row + first[0]] : starts[row + last[0] + 1]] for row in rows])
    ways = center - xyz[index]
    index = index[(ways * normals[index]).sum(axis=1) > FACING * np.linalg.norm(ways, axis=1)]
    local = (xyz[index] - center) @ rotation.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixel = local[:, :2] / local[:, 2:] * FOCAL + [WIDTH / 2, HEIGHT / 2]
    inside = (local[:, 2] > 1) & (pixel >= 0).all(axis=1) & (pixel < [WIDTH, HEIGHT]).all(axis=1)
    return index[inside], pixel[inside]


def _model(
    xyz: NDArray,
    rotations: NDArray,
    centers: NDArray,
    cameras: NDArray[np.int32],
    points: NDArray[np.int64],
    pixels: NDArray[np.float32],
    rng: np.random.Generator,
) -> Model:
    from scipy.spatial.transform import Rotation

    n = len(centers)
    ids = np.arange(1, len(xyz) + 1, dtype=np.int64)
    return Model(
        cameras={1: Intrinsics(1, "PINHOLE", WIDTH, HEIGHT, (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))},
        image_ids=np.arange(1, n + 1, dtype=np.int64),
        names=tuple(f"flight_{i:06d}.jpg" for i in range(n)),
        camera_ids=np.ones(n, np.int64),
        quats=Rotation.from_matrix(rotations).as_quat(scalar_first=True),
        translations=-np.einsum("cij,cj->ci", rotations, centers),
        obs_images=cameras,
        obs_points=ids[points],
        obs_xy=pixels,
        point_ids=ids,
        points=xyz,
        colors=_colors(xyz, rng),
        errors=np.full(len(xyz), 0.6),
    )


def _colors(xyz: NDArray, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Tiled roofs, pale walls, green and grey ground."""
    ground = np.where((np.sin(xyz[:, 0] / 31) * np.sin(xyz[:, 1] / 23) > 0)[:, None], (96, 128, 80), (132, 130, 124))
    house = np.where((xyz[:, 2] > 6)[:, None], (170, 88, 66), (198, 190, 176))
    base = np.where((xyz[:, 2] > 0.5)[:, None], house, ground)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
