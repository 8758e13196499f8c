"""Time and memory of reading, planning and writing all patches of synthetic cities, each in a process of its own.

Seconds are of the wall clock; `CPU s` are of all threads, and do not suffer from what else the machine does.

Kernels are compiled before, by splitting a small city once; that happens once on every machine.

python benchmarks/split.py --sizes 1k,5k,10k --json split.json

`--verify N` opens N patches of each (0: all) with pycolmap afterwards and compares ids, poses, intrinsics, positions
and every observation with the model that was split.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {  # cameras, points, observations, tiles
    "warm": (100, 40_000, 240_000, 1),
    "1k": (1_000, 200_000, 1_200_000, 1),
    "5k": (5_000, 2_000_000, 12_000_000, 1),
    "10k": (10_000, 5_000_000, 25_000_000, 10),
}
COLUMNS = ("size", "cameras", "points", "observations", "patches", "bound")
COLUMNS += ("read", "plan", "write", "all", "CPU s", "GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1k,5k,10k")
    parser.add_argument("--models", type=Path, help="folder where models are kept between runs; default: a new one")
    parser.add_argument("--max-cameras", type=int, default=300)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verify", type=int, metavar="N", help="open N patches with pycolmap; 0: all")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.max_cameras, args.verify)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        models = args.models or Path(temporary)
        _run("warm", models, args)
        rows = [{"size": size, **_run(size, models, args)} for size in args.sizes.split(",")]
    columns = (*COLUMNS, *(["verified"] if args.verify is not None else []))
    print(" ".join(f"{name:>12}" for name in columns))
    for row in rows:
        print(" ".join(f"{row[name]:>12,}" if isinstance(row[name], int) else f"{row[name]!s:>12}" for name in columns))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def _run(size: str, models: Path, args: argparse.Namespace) -> dict[str, Any]:
    folder = models / size
    if not (folder / "images").is_dir():
        options = ("--cameras", "--points", "--observations", "--tiles")
        numbers = [text for pair in zip(options, map(str, SIZES[size]), strict=True) for text in pair]
        city = Path(__file__).with_name("synthetic_city.py")
        subprocess.run([sys.executable, str(city), str(folder), *numbers], check=True)
    command = [sys.executable, __file__, "--one", str(folder), "--max-cameras", str(args.max_cameras)]
    command += [] if args.verify is None else ["--verify", str(args.verify)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(folder: Path, max_cameras: int, verify: int | None = None) -> dict[str, Any]:
    """Seconds of each stage, and the peak memory of this process; afterwards, patches are compared with the scene."""
    started = time.monotonic()
    from splatpipe.config import config_from_dict
    from splatpipe.layout import RunLayout
    from splatpipe.planning import make_plan, write_datasets
    from splatpipe.scene.colmap import read_scene

    config = config_from_dict({"patching": {"max_cameras": max_cameras}}, "benchmark")
    scene = read_scene(folder).scene
    read = time.monotonic()
    plan = make_plan(scene, config)
    planned = time.monotonic()
    out = folder / f"run-{os.getpid()}"
    try:
        write_datasets(plan, RunLayout(out))
        written, cpu = time.monotonic(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verified = None if verify is None else verify_patches(plan, RunLayout(out), verify)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assigned = scene.n_cameras - len(plan.split.holdout)
    return {
        "cameras": scene.n_cameras,
        "points": scene.n_points,
        "observations": len(scene.track_cameras),
        "patches": len(plan.patches),
        "bound": -(-assigned // max_cameras),
        "read": round(read - started, 1),
        "plan": round(planned - read, 1),
        "write": round(written - planned, 1),
        "all": round(written - started, 1),
        "CPU s": round(cpu, 1),
        "GiB": round(peak / 2**20, 2),
        "verified": verified,
    }


def verify_patches(plan: Any, layout: Any, number: int) -> int:
    """Open `number` patches (0: all), evenly chosen, with pycolmap; how many, all of them right. Raises otherwise."""
    n = len(plan.patches)
    chosen = range(n) if number == 0 else sorted({i * n // number for i in range(number)})
    for i in chosen:
        _verify(plan.scene, plan.patches[i], layout.patch(plan.patches[i].id).sparse)
    return len(chosen)


def _verify(scene: Any, planned: Any, folder: Path) -> None:
    import numpy as np
    import pycolmap

    patch, similarity = planned.patch, planned.similarity
    model = pycolmap.Reconstruction(folder)
    images = {int(scene.image_ids[i]): int(i) for i in patch.camera_index}
    assert set(model.images) == set(images), f"{folder}: images"
    assert sorted(model.points3D) == scene.point_ids[patch.point_index].tolist(), f"{folder}: points"
    for image_id, i in images.items():
        image, K = model.images[image_id], scene.Ks[i]
        assert image.name == scene.names[i], f"{folder}: name of {image.name}"
        pose = image.cam_from_world()
        np.testing.assert_allclose(pose.rotation.matrix(), scene.viewmats[i, :3, :3], atol=1e-9)
        np.testing.assert_allclose(similarity.invert(image.projection_center()), scene.centers[i], rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(model.cameras[image.camera_id].calibration_matrix(), K)
    is_ours = np.zeros(scene.n_cameras, bool)
    is_ours[patch.camera_index] = True
    for p in patch.point_index:
        mine = slice(scene.track_offsets[p], scene.track_offsets[p + 1])
        kept = is_ours[scene.track_cameras[mine]]
        cameras, xy = scene.track_cameras[mine][kept], scene.track_xy[mine][kept]
        wanted = sorted(zip(scene.image_ids[cameras].tolist(), map(tuple, xy.tolist()), strict=True))
        point = model.points3D[int(scene.point_ids[p])]
        elements = [(e.image_id, e.point2D_idx) for e in point.track.elements]
        found = sorted((image, tuple(model.images[image].points2D[index].xy)) for image, index in elements)
        assert found == wanted, f"{folder}: track of point {scene.point_ids[p]}"
        np.testing.assert_allclose(similarity.invert(point.xyz), scene.points[p], rtol=1e-9, atol=1e-6)


if __name__ == "__main__":
    main()
