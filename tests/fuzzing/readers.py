"""Every reader of splatpipe that meets files from outside or from a killed run, and whole small files to damage.

A reader gets a folder that holds its files, one or two of them damaged. It may return, or raise a SplatpipeError:
a sentence. Anything else is a fault of ours. What the callers inside splatpipe catch, it catches as well.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scenes import EXAMPLE, synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.comparing import compare
from splatpipe.config import config_from_dict, load_config
from splatpipe.entries import Outcome
from splatpipe.failures.classify import Evidence, classify, default_catalogue
from splatpipe.files import write_json
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.patches.drawn import drawn_rings, straight_cuts
from splatpipe.rebuild import open_ledger
from splatpipe.runfolder import read_run
from splatpipe.scene.undistort import undistort
from splatpipe.splatting import checkpoint as checkpoints
from splatpipe.splatting import ply
from splatpipe.splatting.images import load_pixels
from splatpipe.trainers.base import Attempt
from splatpipe.trainers.lichtfeld_config import read_profile, settings_of
from splatpipe.trainers.lichtfeld_log import Expected, LogReader
from splatpipe.trainers.output import check_alive, check_splat
from splatpipe.trainers.progress import Progress
from splatpipe.trainers.tail import EventTail, LineMemory, LineSplitter, read_events
from splatpipe.training import trained_splat

PLAN = ("patching.max_cameras=4", "patching.holdout_every=5")


class SilentDamage(Exception):
    """Damaged data were taken for whole."""


@dataclass(frozen=True)
class Reader:
    """`share` of all cases; `make` writes whole files into a folder, of which those matching `damage` are damaged."""

    make: Callable[[Path], None]
    read: Callable[[Path], None]
    damage: str
    text: bool = False
    share: float = 1.0


# ------------------------------------------------------------------ scenes


def _small_scene(folder: Path, **how: object) -> None:
    write_scene(folder, synthetic_scene(n_cameras=9, n_points=60), **how)  # type: ignore[arg-type]


def _text_scene(folder: Path) -> None:
    _small_scene(folder, text=True)


def _distorted_scene(folder: Path) -> None:
    _small_scene(folder, camera_model="SIMPLE_RADIAL")


def _read_scene(folder: Path) -> None:
    options = pipeline.RunOptions.resolve(folder, None, None, PLAN, None, None)
    json.dumps(pipeline.inspect(options), allow_nan=False)
    json.dumps(pipeline.split(options, dry_run=True), allow_nan=False)


def _split_scene(folder: Path) -> None:
    options = pipeline.RunOptions.resolve(folder, folder / "run", None, PLAN, None, None)
    pipeline.split(options, dry_run=False)


def _read_images(folder: Path) -> None:
    options = pipeline.RunOptions.resolve(folder, None, None, PLAN, None, None)
    scene = pipeline._read(options).scene
    for name, (width, height) in zip(scene.names, scene.sizes, strict=True):
        load_pixels(scene.image_dir / name, int(width) // 2, int(height) // 2)


def _undistort(folder: Path) -> None:
    options = pipeline.RunOptions.resolve(folder, None, None, PLAN, None, None)
    undistort(pipeline._read(options).scene, folder / "run" / "scene")


# ------------------------------------------------------------------ splats and checkpoints


def _splat(folder: Path) -> None:
    rng = np.random.default_rng(0)
    n = 300
    arrays = (rng.normal(size=(n, k)).astype(np.float32) for k in (3, 4, 3))
    rest = rng.normal(size=n).astype(np.float32), *(rng.normal(size=(n, k, 3)).astype(np.float32) for k in (1, 15))
    ply.write_splats(folder / "splat.ply", ply.Splats(*arrays, *rest), ("fuzzed",))


def _read_splat(folder: Path) -> None:
    path = folder / "splat.ply"
    with contextlib.suppress(ValueError):  # what the supervisor catches
        check_splat(path)
        check_alive(path, 0.005)
    header = ply.read_header(path)
    for rows in ply.sample_rows(header, 100, 16):
        assert rows.shape[1] == len(ply.columns(0))
    ply.read_splats(path)


def _state(step: int) -> checkpoints.Checkpoint:
    generator = torch.Generator().manual_seed(step)
    params = {name: torch.randn(40, 3, generator=generator) for name in ("means", "scales")}
    adam = {"means": {"exp_avg": torch.randn(40, 3, generator=generator), "step": step}}
    return checkpoints.Checkpoint(step, "key", params, adam, {"blind_cameras": {}, "relocated_shares": [0.1]})


def _checkpoints(folder: Path) -> None:
    for step in (100, 200):
        checkpoints.save(folder, _state(step))


def _read_checkpoint(folder: Path) -> None:
    found = checkpoints.load_latest(folder, "key", torch.device("cpu"))
    if found is None:
        raise SilentDamage("one damaged checkpoint of two, and none could be read")
    whole = _state(found.step)
    if any(not torch.equal(found.params[name], whole.params[name]) for name in whole.params):
        raise SilentDamage(f"the damaged checkpoint of step {found.step} was taken for whole")


# ------------------------------------------------------------------ settings


def _settings(folder: Path) -> None:
    shutil.copy(EXAMPLE.parents[1] / "splat_config.yml", folder / "splat_config.yml")


def _read_settings(folder: Path) -> None:
    load_config(folder / "splat_config.yml").hash()


def _overrides(folder: Path) -> None:
    given = ["training.iterations=2000", "patching.max_cameras=20", "scene.images=images_4", "retry.rungs=[0.1, 0.2]"]
    (folder / "overrides.txt").write_text("\n".join(given))


def _read_overrides(folder: Path) -> None:
    text = (folder / "overrides.txt").read_bytes().decode("utf-8", "surrogateescape")
    load_config(None, text.split("\n")).hash()


def _profile(folder: Path) -> None:
    shutil.copy(EXAMPLE.parents[1] / "lfs_configs" / "increase_init_scaling.json", folder / "profile.json")


def _read_profile(folder: Path) -> None:
    settings_of(read_profile(folder / "profile.json"))


def _cells(folder: Path) -> None:
    def feature(x: float, y: float) -> dict[str, object]:
        ring = [[x, y], [x + 2, y], [x + 2, y + 1], [x, y + 1], [x, y]]
        return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}

    cells = [feature(0, 0), feature(2, 0), feature(0, 1), feature(2, 1)]
    (folder / "cells.json").write_text(json.dumps({"type": "FeatureCollection", "features": cells}))


def _read_cells(folder: Path) -> None:
    straight_cuts(drawn_rings(str(folder / "cells.json")))


# ------------------------------------------------------------------ a run folder


def _run_folder(folder: Path) -> None:
    from doubles.make_request import make_request

    write_scene(folder / "scene", synthetic_scene(n_cameras=9, n_points=60))
    run = folder / "run"
    options = pipeline.RunOptions.resolve(folder / "scene", run, None, PLAN, None, None)
    pipeline.split(options, dry_run=False)
    layout = RunLayout(run)
    with Ledger(layout.ledger) as ledger:
        for record in ledger.patches():
            request = make_request(run, patch=record.id)
            request.files.root.mkdir(parents=True)
            _splat(request.files.root)
            write_json(request.files.request, request.to_json())
            ledger.start_attempt(request)
            ledger.end_attempt(Attempt(request, 1.0, 2.0, 0, None, None, 60, 10, 1, 0, request.files.splat))
            ledger.set_outcome(record.id, Outcome.TRAINED, None, {"psnr": 20.0})
    shutil.rmtree(folder / "scene" / "images")
    shutil.rmtree(run / "patches" / "p000" / "images")


def _read_ledger(folder: Path) -> None:
    path = folder / "run" / "ledger.sqlite"
    with contextlib.suppress(pipeline.SplatpipeError), Ledger(path, read_only=True) as ledger:
        json.dumps(ledger.status(), allow_nan=False)
        for record in ledger.patches():
            ledger.history(record.id)
    with Ledger(path) as ledger:
        ledger.end_run(ledger.start_run("again", "0" * 12), 0)
        for record in ledger.patches():
            ledger.history(record.id)
            ledger.next_number(record.id)
            ledger.retrain(record.id)
        ledger.trials()
        ledger.unfinished()
        json.dumps(ledger.status(), allow_nan=False)


def _rebuild_ledger(folder: Path) -> None:
    said: list[str] = []
    with open_ledger(RunLayout(folder / "run"), None, said.append) as ledger:
        trained = [trained_splat(ledger, record.id) for record in ledger.patches()]
        json.dumps(ledger.status(), allow_nan=False)
    if len(trained) != 2 or None in trained:
        raise SilentDamage(f"two patches were trained, the ledger knows of {trained} ({said})")


def _read_run_yml(folder: Path) -> None:
    layout = RunLayout(folder / "run")
    run = read_run(layout)
    config_from_dict(run["settings"], str(layout.run_yml)).hash()


def _read_patch_json(folder: Path) -> None:
    compare([str(folder / "run"), "p000", "p001"])


def _events(folder: Path) -> None:
    lines = [
        {"t": 1.0, "event": "start", "pid": 7, "device": "cpu", "images": 9, "points": 60, "gaussians": 60},
        {"t": 1.1, "event": "step", "step": 10, "total": 60, "loss": 0.3, "gaussians": 60, "alive": 60},
        {"t": 1.2, "event": "refine", "step": 10, "relocated": 3, "added": 3, "gaussians": 63},
        {"t": 1.2, "event": "blind_camera", "step": 10, "image": "a.jpg"},
        {"t": 1.3, "event": "verdict", "step": 10, "severity": "note", "message": "plateau"},
        {"t": 1.3, "event": "error", "class": "explosion", "message": "flung", "step": 11},
        {"t": 1.4, "event": "eval", "psnr": 20.0, "ssim": 0.8, "views": []},
        {"t": 1.5, "event": "done", "step": 60, "gaussians": 63, "seconds": 1.0, "health": {"blind_cameras": {"a": 1}}},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_events(folder: Path) -> None:
    path, progress = folder / "events.jsonl", Progress()
    for event in EventTail(path, from_start=True).read():
        progress.add(event)
    read_events(path)
    json.dumps(progress.summary())
    evidence = {"exit_status": 1, "last_step": progress.last_step, "stepped": progress.stepped}
    classify(Evidence(**evidence, errors=progress.errors, refine_start=10), default_catalogue())


def _lfs_log(folder: Path) -> None:
    text = """[info] Read 9 cameras and 9 images from COLMAP
