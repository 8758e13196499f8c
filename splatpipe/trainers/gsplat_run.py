"""From a request to a splat: load the patch, train, evaluate its hold-out views, write the PLY."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from splatpipe.health.watch import HealthWatch
from splatpipe.patches.dataset import PatchData, read_dataset
from splatpipe.splatting import raster
from splatpipe.splatting.loop import Report, Training, TrainingData, TrainingJob, render
from splatpipe.splatting.metrics import color_corrected, psnr, ssim
from splatpipe.splatting.model import Params, to_splats
from splatpipe.splatting.ply import antialiased_comment, transform, write_splats
from splatpipe.splatting.views import DecodedViews, ViewLoader, Views
from splatpipe.trainers.base import TrainRequest
from splatpipe.trainers.lichtfeld_options import MIP_BLUR
from splatpipe.trainers.tail import read_events

if TYPE_CHECKING:
    from splatpipe.trainers.gsplat_child import Laps

MAX_AUTO_CACHE_BYTES = 16 << 30


def run(
    request: TrainRequest, report: Report, should_stop: Callable[[], bool], laps: Laps, decoded: DecodedViews
) -> None:
    """Train `request` and leave `splat.ply` in scene coordinates. Raises what `Training.run` raises.

    `decoded`: photographs that are in memory already, maybe of another patch.
    """
    started = time.monotonic()
    # `GsplatTrainer.command` shows this process one CUDA device only, which therefore is number 0 here.
    request = replace(request, device="cuda:0" if request.device.startswith("cuda") else "cpu")
    use_threads(torch.device(request.device), request.threads)
    if request.device == "cpu":
        raster.warm_up(lambda what: report("compiling", what=what))
    laps("kernels")
    data, holdout = _load(request, decoded)
    laps("data")
    job = TrainingJob(
        settings=request.settings,
        init_scaling=request.init_scaling,
        device=request.device,
        checkpoints=request.files.checkpoints,
        cache_bytes=max(_cache_bytes(request), sum(one.nbytes for one in decoded.values())),
        earlier=tuple(files.checkpoints for files in request.continued),
    )
    training = Training(data, job, report)
    laps("model")
    report(
        "start",
        device=_device_name(request.device),
        images=len(data.views),
        points=len(data.points),
        gaussians=len(training.params["means"]),
        scene_scale=training.scene_scale,
        resumed_from=training.resumed_from,
        resumed_attempt=_resumed_attempt(training, request),
        startup=laps.seconds,
        decoded=len(decoded),
    )
    watch = _watch(training, request, report)
    params = training.run(should_stop)
    _report_poses(training, report)
    if len(holdout):
        evaluate(params, holdout, request, training.device, report)
    written = _write_splat(params, request)
    health = asdict(training.health)
    health["relocated_shares"] = health["relocated_shares"][-20:]
    health["verdicts"] = [verdict.to_json() for verdict in watch.verdicts] if watch else []
    if request.device.startswith("cuda"):
        health["peak_vram_bytes"] = torch.cuda.max_memory_allocated()
    seconds = round(time.monotonic() - started, 2)
    report("done", step=training.step, gaussians=written, seconds=seconds, health=health)


def _resumed_attempt(training: Training, request: TrainRequest) -> int | None:
    """The earlier attempt that this one goes on from; None when it begins anew or goes on with itself."""
    folders = {files.checkpoints: int(files.root.name) for files in request.continued}
    return folders.get(training.resumed_folder) if training.resumed_folder else None


def _report_poses(training: Training, report: Report) -> None:
    """By how much each camera was corrected, where the settings ask for it."""
    if training.extras.poses is not None:
        cameras = training.extras.poses.report(training.data.views.names)
        typical = {key: float(np.median([camera[key] for camera in cameras])) for key in ("degrees", "shift")}
        report("poses", step=training.step, **typical, cameras=cameras)


def _watch(training: Training, request: TrainRequest, report: Report) -> HealthWatch | None:
    """Have the training watched, unless the settings say no; what was seen before an interruption counts on."""
    if not request.health.every:
        return None
    logs = [files.events for files in (*reversed(request.continued), request.files)] if training.resumed_from else []
    earlier = [event for log in logs for event in read_events(log)]
    watch = training.observer = HealthWatch(request.health, report, earlier, training.step)
    return watch


def use_threads(device: torch.device, threads: int) -> None:
    """On the CPU the kernels get the threads, torch one: its pool spins between its few small operations."""
    if device.type == "cpu":
        torch.set_num_threads(1)
        raster.set_threads(threads)
    elif threads:
        torch.set_num_threads(threads)


def _load(request: TrainRequest, decoded: DecodedViews) -> tuple[TrainingData, Views]:
    patch = read_dataset(request.patch.root)
    used = _used(patch, request)
    views = _views(patch, request).take(used)
    observed = patch.observed(used) if request.settings.depth_weight else None
    data = TrainingData(views, patch.points, patch.colors, observed, decoded)
    return data, load_holdout(request) if (request.patch.holdout / "sparse" / "0").is_dir() else views.take(used[:0])


def load_views(request: TrainRequest) -> Views:
    """The views that `request` trains on, at training size."""
    patch = read_dataset(request.patch.root)
    return _views(patch, request).take(_used(patch, request))


def load_holdout(request: TrainRequest) -> Views:
    """The hold-out views of the patch at training size."""
    return _views(read_dataset(request.patch.holdout), request)


def _used(patch: PatchData, request: TrainRequest) -> NDArray[np.int64]:
    left_out = set(request.skip_cameras)
    return np.array([i for i, name in enumerate(patch.names) if name not in left_out], np.int64)


def _views(patch: PatchData, request: TrainRequest) -> Views:
    views = Views(patch.names, patch.image_paths, patch.viewmats, patch.Ks, patch.sizes, patch.masks)
    return views.resized(request.settings.downscale, request.settings.max_width)


def _cache_bytes(request: TrainRequest) -> int:
    """The setting, or half of the memory that is free now, at most 16 GiB."""
    if request.settings.image_cache_gb:
        return int(request.settings.image_cache_gb * (1 << 30))
    return min(psutil.virtual_memory().available // 2, MAX_AUTO_CACHE_BYTES)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def evaluate(params: Params, holdout: Views, request: TrainRequest, device: torch.device, report: Report) -> None:
    """Report the quality of each hold-out view, and of all: `evaluated` and `eval` of docs/contracts.md."""
    loader = ViewLoader(holdout, device, _cache_bytes(request))
    rows: list[dict[str, Any]] = []
    own = request.trainer == "gsplat"
    blur = (raster.BLUR if own else MIP_BLUR) if request.settings.antialiased else None
    with torch.no_grad():
        for i, name in enumerate(holdout.names):
            view = loader.get(i)
            rendered = render(params, view, sh_degree=request.settings.sh_degree, antialiased=blur)[0]
            image = rendered.clamp(0, 1).cpu().numpy()
            photograph = view.image.cpu().numpy()
            of = image, photograph, None if view.mask is None else view.mask.cpu().numpy()
            row = {"image": name, "psnr": round(psnr(*of), 4), "ssim": round(ssim(*of), 5)}
            if request.settings.bilateral_lr:
                corrected = color_corrected(*of)
                row |= {"cc_psnr": round(psnr(corrected, *of[1:]), 4), "cc_ssim": round(ssim(corrected, *of[1:]), 5)}
            rows.append(row)
            report("evaluated", **row)  # a sign of life: many large views take longer than the silence limit
    loader.close()
    means = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0] if key != "image"}
    report("eval", **means, views=rows)


def _write_splat(params: Params, request: TrainRequest) -> int:
    """The number of Gaussians written, in scene coordinates."""
    splats = transform(to_splats(params), request.similarity)
    comments = [f"splatpipe patch {request.patch_id} attempt {request.attempt}"]
    if request.settings.antialiased:
        comments.append(antialiased_comment(raster.BLUR))
    return write_splats(request.files.splat, splats, comments)
