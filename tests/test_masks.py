"""Masks: what is black in them changes nothing, wherever it is carried; mistakes in them are sentences."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scenes import synthetic_scene, write_scene
from test_training import data_of, never, training

from splatpipe.errors import SceneError
from splatpipe.layout import RunLayout
from splatpipe.patches.dataset import normalising_similarity, read_dataset, write_dataset
from splatpipe.patches.partition import split
from splatpipe.patches.settings import PatchingSettings
from splatpipe.pipeline import RunOptions, run
from splatpipe.scene.arrays import Scene
from splatpipe.scene.colmap import read_scene
from splatpipe.scene.masks import mask_name, mask_paths
from splatpipe.scene.undistort import undistort
from splatpipe.splatting.images import load_mask
from splatpipe.splatting.metrics import color_corrected, psnr, ssim, view_metrics
from splatpipe.splatting.views import ViewLoader

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = np.ones((48, 64), bool)
KEPT[10:30, 5:40] = False


def paint(path: Path, color: tuple[int, int, int]) -> None:
    """Cover the masked part of a photograph, as exactly as PNG keeps it."""
    pixels = np.asarray(Image.open(path).convert("RGB")).copy()
    pixels[~KEPT] = color
    Image.fromarray(pixels).save(path, format="PNG")


def masked_scene(folder: Path, color: tuple[int, int, int], cameras: int = 9, every: int = 2) -> Scene:
    """Garbage of one colour in every second photograph (or as many as said), and a mask over it."""
    scene = write_scene(folder, synthetic_scene(n_cameras=cameras, n_points=150))
    (folder / "masks").mkdir()
    for name in scene.names[::every]:
        paint(folder / "images" / name, color)
        Image.fromarray(KEPT).save(folder / "masks" / f"{name}.png")
    return replace(scene, mask_dir=folder / "masks")


def with_masks(scene: Scene, used: bool = True):  # type: ignore[no-untyped-def]
    data = data_of(scene)
    return replace(data, views=replace(data.views, masks=mask_paths(scene.mask_dir if used else None, scene.names)))


def test_what_a_mask_covers_changes_nothing_to_the_bit(tmp_path: Path) -> None:
    splats = []
    for name, color in (("red", (255, 0, 0)), ("green", (0, 255, 0))):
        trained, _ = training(with_masks(masked_scene(tmp_path / name, color)), tmp_path / f"{name} run")
        splats.append(trained.run(never))
    assert all(torch.equal(splats[0][key], splats[1][key]) for key in splats[0])


def holdout_psnr(folder: Path, scene: Scene, clean: Scene, used: bool) -> float:
    """Mean over photographs without garbage, of cameras that did not train."""
    from splatpipe.splatting.loop import render

    data = with_masks(scene, used)
    held = np.arange(1, scene.n_cameras, 4)
    kept = np.setdiff1d(np.arange(scene.n_cameras), held)
    trained, _ = training(
        replace(data, views=data.views.take(kept)), folder, iterations=500, refine_stop=450, max_cap=1500, growth=1.2
    )
    params = trained.run(never)
    loader, values = ViewLoader(data_of(clean).views.take(held), torch.device("cpu"), 1 << 24), []
    with torch.no_grad():
        for i in range(len(held)):
            view = loader.get(i)
            values.append(psnr(render(params, view, sh_degree=1)[0].numpy(), view.image.numpy()))
    loader.close()
    return float(np.mean(values))


def test_garbage_in_the_photographs_does_not_hurt_behind_a_mask(tmp_path: Path) -> None:
    scene = masked_scene(tmp_path / "scene", (255, 0, 255), cameras=25, every=1)
    clean = write_scene(tmp_path / "clean", synthetic_scene(n_cameras=25, n_points=150))
    masked = holdout_psnr(tmp_path / "a", scene, clean, used=True)
    assert masked > holdout_psnr(tmp_path / "b", scene, clean, used=False) + 1.0


def test_metrics_look_only_at_what_takes_part() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((48, 64, 3))
    render = np.clip(truth + rng.normal(0, 0.05, truth.shape), 0, 1)
    spoiled = render.copy()
    spoiled[~KEPT] = 1 - truth[~KEPT]
    assert psnr(spoiled, truth, KEPT) == psnr(render, truth, KEPT) == pytest.approx(psnr(render, truth), abs=0.3)
    assert psnr(spoiled, truth) < 15
    assert ssim(spoiled, truth, KEPT) == ssim(render, truth, KEPT) > ssim(spoiled, truth)
    shifted = 0.8 * render + 0.1
    shifted[~KEPT] = spoiled[~KEPT]
    assert psnr(color_corrected(shifted, truth, KEPT), truth, KEPT) > psnr(color_corrected(shifted, truth), truth, KEPT)
    everything = np.ones_like(KEPT)
    assert view_metrics("a", render, truth, None, everything) == view_metrics("a", render, truth)


@pytest.mark.parametrize("name", ["a/b.jpg", "a/b.jpg.png", "a/b.png"])
def test_a_mask_is_found_by_the_usual_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    assert mask_name(tmp_path, "a/b.jpg") is None
    Image.new("L", (4, 4), 255).save(tmp_path / name)
    assert mask_name(tmp_path, "a/b.jpg") == name


def test_a_reduced_mask_keeps_no_pixel_that_garbage_was_averaged_into(tmp_path: Path) -> None:
    pixels: NDArray[np.uint8] = np.full((40, 40), 255, np.uint8)
    pixels[:, 21:] = 0
    Image.fromarray(pixels).save(tmp_path / "m.png")
    kept = load_mask(tmp_path / "m.png", 10, 10)
    assert kept[:, :5].all() and not kept[:, 5:].any()


@pytest.mark.parametrize(
    ("size", "brightness", "said"),
    [((63, 48), 255, "is 63x48 pixels, but its image 64x48"), ((64, 48), 0, "is black all over")],
)
def test_a_mask_that_cannot_be_meant_is_a_sentence(
    tmp_path: Path, size: tuple[int, int], brightness: int, said: str
) -> None:
    scene = masked_scene(tmp_path, (0, 0, 0))
    path = tmp_path / "masks" / f"{scene.names[2]}.png"
    Image.new("L", size, brightness).save(path)
    with pytest.raises(SceneError, match=f"{path.name} {said}"):
        read_scene(tmp_path, masks="masks")


def test_masks_that_are_not_there_or_not_used_are_told(tmp_path: Path) -> None:
    write_scene(tmp_path)
    assert read_scene(tmp_path).scene.mask_dir is None
    with pytest.raises(SceneError, match="scene.masks: the folder .*masks does not exist"):
        read_scene(tmp_path, masks="masks")
    (tmp_path / "masks").mkdir()
    with pytest.raises(SceneError, match=r"holds no mask of any image; .* view_0000\.jpg\.png"):
        read_scene(tmp_path, masks="masks")
    Image.new("L", (64, 48), 255).save(tmp_path / "masks" / "view_0003.jpg.png")
    (note,) = read_scene(tmp_path).findings
    assert "which are not used (scene.masks: masks uses them)" in note.message
    (used,) = read_scene(tmp_path, masks="masks").findings
    assert used.message.startswith("1 of 24 images have a mask")


def test_masks_are_undistorted_with_their_images(tmp_path: Path) -> None:
    made = synthetic_scene(4, 50)
    write_scene(tmp_path, made, camera_model="SIMPLE_RADIAL")
    (tmp_path / "masks").mkdir()
    for name in made.names[:2]:
        paint(tmp_path / "images" / name, (255, 0, 0))
        Image.fromarray(KEPT).save(tmp_path / "masks" / f"{name}.png")
    scene = undistort(read_scene(tmp_path, masks="masks").scene, tmp_path / "cache")
    assert scene.mask_dir == tmp_path / "cache/masks"
    paths = mask_paths(scene.mask_dir, scene.names)
    assert [path is not None for path in paths] == [True, True, False, False]
    pixels = np.asarray(Image.open(scene.image_dir / scene.names[0])).astype(int)
    kept = load_mask(paths[0], *scene.sizes[0].tolist())  # type: ignore[arg-type]
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
    assert 0.6 < kept.mean() < 0.9
    assert red.sum() > 300 and not (red & kept).any()
    assert (red | kept).mean() > 0.9, "little more is masked than has to be"


def test_a_patch_carries_its_masks_and_follows_the_scene(tmp_path: Path) -> None:
    scene = masked_scene(tmp_path / "scene", (255, 0, 0), cameras=16)
    patch = split(scene, PatchingSettings(max_cameras=40)).patches[0]
    layout = RunLayout(tmp_path / "scene" / "run").patch("p000")
    write_dataset(scene, patch, layout, None, None, normalising_similarity(scene, patch))
    for folder, cameras in ((layout.root, patch.camera_index), (layout.holdout, patch.holdout_cameras)):
        data = read_dataset(folder)
        wanted = {scene.names[i] for i in cameras if i % 2 == 0}
        assert {name for name, path in zip(data.names, data.masks, strict=True) if path} == wanted
        assert all(path.resolve().parent == tmp_path / "scene" / "masks" for path in data.masks if path)


def test_a_run_with_masks_judges_without_the_garbage(tmp_path: Path) -> None:
    scene = masked_scene(tmp_path, (255, 0, 255), cameras=16, every=3)
    common = ["training.iterations=60", "training.max_cap=300", "training.device=cpu", "training.sh_degree=0"]
    options = RunOptions.resolve(tmp_path, tmp_path / "run", None, ["scene.masks=masks", *common], None, None)
    assert run(options, stop=threading.Event()) == 0
    views = json.loads((tmp_path / "run/merged/evaluation.json").read_text())["views"]
    psnrs = {view["image"]: view["psnr"] for view in views}
    painted = {name for name in psnrs if name in scene.names[::3]}
    assert painted and painted != psnrs.keys()
    assert min(psnrs[name] for name in painted) > max(psnrs.values()) - 3, "garbage alone would cost 10 dB"