[info] Training with 9 images
[info] Loaded 60 points from COLMAP
[info] Scene scale: 1.25
[info] Starting training loop
\r 25%|## | 10/60 | Loss: 0.2345 | Splats: 60 [00:01<00:03]\r
MCMC: Relocated 3 dead Gaussians at iteration 10
MCMC: Added 3 new Gaussians at iteration 10 (total: 63)
\r100%|####| 60/60 | Loss: 0.1 | Splats: 63 [00:05<00:00]
[error] CUDA error: invalid configuration argument
Training completed in 5.3 s
Final splats: 63
Headless training completed
"""
    (folder / "log.txt").write_text(text)


def _read_lfs_log(folder: Path) -> None:
    splitter, reader = LineSplitter(), LogReader(Expected(9, 60, 1.0, 60))
    catalogue = default_catalogue()
    memory, progress = LineMemory(catalogue.telling), Progress()
    data = (folder / "log.txt").read_bytes()
    for start in range(0, len(data) or 1, 100):
        for line in splitter.feed(data[start : start + 100]):
            memory.add(line)
            for event in reader.read(line):
                progress.add(event)
    classify(Evidence(exit_status=1, lines=memory.lines, errors=progress.errors, refine_start=10), catalogue)


READERS: dict[str, Reader] = {
    "COLMAP bin": Reader(_small_scene, _read_scene, "sparse/0/*.bin", share=2.0),
    "COLMAP txt": Reader(_text_scene, _read_scene, "sparse/0/*.txt", text=True, share=1.5),
    "split to disk": Reader(_small_scene, _split_scene, "sparse/0/*.bin", share=0.2),
    "undistortion": Reader(_distorted_scene, _undistort, "sparse/0/*.bin", share=0.05),
    "photographs": Reader(_small_scene, _read_images, "images/*.jpg", share=0.5),
    "PLY": Reader(_splat, _read_splat, "*.ply", share=2.0),
    "PLY header": Reader(_splat, _read_splat, "*.ply", text=True, share=1.0),
    "checkpoint": Reader(_checkpoints, _read_checkpoint, "step_0000200.pt", share=1.5),
    "settings": Reader(_settings, _read_settings, "*.yml", text=True, share=1.0),
    "overrides": Reader(_overrides, _read_overrides, "*.txt", text=True),
    "LFS profile": Reader(_profile, _read_profile, "*.json", text=True),
    "cells": Reader(_cells, _read_cells, "*.json", text=True),
    "ledger": Reader(_run_folder, _read_ledger, "run/ledger.sqlite", share=1.0),
    "ledger rebuilt": Reader(_run_folder, _rebuild_ledger, "run/ledger.sqlite", share=1.0),
    "run.yml": Reader(_run_folder, _read_run_yml, "run/run.yml", text=True, share=0.5),
    "patch.json": Reader(_run_folder, _read_patch_json, "run/patches/p000/patch.json", text=True, share=0.5),
    "events": Reader(_events, _read_events, "*.jsonl", text=True),
    "LFS log": Reader(_lfs_log, _read_lfs_log, "*.txt", text=True, share=1.0),
}
