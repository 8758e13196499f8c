"""Scenes with real structure from motion: photographs of a textured world of boxes, reconstructed by COLMAP itself.

    python benchmarks/sfm_scene.py OUT --layout room|street|object|town [--cameras 60] [--camera-model SIMPLE_RADIAL]

Photographs are ray cast through a lens with distortion, each with an exposure and noise of its own; poses, points and
intrinsics are then COLMAP's (features, sequential matching with loops, mapping; pycolmap on the CPU), so that the
scene has its gauge, its outliers, its images that could not be registered, and no ground truth in it. Minutes on two
cores. Writes OUT/images, OUT/database.db and OUT/sparse/0 (and /1, if COLMAP finds several models).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

PIXELS_PER_METRE = 120
DISTORTION = -0.06  # k1 of the lens
SUPERSAMPLE = 2

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Face:
    """A textured parallelogram: a corner, its two edges (3,) in metres, and the texture (H, W, 3) in 0-255."""

    corner: Floats
    u: Floats
    v: Floats
    texture: NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="room")
    parser.add_argument("--cameras", type=int, default=60)
    parser.add_argument("--camera-model", default="SIMPLE_RADIAL")
    parser.add_argument("--per-image", action="store_true", help="intrinsics of its own for each photograph")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    faces, centers, targets = LAYOUTS[args.layout](args.cameras, rng)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    for i, (center, target) in enumerate(zip(centers, targets, strict=True)):
        picture = photograph(faces, center, target, args.width, rng)
        Image.fromarray(picture).save(args.out / "images" / f"IMG_{i:04d}.jpg", quality=93)
    reconstruct(args.out, args.camera_model, per_image=args.per_image)


def texture(width: float, height: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A surface of width x height metres that no other resembles: shapes and letters over blurred noise."""
    size = (max(int(width * PIXELS_PER_METRE), 16), max(int(height * PIXELS_PER_METRE), 16))
    image = Image.new("RGB", size, tuple(int(c) for c in rng.integers(60, 200, 3)))
    for cells, share in ((PIXELS_PER_METRE, 0.3), (24, 0.2), (6, 0.15)):
        noise = Image.fromarray(rng.integers(0, 256, (size[1] // cells + 2, size[0] // cells + 2, 3), np.uint8))
        image = Image.blend(image, noise.resize(size, Image.Resampling.BICUBIC), share)
    draw = ImageDraw.Draw(image)
    for _ in range(int(4 * width * height) + 4):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        w, h = rng.uniform(4, 0.35 * PIXELS_PER_METRE, 2)
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        kind = rng.integers(4)
        if kind == 0:
            draw.rectangle((x, y, x + w, y + h), fill=color)
        elif kind == 1:
            draw.ellipse((x, y, x + w, y + h), fill=color)
        elif kind == 2:
            draw.polygon([(x, y), (x + w, y + h / 3), (x + w / 3, y + h)], fill=color)
        else:
            draw.text((x, y), "".join(chr(65 + c) for c in rng.integers(0, 26, 3)), fill=color, font_size=h + 8)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)))


def face(corner: Floats, u: Floats, v: Floats, rng: np.random.Generator) -> Face:
    return Face(corner, u, v, texture(float(np.linalg.norm(u)), float(np.linalg.norm(v)), rng))


def box(low: Floats, high: Floats, rng: np.random.Generator, *, floor: bool = False) -> list[Face]:
    """The faces of an upright box, in metres; `floor` adds the lower one."""
    x, y, z = np.diag(high - low)
    faces = [face(low, x, z, rng), face(low + y, x, z, rng), face(low, y, z, rng), face(low + x, y, z, rng)]
    return [*faces, face(low + z, x, y, rng), *([face(low, x, y, rng)] if floor else [])]


