"""Any COLMAP folder as people have it, as a `Scene`; and parts of a `Scene` as a COLMAP model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast, in_parts
from splatpipe.errors import SceneError
from splatpipe.files import atomic_folder
from splatpipe.scene import photographs
from splatpipe.scene.arrays import Intrinsics, Scene, Similarity
from splatpipe.scene.binary import count_images, read_binary
from splatpipe.scene.findings import Finding
from splatpipe.scene.intrinsics import pinhole_matrix, rescaled
from splatpipe.scene.masks import with_masks
from splatpipe.scene.model import Model, rows_of_ids
from splatpipe.scene.offset import FARTHEST, Offset, near_origin
from splatpipe.scene.text import read_text
from splatpipe.scene.tracks import group, kept_tracks
from splatpipe.scene.writing import Tracks, write_tracks

MODEL_FILES = ("cameras", "images", "points3D")
MODEL_PLACES = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", ".")


@dataclass(frozen=True)
class SceneReading:
    """A scene, and what was noticed while reading it."""

    scene: Scene
    findings: tuple[Finding, ...]


def read_scene(
    root: Path,
    images: str | None = None,
    missing_images: Literal["error", "skip"] = "error",
    masks: str | None = None,
    outside_links: Literal["refuse", "follow"] = "refuse",
    offset: Literal["auto"] | Offset = "auto",
) -> SceneReading:
    """Read the COLMAP model and the image headers of the scene folder `root`.

    `images` names the image folder below `root`; intrinsics follow if all its images are smaller by one factor.
    With `missing_images="skip"` cameras whose file is not there are left out. `masks` names the folder of masks
    below `root`. Images that are links to a place outside the scene are refused, unless `outside_links="follow"`.
    `offset` is taken off all positions: the one given, or a round one for a scene far from the origin.
    Raises `SceneError`.
    """
    model_dir = find_model(root)
    model = read_model(model_dir)
    _check_model(model, model_dir)
    folder = photographs.find_image_folder(root, model_dir, model.names, images)
    if outside_links == "refuse":
        photographs.check_links(root, folder, model.names)
    model, findings = _drop_missing(model, folder, missing_images)
    findings += _other_models(model_dir, len(model.names))
    scene, more = assemble(model, model_dir, folder)
    sizes = photographs.image_sizes(folder, scene.names)
    scale = photographs.common_scale(scene.names, sizes, scene.sizes)
    model_sizes = scene.sizes
    if scale != 1.0:
        w, h = sizes[0].tolist()
        message = f"images are {scale:.4g} times the size the cameras say ({w}x{h}); intrinsics are scaled to them"
        more.append(Finding("rescaled_images", "note", message, {"scale": scale}))
        scene = rescaled(scene, sizes)
    scene, of_masks = with_masks(scene, root, masks, model_sizes)
    scene, of_place = near_origin(scene, offset)
    return SceneReading(scene, tuple(findings + more + of_masks + of_place))


def find_model(root: Path) -> Path:
    """The folder of the COLMAP model in the scene folder `root`; raises `SceneError` saying where was looked."""
    if not root.exists():
        raise SceneError(f"{root} does not exist; name a folder that holds a COLMAP model and its images")
    if not root.is_dir():
        raise SceneError(f"{root} is a file; name the folder that holds the COLMAP model and its images")
    for place in MODEL_PLACES:
        if any(_has_model(root / place, suffix) for suffix in (".bin", ".txt")):
            return root / place if place != "." else root
    for place in MODEL_PLACES:
        there = [f"{name}.bin" for name in MODEL_FILES if (root / place / f"{name}.bin").is_file()]
        if there:
            absent = next(f"{name}.bin" for name in MODEL_FILES if f"{name}.bin" not in there)
            raise SceneError(f"{root / place} holds {there[0]} but no {absent}; export the whole model again")
    looked = ", ".join(place if place != "." else "the folder itself" for place in MODEL_PLACES)
    deeper = _models_below(root)
    advice = "run COLMAP's mapper first or name another folder"
    if deeper:
        advice = f"but there is one in {deeper[0]}: name {_scene_of(deeper[0])} as the scene"
    raise SceneError(
        f"no COLMAP model in {root} (looked in {looked} for cameras, images and points3D, .bin or .txt); {advice}"
    )


def _models_below(root: Path) -> list[Path]:
    """Folders a few levels down that hold a model where none is looked for, such as output/model or dense/sparse."""
    found = sorted(path.parent for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}/cameras.*"))
    return [folder for folder in dict.fromkeys(found) if any(_has_model(folder, suffix) for suffix in (".bin", ".txt"))]


def _scene_of(model_dir: Path) -> Path:
    """The folder above `sparse/0` or `sparse`, beside which images are looked for; else the model's own."""
    parents = [parent for parent in (model_dir, model_dir.parent) if parent.name == "sparse"]
    return parents[0].parent if parents else model_dir


