"""What runs on a GPU, run on a device double that refuses what CUDA refuses (`doubles/cuda_double.py`).

gsplat's own Python runs too, with doubles of its kernels: its assertions, shapes and memory layouts are the real ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doubles.cuda_double import CudaDouble, WrongDevice, cuda_double
from doubles.gsplat_kernels_double import gsplat_double
from PIL import Image
from scenes import synthetic_scene, write_scene
from test_merge_finish import HELD, badly_joined, finished, ground
from test_merge_finish import views as ground_views  # noqa: F401  # a fixture
from test_raster_gradients import INTRINSICS, SIZE, VIEW, cloud
from test_training import SETTINGS, Events, data_of, never, stop_at

from splatpipe import pipeline
from splatpipe.health.settings import HealthSettings
from splatpipe.health.watch import HealthWatch
from splatpipe.merge.evaluate import evaluate_splat
from splatpipe.scene.arrays import Scene
from splatpipe.splatting.loop import Seen, Stopped, Training, TrainingData, TrainingJob
from splatpipe.splatting.ply import antialiased_comment, read_splats, write_splats
from splatpipe.splatting.raster import rasterization
from splatpipe.splatting.views import Views
from splatpipe.trainers.base import TrainRequest

pytest.importorskip("gsplat")
pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("means", "quats", "scales", "opacities", "colors")


REFUSED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "addition": lambda there, here: there + here,
    "addition in place": lambda there, here: here.add_(there),
    "a scalar in place": lambda there, here: here[0, 0].add_(there[0, 0]),
    "cat": lambda there, here: torch.cat([there, here]),
    "matmul": lambda there, here: there @ here.T,
    "where": lambda there, here: torch.where(there > 0, there, here),
    "comparison": lambda there, here: there > here,
    "indexing with the GPU": lambda there, here: here[there[0].long()],
    "values from the CPU": lambda there, here: there.index_put((here[0].long(),), here),
    "numpy": lambda there, here: there.numpy(),
    "array": lambda there, here: np.asarray(there),
    "generator": lambda there, here: torch.rand(3, device="cuda", generator=torch.Generator()),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_double_refuses_what_cuda_refuses(case: str) -> None:
    with cuda_double():
        here = torch.ones(3, 3)
        with pytest.raises((WrongDevice, TypeError)):
            REFUSED[case](here.cuda(), here)


def test_the_double_does_what_cuda_does() -> None:
    with cuda_double():
        leaf = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device="cuda", requires_grad=True)
        generator = torch.Generator(device="cuda").manual_seed(1)
        noise = torch.rand(2, 2, device=leaf.device, generator=generator)
        loss = (leaf * torch.tensor(2.0) + noise)[torch.tensor([1])].sum()  # a scalar and an index of the CPU
        loss.backward()
        assert (leaf.device.type, leaf.grad.device.type, loss.device.type) == ("cuda",) * 3
        assert leaf.grad.tolist() == [[0, 0], [2, 2]]
        with torch.no_grad():
            leaf[0] += 1
            leaf.view(-1)[3] = 9
        assert leaf.cpu().tolist() == [[2, 3], [3, 9]]
        saved = io.BytesIO()
        torch.save({"leaf": leaf}, saved)
        saved.seek(0)
        assert isinstance(torch.load(saved, map_location="cuda:0", weights_only=True)["leaf"], CudaDouble)
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("degree", [None, 0, 3])
@pytest.mark.parametrize("behind", [False, True])
def test_gsplat_and_the_cpu_give_the_same_pictures_and_gradients(mode: str, degree: int | None, behind: bool) -> None:
    """The whole of gsplat's composition, against our kernels: projection, colours, bins, blending and all gradients."""
    found = {}
    backgrounds = torch.tensor([[0.2, 0.5, 0.9], [0.0, 0.3, 0.1]]) if behind else None
    second = VIEW.clone()
    second[:3, 3] += torch.tensor([0.2, -0.1, 0.3])
    weights = torch.rand((2, SIZE[1], SIZE[0], 3), generator=torch.Generator().manual_seed(1))
    for device, within in (("cpu", nullcontext), ("cuda", gsplat_double)):
        with within():
            gaussians = cloud(150, 3, degree)
            leaves = [gaussians[name].to(device).requires_grad_(True) for name in NAMES]
            viewmats, Ks = torch.stack([VIEW, second]), torch.stack([INTRINSICS, INTRINSICS])
            images, alphas, meta = rasterization(
                *leaves, viewmats.to(device), Ks.to(device), *SIZE, sh_degree=degree,
                backgrounds=None if backgrounds is None else backgrounds.to(device), rasterize_mode=mode,
            )  # fmt: skip
            there = weights.to(device)
            ((images * there).sum() + (alphas * there[..., :1]).sum()).backward()
            seen = (meta["radii"] > 0).all(-1)
            outputs = [one.detach().cpu().numpy() for one in (images, alphas, seen)]
            found[device] = outputs, [leaf.grad.cpu().numpy() for leaf in leaves], meta["n_isects"]
    (image, alpha, seen), gradients, pairs = found["cpu"]
    (image_there, alpha_there, seen_there), gradients_there, pairs_there = found["cuda"]
    np.testing.assert_allclose(image, image_there, atol=1e-2)
    assert np.abs(image - image_there).mean() < 1e-4
    np.testing.assert_allclose(alpha, alpha_there, atol=1e-2)
    assert 0.2 < seen.mean() < 1 and (seen == seen_there).mean() > 0.995
    assert pairs > 100 and pairs_there > 100
    for name, ours, theirs in zip(NAMES, gradients, gradients_there, strict=True):
        scale = np.abs(theirs).max()
        assert np.abs(ours - theirs).max() < 0.02 * scale, name
        assert np.abs(ours - theirs).mean() < 1e-4 * scale, name


