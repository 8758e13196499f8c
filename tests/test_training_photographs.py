"""What a training learns of each photograph (pose, colours) and knows of its points (depth)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raster_reference as reference
import torch
from numpy.typing import NDArray
from PIL import Image
from scenes import scaled, synthetic_scene, write_scene
from scipy.spatial.transform import Rotation
from test_raster_gradients import INTRINSICS, SIZE, VIEW, cloud
from test_training import data_of, never, stop_at, training

from splatpipe.scene.arrays import Scene
from splatpipe.splatting.color_grids import ColorGrids, roughness
from splatpipe.splatting.depth import PointDepths
from splatpipe.splatting.harmonics import sh_colors
from splatpipe.splatting.loop import Stopped, TrainingData, render
from splatpipe.splatting.metrics import color_corrected, psnr
from splatpipe.splatting.model import Params
from splatpipe.splatting.poses import Poses
from splatpipe.splatting.views import View, ViewLoader

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene"), scaled(synthetic_scene(n_cameras=25, n_points=150), 1 / 6))


def with_tracks(scene: Scene) -> TrainingData:
    points = np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))
    observed = tuple(points[scene.track_cameras == i] for i in range(scene.n_cameras))
    return replace(data_of(scene), observed=observed)


def taken(data: TrainingData, index: NDArray[np.integer]) -> TrainingData:
    observed = tuple(data.observed[i] for i in index) if data.observed else None
    return replace(data, views=data.views.take(index), observed=observed)


HELD = np.arange(1, 25, 4)
KEPT = np.setdiff1d(np.arange(25), HELD)


def quality(params: Params, data: TrainingData, corrected: bool = False) -> float:
    """Mean PSNR of the renders of all views of `data`."""
    loader, values = ViewLoader(data.views, CPU, 1 << 24), []
    for i in range(len(data.views)):
        with torch.no_grad():
            view = loader.get(i)
            pictures = render(params, view, sh_degree=1)[0].numpy(), view.image.numpy()
        values.append(psnr(color_corrected(*pictures) if corrected else pictures[0], pictures[1]))
    loader.close()
    return float(np.mean(values))


# ------------------------------------------------------------------ poses


def random_params(degree: int = 2) -> Params:
    gaussians = cloud(40, 3, degree)
    return {
        "means": gaussians["means"],
        "quats": gaussians["quats"],
        "scales": gaussians["scales"].log(),
        "opacities": torch.logit(gaussians["opacities"]),
        "sh0": gaussians["colors"][:, :1].contiguous(),
        "shN": gaussians["colors"][:, 1:].contiguous(),
    }


def corrected_viewmat(viewmat: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """viewmat D, with D(x) = R (x - c) + c + t, in float64."""
    center = -viewmat[:3, :3].T @ viewmat[:3, 3]
    quat = torch.cat([torch.ones(1, dtype=torch.float64), correction[:3] / 2])
    turn = reference.rotation((quat / quat.norm())[None])[0]
    moved = torch.eye(4, dtype=torch.float64)
    moved = torch.cat([torch.cat([turn, (center + correction[3:] - turn @ center)[:, None]], 1), moved[3:]])
    return viewmat @ moved


@pytest.mark.parametrize("correction", [torch.zeros(6), torch.tensor([0.02, -0.03, 0.01, 0.05, -0.04, 0.08])])
def test_a_correction_is_the_camera_moved_and_its_gradient_is_the_references(correction: torch.Tensor) -> None:
    weights = torch.randn(SIZE[1], SIZE[0], 3, generator=torch.Generator().manual_seed(1))
    params = random_params()
    poses = Poses(VIEW[None].double().numpy(), CPU)
    poses.rows.values[0] = correction
    leaf = poses.leaf(0)
    moved = poses.moved(params, 0, leaf, 2)
    view = View("a", VIEW[None], INTRINSICS[None], weights, *SIZE)
    image = render(params, view, sh_degree=2, moved=moved)[0]
    (image * weights).sum().backward()

    exact = correction.double().requires_grad_(True)
    colors = torch.cat([params["sh0"], params["shN"]], 1).double()
    geometry = params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid()
    expected, _ = reference.render(
        *(value.double() for value in geometry), colors, corrected_viewmat(VIEW.double(), exact),
        INTRINSICS.double(), *SIZE, sh_degree=2,
    )  # fmt: skip
    (expected * weights).sum().backward()
    assert exact.grad is not None and leaf.grad is not None
    torch.testing.assert_close(image.detach(), expected.detach().float(), atol=2e-4, rtol=0)
    torch.testing.assert_close(leaf.grad, exact.grad.float(), rtol=2e-3, atol=2e-3 * float(exact.grad.abs().max()))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours_are_those_of_the_rasteriser(degree: int) -> None:
    params = random_params(3)
    view = View("a", VIEW[None], INTRINSICS[None], torch.zeros(SIZE[1], SIZE[0], 3), *SIZE)
    center = -VIEW[:3, :3].T @ VIEW[:3, 3]
    colors = sh_colors(params["means"] - center, params["sh0"], params["shN"], degree)
    ours = render(params, view, sh_degree=degree, moved=(params["means"], params["quats"], colors))[0]
    torch.testing.assert_close(ours, render(params, view, sh_degree=degree)[0], atol=1e-5, rtol=0)


def test_a_motion_of_all_cameras_as_one_is_not_learned(scene: Scene) -> None:
    poses = Poses(scene.viewmats, CPU)
    centers = torch.tensor(scene.centers, dtype=torch.float32)
    turn, shift, growth = torch.tensor([0.01, -0.02, 0.03]), torch.tensor([0.1, 0.2, -0.1]), 0.05
    together = torch.cat(
        [turn.expand(25, 3), torch.linalg.cross(turn.expand(25, 3), centers) + shift + growth * centers], 1
    )
    own = torch.zeros(25, 6)
    own[3, 1] = 0.01
    poses.rows.values += together + own
    poses.leaf(0).grad = torch.zeros(6)
    poses.step(1e-3)
    left = poses.rows.values
    assert float(left.abs().max()) < 0.011
    assert float(left[3, 1]) == pytest.approx(0.01, rel=0.2)


def shaken(data: TrainingData, degrees: float, shift: float) -> TrainingData:
    """Every camera turned and moved a little, at random."""
    rng = np.random.default_rng(0)
    viewmats = data.views.viewmats.copy()
    for viewmat in viewmats:
        turn = Rotation.from_rotvec(np.radians(degrees) * rng.normal(size=3) / 3**0.5).as_matrix()
        viewmat[:3, :3] = turn @ viewmat[:3, :3]
        viewmat[:3, 3] = turn @ viewmat[:3, 3] + shift * rng.normal(size=3) / 3**0.5
    return replace(data, views=replace(data.views, viewmats=viewmats))


def pixels_off(viewmats: NDArray[np.float64], truth: NDArray[np.float64], data: TrainingData) -> float:
    """Median distance, in pixels, of where cameras and true cameras see the points."""
    focal, found = data.views.Ks[0, 0, 0], []
    for pair in zip(viewmats, truth, strict=True):
        a, b = (data.points @ viewmat[:3, :3].T + viewmat[:3, 3] for viewmat in pair)
        found.append(np.linalg.norm(a[:, :2] / a[:, 2:] - b[:, :2] / b[:, 2:], axis=1) * focal)
    return float(np.median(found))


def photographed(data: TrainingData, folder: Path) -> TrainingData:
    """Photographs of the Gaussians that a training begins with, so that a perfect result exists."""
    run, _ = training(data, folder, init_opacity=0.9)
    loader, paths = ViewLoader(data.views, CPU, 1 << 24), []
    for i, name in enumerate(data.views.names):
        with torch.no_grad():
            image = render(run.params, loader.get(i), sh_degree=0)[0].clamp(0, 1)
        paths.append(folder / f"{name}.png")
        Image.fromarray((image * 255).round().byte().numpy()).save(paths[-1])
    loader.close()
    return replace(data, views=replace(data.views, paths=tuple(paths)))


def test_cameras_that_are_a_little_off_are_put_right(scene: Scene, tmp_path: Path) -> None:
    data = photographed(data_of(scene), tmp_path)
    truth, wrong = data.views.viewmats[KEPT], shaken(taken(data, KEPT), degrees=1.0, shift=0.015)
    results: dict[bool, float] = {}
    for wanted in (False, True):
        rate = 3e-3 if wanted else 0.0
        run, _ = training(
            wrong, tmp_path / f"{wanted}", pose_lr=rate, iterations=250, refine_start=1000, init_opacity=0.9
        )
        results[wanted] = quality(run.run(never), taken(data, HELD))
    poses, before = run.extras.poses, wrong.views.viewmats
    assert poses is not None
    pairs = zip(before, poses.rows.values, strict=True)
    after = np.stack([corrected_viewmat(torch.tensor(v), twist.double()).numpy() for v, twist in pairs])
    assert pixels_off(after, truth, data) < 0.5 * pixels_off(before, truth, data)
    assert results[True] > results[False] + 3, "also seen from cameras that were right and took no part"
    told = poses.report(wrong.views.names)
    assert [row["image"] for row in told] == list(wrong.views.names)
    assert 0.2 < np.median([row["degrees"] for row in told]) < 3


# ------------------------------------------------------------------ colours


def test_an_untouched_grid_changes_nothing_and_its_gradient_is_right() -> None:
    image = torch.rand(9, 12, 3, generator=torch.Generator().manual_seed(0))
    untouched = ColorGrids(2, (640, 480), CPU)
    assert torch.equal(untouched.apply(image, 0, untouched.leaf(0)), image)
    assert float(roughness(torch.ones(12, 8, 16, 16))) == 0

    def shown(picture: torch.Tensor, grid: torch.Tensor, held: torch.Tensor | None = None) -> torch.Tensor:
        """By an explicit loop over pixels and the eight cells round each; `held` is what is subtracted."""
        out = []
        for row in range(9):
            for column in range(12):
                pixel = picture[row, column]
                brightness = pixel @ picture.new_tensor([0.299, 0.587, 0.114])
                weights = [torch.stack([1 - t, t]) for t in (brightness, *picture.new_tensor([row / 8, column / 11]))]
                transform = torch.einsum("cdhw,d,h,w->c", grid, *weights) - (0 if held is None else held)
                out.append(pixel + transform.view(3, 4)[:, :3] @ pixel + transform.view(3, 4)[:, 3])
        return torch.stack(out).view(9, 12, 3)

    grids = ColorGrids(2, (64, 64), CPU)
    random = torch.Generator().manual_seed(1)
    small = 0.1 * torch.randn(12, 2, 2, 2, generator=random)
    ours = image.clone().requires_grad_(True), small.clone().requires_grad_(True)
    picture = grids.apply(ours[0], 0, ours[1])
    exact = image.double().requires_grad_(True), small.double().requires_grad_(True)
    expected = shown(*exact, held=grids._met.mean(0).double())
    torch.testing.assert_close(picture, expected.float())
    weights = torch.randn(9, 12, 3, generator=random)
    (picture * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)


def test_exposure_that_changes_from_photograph_to_photograph_is_learned(scene: Scene, tmp_path: Path) -> None:
    data, rng = data_of(scene), np.random.default_rng(3)
    paths = []
    for name, path in zip(data.views.names, data.views.paths, strict=True):
        pixels = np.asarray(Image.open(path), float) * rng.uniform(0.6, 1.4) * rng.uniform(0.9, 1.1, 3)
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    jittered = replace(data, views=replace(data.views, paths=tuple(paths)))
    settings: dict[str, Any] = {"iterations": 300, "refine_stop": 250, "max_cap": 400, "growth": 1.2}
    results = {}
    for wanted in (False, True):
        rate = 2e-2 if wanted else 0.0
        run, _ = training(taken(jittered, KEPT), tmp_path / f"{wanted}", bilateral_lr=rate, **settings)
        results[wanted] = quality(run.run(never), taken(data, HELD), corrected=True)
    assert results[True] > results[False] + 1


# ------------------------------------------------------------------ depth


def test_the_depth_loss_has_the_gradient_of_its_finite_differences() -> None:
    params = random_params()
    means = params["means"]
    points = torch.tensor([[0.1, 0.2, 4.0], [-0.5, 0.1, 4.5], [0.4, -0.3, 3.5]]).double().numpy()
    view = View("a", VIEW[None], INTRINSICS[None], torch.zeros(SIZE[1], SIZE[0], 3), *SIZE)
    depths = PointDepths(points, [np.arange(3)], CPU)
    parts = params["quats"], params["scales"].exp(), torch.tensor(0.9).expand(40).contiguous()

    def loss(values: torch.Tensor) -> torch.Tensor:
        found = depths.loss(view, values, *parts, None)
        assert found is not None
        return found

    leaf = means.clone().requires_grad_(True)
    loss(leaf).backward()
    assert leaf.grad is not None
    ray = torch.zeros_like(means)
    ray += VIEW[2, :3]  # all of them away from the camera
    step = 1e-2
    slope = (loss(means + step * ray) - loss(means - step * ray)) / (2 * step)
    assert float((leaf.grad * ray).sum()) == pytest.approx(float(slope), rel=0.05)


def test_points_hold_the_surface_where_views_are_few(scene: Scene, tmp_path: Path) -> None:
    """Three photographs leave depth open; how far the render is from points that other cameras observe tells."""
    data = with_tracks(scene)
    few, others = taken(data, np.array([6, 8, 16])), taken(data, np.array([7, 11, 12, 13]))
    settings: dict[str, Any] = {"iterations": 300, "refine_stop": 250, "max_cap": 400, "growth": 1.2, "means_lr": 1e-3}
    results: dict[bool, float] = {}
    for wanted in (False, True):
        run, _ = training(few, tmp_path / f"{wanted}", depth_weight=1.0 if wanted else 0.0, **settings)
        params = run.run(never)
        depths = PointDepths(data.points, others.observed, CPU)  # type: ignore[arg-type]
        loader, found = ViewLoader(others.views, CPU, 1 << 24), []
        with torch.no_grad():
            for i in range(4):
                parts = params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid()
                found.append(float(depths.loss(loader.get(i), *parts, None)))  # type: ignore[arg-type]
        loader.close()
        results[wanted] = float(np.mean(found))
    assert results[True] < 0.8 * results[False]


# ------------------------------------------------------------------ all


def test_what_was_learned_of_photographs_survives_an_interruption_to_the_bit(scene: Scene, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"pose_lr": 1e-3, "bilateral_lr": 5e-3, "depth_weight": 0.05, "views_per_step": 2}
    wanted |= {"iterations": 40, "antialiased": True, "random_background": True}
    whole, _ = training(with_tracks(scene), tmp_path / "whole", **wanted)
    expected = whole.run(never)
    part, _ = training(with_tracks(scene), tmp_path / "parts", **wanted)
    with pytest.raises(Stopped):
        part.run(stop_at(part, 23))
    last, _ = training(with_tracks(scene), tmp_path / "parts", **wanted)
    assert last.resumed_from == 23
    result = last.run(never)
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    for mine, theirs in ((last.extras.poses, whole.extras.poses), (last.extras.grids, whole.extras.grids)):
        assert mine is not None and theirs is not None
        assert torch.equal(mine.rows.values, theirs.rows.values) and bool(theirs.rows.values.any())