def _other_models(model_dir: Path, images: int) -> list[Finding]:
    """COLMAP leaves several models, sparse/0, sparse/1 and so on, where it could not join all images."""
    if not model_dir.name.isdigit():
        return []
    beside = sorted(p for p in model_dir.parent.iterdir() if p.name.isdigit() and p != model_dir)
    counts = {p.name: count_images(p / "images.bin") for p in beside if _has_model(p, ".bin")}
    if not counts:
        return []
    largest = max(counts, key=lambda name: counts[name])
    larger = f"; {largest} is larger: to use it, name {beside[0].parent / largest} as the scene"
    larger = larger if counts[largest] > images else ""
    shown = ", ".join(f"{name} ({n} images)" for name, n in counts.items())
    message = f"{model_dir.parent} also holds {shown}; only {model_dir.name} ({images} images) is used{larger}"
    return [Finding("other_models", "warning" if larger else "note", message, {"images": counts})]


def _has_model(folder: Path, suffix: str) -> bool:
    return all((folder / f"{name}{suffix}").is_file() for name in MODEL_FILES)


def read_model(folder: Path) -> Model:
    """The tables of the model in `folder`; binary files are preferred, as everywhere."""
    return read_binary(folder) if _has_model(folder, ".bin") else read_text(folder)


def _check_model(model: Model, folder: Path) -> None:
    if not model.names:
        raise SceneError(f"{folder} holds no registered image; run COLMAP's mapper again")
    if not len(model.point_ids):
        raise SceneError(f"{folder} holds no 3D point, from which training starts; triangulate the model again")
    photographs.check_names(model.names)
    for i, name in enumerate(model.names):
        if int(model.camera_ids[i]) not in model.cameras:
            raise SceneError(f"{folder}: image {name} uses camera {model.camera_ids[i]}, which the model does not hold")
    numbers = np.concatenate([model.quats, model.translations], axis=1)
    broken = ~(np.abs(numbers) < FARTHEST).all(axis=1) | ~(np.linalg.norm(model.quats, axis=1) > 1e-9)
    if broken.any():
        name = model.names[int(np.argmax(broken))]
        raise SceneError(
            f"{folder}: the pose of image {name} is not a rotation and a finite position "
            f"({int(broken.sum())} of {len(model.names)} images); export the model again or remove the image"
        )
    if (np.diff(model.point_ids) == 0).any():  # they are in order
        raise SceneError(f"{folder}: two points have the same id; export the model again")


def _drop_missing(model: Model, folder: Path, policy: Literal["error", "skip"]) -> tuple[Model, list[Finding]]:
    missing = photographs.missing_images(folder, model.names)
    n = int(missing.sum())
    if not n:
        return model, []
    first = model.names[int(np.argmax(missing))]
    counted = f"{n} of {len(missing)} images {'is' if n == 1 else 'are'} missing in {folder}, first {first}"
    if policy == "error" or n == len(missing):
        raise SceneError(
            f"{counted}; bring them back, name their folder with --images, or set scene.missing_images: skip"
        )
    finding = Finding("missing_images", "warning", f"{counted}; going on without", {"missing": n, "first": first})
    return _take_images(model, np.flatnonzero(~missing)), [finding]