# ------------------------------------------------------------------ training

EVERYTHING = {
    **{"iterations": 16, "views_per_step": 2, "warmup_steps": 4, "clip_gradients": 1.5, "random_background": True},
    **{"antialiased": True, "pose_lr": 1e-4, "depth_weight": 0.01, "bilateral_lr": 2e-3, "visible_only": True},
    **{"checkpoint_every": 7, "refine_start": 6, "refine_every": 6},
    "min_opacity": 0.49,  # so high that some Gaussians are relocated
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene"), synthetic_scene(n_cameras=6, n_points=100))


@pytest.fixture(scope="module")
def data(scene: Scene) -> TrainingData:
    """With masks, and the points that each view observes; 16 by 12 pixels, because the double of blending is slow."""
    masks = scene.model_dir.parents[1] / "masks"
    masks.mkdir()
    Image.fromarray(np.tile(np.arange(64) > 4, (48, 1)).astype(np.uint8) * 255).save(masks / "one.png")
    plain = data_of(scene)
    views = replace(plain.views.resized(4, 0), masks=(masks / "one.png",) * 3 + (None,) * (len(plain.views) - 3))
    points = np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))
    return replace(plain, views=views, observed=tuple(points[scene.track_cameras == i] for i in range(scene.n_cameras)))


def on(device: str, data: TrainingData, folder: Path, **changes: Any) -> tuple[Training, Events]:
    events = Events()
    job = TrainingJob(replace(SETTINGS, **changes), 0.5, device, folder, 1 << 28)
    run = Training(data, job, events)
    run.observer = HealthWatch(HealthSettings(every=10), events)
    return run, events


def host(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in params.items()}


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def after_step(self, training: Training, seen: Seen | None) -> None:
        assert training.health.loss is not None
        self.values.append(training.health.loss)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masks": {"visible_only": True},
    "antialiased": {"antialiased": True},
    "photographs": {"pose_lr": 1e-3, "bilateral_lr": 2e-3},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_training_is_the_same_on_both_devices(option: str, data: TrainingData, tmp_path: Path) -> None:
    """Without noise, which each device draws by itself, and up to the first relocation, which a last digit can turn."""
    changes = {"iterations": 8, "refine_start": 1000, "noise_lr": 0.0, "sh_degree_interval": 4, **OPTIONS[option]}
    used = data if option == "masks" else replace(data, views=replace(data.views, masks=()))
    found = {}
    for device, within in (("cpu", nullcontext), ("cuda:0", gsplat_double)):
        with within():
            run, _ = on(device, used, tmp_path / device[:3], **changes)
            run.observer = losses = Losses()
            found[device] = host(run.run(never)), losses.values
    (here, losses_here), (there, losses_there) = found.values()
    np.testing.assert_allclose(losses_there, losses_here, rtol=2e-3)
    for name, value in here.items():
        if name == "quats":
            continue  # round Gaussians have none but rounding for a gradient, of which Adam makes whole steps
        change = (there[name] - value).abs()
        assert float(change.mean()) < 2e-3 * float(value.abs().mean()) + 1e-5, name