def photograph(
    faces: list[Face], center: Floats, target: Floats, width: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(H, W, 3) what a camera at `center` that looks at `target` sees, z up."""
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross(forward, [0.0, 0.0, 1.0] if abs(forward[2]) < 0.95 else [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward])
    edges = np.stack([np.stack([one.corner - center, one.u, one.v]) for one in faces])
    shapes = np.array([one.texture.shape[:2] for one in faces])
    starts = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))[:-1]])
    texels = np.concatenate([one.texture.reshape(-1, 3) for one in faces])
    image = _cast(width * SUPERSAMPLE, width * 3 // 4 * SUPERSAMPLE, axes, edges, shapes, starts, texels)
    small = image.reshape(image.shape[0] // SUPERSAMPLE, SUPERSAMPLE, width, SUPERSAMPLE, 3).mean((1, 3))
    return np.clip(small * rng.normal(1, 0.04) + rng.normal(0, 3, small.shape), 0, 255).astype(np.uint8)


@njit(cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _cast(width, height, axes, edges, shapes, starts, texels):  # type: ignore[no-untyped-def]
    """(height, width, 3) the texels that the rays of a lens with `DISTORTION` hit first; grey sky elsewhere."""
    image = np.full((height, width, 3), 215.0)
    normals = np.stack((  # (3, F)
        edges[:, 1, 1] * edges[:, 2, 2] - edges[:, 1, 2] * edges[:, 2, 1],
        edges[:, 1, 2] * edges[:, 2, 0] - edges[:, 1, 0] * edges[:, 2, 2],
        edges[:, 1, 0] * edges[:, 2, 1] - edges[:, 1, 1] * edges[:, 2, 0],
    ))  # fmt: skip
    for row in range(height):
        for column in range(width):
            x0, y0 = (column + 0.5 - width / 2) / (0.75 * width), (row + 0.5 - height / 2) / (0.75 * width)
            x, y = x0, y0
            for _ in range(6):  # the inverse of the distortion, by iteration
                shrink = 1 + DISTORTION * (x * x + y * y)
                x, y = x0 / shrink, y0 / shrink
            ray = axes[2] + x * axes[0] + y * axes[1]
            nearest = np.inf
            for i in range(len(edges)):
                slope = ray[0] * normals[0, i] + ray[1] * normals[1, i] + ray[2] * normals[2, i]
                if abs(slope) < 1e-12:
                    continue
                corner, u, v = edges[i, 0], edges[i, 1], edges[i, 2]
                depth = (corner[0] * normals[0, i] + corner[1] * normals[1, i] + corner[2] * normals[2, i]) / slope
                if depth < 1e-6 or depth > nearest:
                    continue
                s, t, uu, vv = 0.0, 0.0, 0.0, 0.0
                for k in range(3):
                    offset = depth * ray[k] - corner[k]
                    s, t, uu, vv = s + offset * u[k], t + offset * v[k], uu + u[k] * u[k], vv + v[k] * v[k]
                if 0 <= s < uu and 0 <= t < vv:
                    nearest = depth
                    texel = starts[i] + int(t / vv * shapes[i, 0]) * shapes[i, 1] + int(s / uu * shapes[i, 1])
                    image[row, column] = texels[texel]
    return image


def room(cameras: int, rng: np.random.Generator) -> tuple[list[Face], Floats, Floats]:
    """Two rounds through a furnished room of 9 x 6 x 3 m, one looking across it, one at the nearest wall."""
    faces = box(np.zeros(3), np.array([9.0, 6, 3]), rng, floor=True)
    for x, y, w, d, h in ((1, 1, 1.5, 0.8, 0.8), (6, 1, 0.8, 2, 1.2), (3.8, 2.5, 1.4, 1, 0.7), (7, 4.5, 1, 0.6, 1.9)):
        faces += box(np.array([x, y, 0.0]), np.array([x + w, y + d, h]), rng)
    angle = np.linspace(0, 4 * np.pi, cameras, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    centers = np.column_stack([ring * [3.2, 2.0] + [4.5, 3.0], rng.uniform(1.3, 1.8, cameras)])
    second = (np.arange(cameras) >= cameras // 2)[:, None]
    aims = np.where(second, ring * [9, 6] + [4.5, 3], -ring * [3, 2] + [4.5, 3])
    return faces, centers, np.column_stack([aims, np.full(cameras, 1.1)])


def street(cameras: int, rng: np.random.Generator) -> tuple[list[Face], Floats, Floats]:
    """Forth and back along one side of a street of 40 m, at two heights, looking at the houses at a slant."""
    faces = [face(np.array([-5.0, -8, 0]), np.array([50.0, 0, 0]), np.array([0.0, 8, 0]), rng)]
    x = 0.0
    while x < 40:
        w, d, h = rng.uniform(4, 8), rng.uniform(0, 1.2), rng.uniform(5, 9)
        faces += box(np.array([x, d, 0.0]), np.array([x + w, d + 5, h]), rng)
        x += w + rng.uniform(0, 0.5)
    half = cameras // 2
    places = np.concatenate([np.linspace(0, 40, half), np.linspace(40, 0, cameras - half)])
    back = np.arange(cameras) >= half
    centers = np.column_stack([places, np.full(cameras, -6.5), np.where(back, 4.0, 1.7)])
    slant = np.where(back, -1.5, 1.5)
    return faces, centers, np.column_stack([places + slant, np.full(cameras, 1.0), np.full(cameras, 3.0)])


def an_object(cameras: int, rng: np.random.Generator) -> tuple[list[Face], Floats, Floats]:
    """Two rings around a pile of boxes on a table."""
    faces = box(np.array([-1.5, -1.5, -0.1]), np.array([1.5, 1.5, 0]), rng)
    for low, high in (((-0.5, -0.4, 0), (0.5, 0.4, 0.5)), ((-0.2, -0.3, 0.5), (0.3, 0.2, 0.9))):
        faces += box(np.array(low, float), np.array(high, float), rng)
    angle = np.linspace(0, 4 * np.pi, cameras, endpoint=False)
    upper = angle >= 2 * np.pi
    centers = np.column_stack([2.4 * np.cos(angle), 2.4 * np.sin(angle), np.where(upper, 1.7, 0.8)])
    return faces, centers, np.tile([0.0, 0.0, 0.35], (cameras, 1))


def town(cameras: int, rng: np.random.Generator) -> tuple[list[Face], Floats, Floats]:
    """A flight in rows over houses on a ground of 40 x 40 m, 22 m up, looking down a little forward."""
    faces = [face(np.array([-20.0, -20, 0]), np.array([40.0, 0, 0]), np.array([0.0, 40, 0]), rng)]
    for x in np.arange(-17, 17, 8.5):
        for y in np.arange(-17, 17, 8.5):
            w, d, h = rng.uniform(3, 5.5, 3)
            faces += box(np.array([x, y, 0]), np.array([x + w, y + d, h]), rng)
    rows = int(np.sqrt(cameras))
    columns = -(-cameras // rows)
    step = np.arange(cameras)
    row, column = step // columns, step % columns
    column = np.where(row % 2 == 0, column, columns - 1 - column)
    places = np.stack([column / (columns - 1) * 32 - 16, row / max(rows - 1, 1) * 32 - 16], 1)
    centers = np.column_stack([places + rng.normal(0, 0.4, places.shape), rng.normal(22, 0.4, cameras)])
    return faces, centers, np.column_stack([places + [0.0, 4.0], np.zeros(cameras)])


LAYOUTS = {"room": room, "street": street, "object": an_object, "town": town}


def reconstruct(folder: Path, camera_model: str, *, per_image: bool) -> None:
    """COLMAP's features, matches and models of folder/images."""
    import pycolmap

    database = folder / "database.db"
    database.unlink(missing_ok=True)
    extraction = pycolmap.FeatureExtractionOptions(use_gpu=False)
    extraction.sift.max_num_features = 2000
    pycolmap.extract_features(
        database,
        folder / "images",
        camera_mode=pycolmap.CameraMode.PER_IMAGE if per_image else pycolmap.CameraMode.SINGLE,
        reader_options=pycolmap.ImageReaderOptions(camera_model=camera_model),
        extraction_options=extraction,
    )
    matching = pycolmap.FeatureMatchingOptions(use_gpu=False)
    pairing = pycolmap.SequentialPairingOptions(overlap=6, quadratic_overlap=True)
    pycolmap.match_sequential(database, matching_options=matching, pairing_options=pairing)
    (folder / "sparse").mkdir(exist_ok=True)
    models = pycolmap.incremental_mapping(database, folder / "images", folder / "sparse")
    for index, model in sorted(models.items()):
        print(f"{folder}/sparse/{index}: {model.summary()}")


if __name__ == "__main__":
    main()