def _take_images(model: Model, index: NDArray[np.integer]) -> Model:
    """The model with the images at `index` only, in that order."""
    row = np.full(len(model.names), -1, np.int32)
    row[index] = np.arange(len(index), dtype=np.int32)
    kept = np.flatnonzero(row[model.obs_images] >= 0)
    kept = kept[group(row[model.obs_images[kept]], len(index))[0]]
    return replace(
        model,
        image_ids=model.image_ids[index],
        names=tuple(model.names[i] for i in index),
        camera_ids=model.camera_ids[index],
        quats=model.quats[index],
        translations=model.translations[index],
        obs_images=row[model.obs_images[kept]],
        obs_points=model.obs_points[kept],
        obs_xy=model.obs_xy[kept],
    )


def assemble(model: Model, model_dir: Path, image_dir: Path) -> tuple[Scene, list[Finding]]:
    """The `Scene` of a checked model: cameras by name, points by id, tracks as CSR, broken points left out."""
    from scipy.spatial.transform import Rotation

    by_name = np.array(sorted(range(len(model.names)), key=lambda i: model.names[i]), np.int64)
    names, camera_ids = tuple(model.names[i] for i in by_name), model.camera_ids[by_name]
    ids = np.unique(camera_ids)
    intrinsics = tuple(model.cameras[int(i)] for i in ids)
    index = np.searchsorted(ids, camera_ids).astype(np.int32)
    viewmats = np.tile(np.eye(4), (len(names), 1, 1))
    viewmats[:, :3, :3] = Rotation.from_quat(model.quats[by_name], scalar_first=True).as_matrix()
    viewmats[:, :3, 3] = model.translations[by_name]
    total = len(model.points)
    finite = np.asarray((np.abs(model.points) < FARTHEST).all(axis=1))
    if not finite.all():
        columns = ("point_ids", "points", "colors", "errors")
        model = replace(model, **{name: getattr(model, name)[finite] for name in columns})
    tracks, dangling = _tracks(model, by_name)
    scene = Scene(
        model_dir=model_dir,
        image_dir=image_dir,
        intrinsics=intrinsics,
        image_ids=model.image_ids[by_name],
        names=names,
        intrinsics_index=index,
        viewmats=viewmats,
        Ks=np.stack([pinhole_matrix(one) for one in intrinsics])[index],
        sizes=np.array([(one.width, one.height) for one in intrinsics], np.int32)[index],
        point_ids=model.point_ids,
        points=model.points,
        colors=model.colors,
        errors=model.errors,
        track_offsets=tracks.offsets,
        track_cameras=tracks.images,
        track_xy=tracks.xy,
    )
    return scene, _point_findings(int((~finite).sum()), dangling, total)


def _tracks(model: Model, by_name: NDArray[np.int64]) -> tuple[Tracks, int]:
    """Tracks in the points' order, cameras numbered by name; and how many observations name an unknown point."""
    rows = rows_of_ids(model.point_ids, model.obs_points)
    counts = np.zeros(len(model.point_ids), np.int64)
    dangling = fast(_count_rows, len(rows))(rows, counts)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    images, xy = np.empty(offsets[-1], np.int32), np.empty((offsets[-1], 2), np.float32)
    starts = np.searchsorted(model.obs_images, np.arange(len(model.names) + 1, dtype=np.int32))
    place, free = fast(_place_tracks, len(rows)), offsets[:-1].copy()

    def fill(first: int, last: int) -> None:
        place(rows, model.obs_xy, starts, by_name, first, last, free, images, xy)

    in_parts(fill, counts)
    return Tracks(offsets, images, xy), int(dangling)