def test_every_option_runs_on_the_gpu_and_survives_an_interruption_to_the_bit(
    data: TrainingData, tmp_path: Path
) -> None:
    with gsplat_double():
        whole, events = on("cuda:0", data, tmp_path / "whole", **EVERYTHING)
        expected = host(whole.run(never))
        part, _ = on("cuda:0", data, tmp_path / "parts", **EVERYTHING)
        with pytest.raises(Stopped):
            part.run(stop_at(part, 9))
        last, _ = on("cuda:0", data, tmp_path / "parts", **EVERYTHING)
        assert last.resumed_from == 9
        result = host(last.run(never))
        assert all(isinstance(value, CudaDouble) for value in last.params.values())
        poses = last.extras.poses.report(data.views.names)  # type: ignore[union-attr]
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert asdict(last.health) == asdict(whole.health)
    assert any(pose["degrees"] > 0 for pose in poses)
    assert any(event["relocated"] for event in events.of("refine")) and any(e["added"] for e in events.of("refine"))
    samples = events.of("health")
    assert len(samples) == 2 and all(sample["memory_bytes"] == 1 << 20 for sample in samples)
    json.dumps(events)  # plain numbers, as a child writes them


def test_a_camera_that_sees_nothing_is_skipped_on_the_gpu(data: TrainingData, tmp_path: Path) -> None:
    viewmats = data.views.viewmats.copy()
    viewmats[0] = np.diag([-1.0, 1, -1, 1]) @ viewmats[0]  # looks away
    turned = replace(data, views=replace(data.views, viewmats=viewmats, masks=()))
    with gsplat_double():
        run, events = on("cuda:0", turned, tmp_path, iterations=7)
        run.observer = None  # which would end it
        run.run(never)
    assert list(run.health.blind_cameras) == [data.views.names[0]]
    assert events.of("blind_camera")


# ------------------------------------------------------------------ a child, and what is rendered afterwards

CHILD = (
    *("training.iterations=24", "training.downscale=2", "training.max_cap=150", "training.sh_degree=1"),
    "training.refine_start=10",
    *("training.refine_every=10", "training.refine_stop=22", "patching.max_cameras=100000", "health.every=10"),
    *("training.bilateral_lr=0.002", "patching.holdout_every=3"),
)


def request_on_gpu(folder: Path) -> TrainRequest:
    write_scene(folder / "scene", synthetic_scene(n_cameras=8, n_points=100))
    options = pipeline.RunOptions.resolve(folder / "scene", folder / "run", None, list(CHILD), None, None)
    with pipeline._prepared(options) as (plan, _):
        return replace(plan.patches[0].request(options.layout, 1, options.config, "gsplat"), device="cuda:0")


def test_a_child_on_the_gpu_trains_evaluates_and_writes_its_splat(tmp_path: Path) -> None:
    from splatpipe.trainers import holdout
    from splatpipe.trainers.gsplat_child import EventLog, Laps
    from splatpipe.trainers.gsplat_run import load_holdout, run

    request = request_on_gpu(tmp_path)
    request.out.mkdir(parents=True)
    request.files.request.write_text(json.dumps(request.to_json()))
    with gsplat_double():
        run(request, EventLog(request.files.events), never, Laps(0.0), {})
        holdout.main([str(request.files.request)])
    events = [json.loads(line) for line in request.files.events.read_text().splitlines()]
    kinds = {event["event"]: event for event in events}
    assert kinds["start"]["device"] == "CUDA double"
    assert kinds["done"]["health"]["peak_vram_bytes"] == 1 << 20
    assert len(read_splats(request.files.splat)) == kinds["done"]["gaussians"] > 100
    judged = json.loads((request.out / holdout.RESULT).read_text())
    assert judged["psnr"] == pytest.approx(kinds["eval"]["psnr"], abs=0.01)
    views = load_holdout(request)
    with gsplat_double():
        there = evaluate_splat(request.files.splat, views, device="cuda:0").psnr
    assert there > 5 and len(views) > 0


def test_borders_are_trained_together_on_the_gpu_and_a_large_file_is_evaluated_view_by_view(
    tmp_path: Path,
    ground_views: Views,  # noqa: F811
) -> None:
    path = tmp_path / "merged.ply"
    write_splats(path, badly_joined(ground()), ("made by a test", antialiased_comment(0.3)))
    held = ground_views.take(HELD)
    here = evaluate_splat(path, held).psnr
    with gsplat_double():
        assert evaluate_splat(path, held, device="cuda:0", held_at_once=100).psnr == pytest.approx(here, abs=0.02)
        done = finished(path, ground_views, visits=4, device="cuda:0")
    assert done.kept and done.steps == 20, done.sentence
    assert evaluate_splat(path, held).psnr > here