def _count_rows(rows, counts):  # type: ignore[no-untyped-def]
    """Count each row; how many are none. Compiled for large models."""
    none = 0
    for i in range(len(rows)):
        if rows[i] < 0:
            none += 1
        else:
            counts[rows[i]] += 1
    return none


def _place_tracks(rows, obs_xy, starts, by_name, first, last, free, images, xy):  # type: ignore[no-untyped-def]
    """Fill the tracks of the points from `first` to `last` with all cameras in turn. Compiled for large models."""
    for camera in range(len(by_name)):
        image = by_name[camera]
        for k in range(starts[image], starts[image + 1]):
            row = rows[k]
            if first <= row < last:
                at = free[row]
                images[at] = camera
                xy[at, 0], xy[at, 1] = obs_xy[k, 0], obs_xy[k, 1]
                free[row] = at + 1


def _point_findings(broken: int, dangling: int, total: int) -> list[Finding]:
    findings = []
    if broken and broken == total:
        raise SceneError(f"none of the model's {total:,} points has finite coordinates; export the model again")
    if broken:
        message = f"{broken:,} of {total:,} points have coordinates that are not finite and are left out"
        findings.append(Finding("broken_points", "warning", message, {"points": broken}))
    elif dangling:
        message = f"{dangling:,} observations name points that the model does not hold and are ignored"
        findings.append(Finding("dangling_observations", "warning", message, {"observations": dangling}))
    return findings


def write_model(
    scene: Scene,
    cameras: NDArray[np.integer],
    points: NDArray[np.integer],
    folder: Path,
    similarity: Similarity | None = None,
    intrinsics: Mapping[int, Intrinsics] | None = None,
) -> None:
    """Write the cameras and points at the given indices as a binary COLMAP model into `folder`, whole or not at all.

    Coordinates are the similarity's training coordinates; tracks are restricted to the subset; image, camera and
    point ids stay. `intrinsics` by COLMAP id; by default the PINHOLE part of the scene's.
    """
    from scipy.spatial.transform import Rotation

    chosen, kept = np.asarray(cameras, np.int64), np.sort(np.asarray(points, np.int64))
    row = np.full(scene.n_cameras, -1, np.int32)
    row[chosen] = np.arange(len(chosen), dtype=np.int32)
    viewmats, xyz = scene.viewmats[chosen], scene.points[kept]
    if similarity is not None:
        viewmats, xyz = similarity.apply_viewmats(viewmats), similarity.apply(xyz)
    tracks = Tracks(*kept_tracks(scene, kept, row))
    none = np.empty(0, np.int32)
    model = Model(
        cameras=dict(_pinholes(scene, chosen) if intrinsics is None else intrinsics),
        image_ids=scene.image_ids[chosen],
        names=tuple(scene.names[i] for i in chosen),
        camera_ids=np.array([scene.intrinsics[i].id for i in scene.intrinsics_index[chosen]], np.int64),
        quats=Rotation.from_matrix(viewmats[:, :3, :3]).as_quat(scalar_first=True),
        translations=viewmats[:, :3, 3],
        obs_images=none,
        obs_points=none.astype(np.int64),
        obs_xy=np.empty((0, 2), np.float32),
        point_ids=scene.point_ids[kept],
        points=xyz,
        colors=scene.colors[kept],
        errors=scene.errors[kept],
    )
    with atomic_folder(folder) as temporary:
        write_tracks(temporary, model, tracks)


def _pinholes(scene: Scene, cameras: NDArray[np.int64]) -> dict[int, Intrinsics]:
    """The PINHOLE part of the intrinsics that some cameras use."""
    used, first = np.unique(scene.intrinsics_index[cameras], return_index=True)
    found = {}
    for i, camera in zip(used, cameras[first], strict=True):
        K, one = scene.Ks[camera], scene.intrinsics[i]
        params = (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
        found[one.id] = replace(one, model="PINHOLE", params=params)
    return found
