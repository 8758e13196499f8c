"""A last, short training of the merged splat: what patches trained apart cannot know of each other is made to fit.

Along borders the haze of both sides lies over the same ground: no rule of ownership can mend that (docs/merging.md),
a few looks at the photographs can. Only what lies at borders, or is too wide for any one patch, may change.
Here all Gaussians are held in memory; `parts` does it for a splat that is too large for that.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.merge.evaluate import HELD_AT_ONCE, normalising
from splatpipe.merge.ownership import Territory, reach
from splatpipe.merge.rows import Rows, log_widest
from splatpipe.patches.frame import Frame
from splatpipe.scene.arrays import Similarity
from splatpipe.splatting import raster
from splatpipe.splatting.loop import Training, TrainingData, TrainingFailure, TrainingJob, render
from splatpipe.splatting.metrics import psnr
from splatpipe.splatting.model import Params, to_splats
from splatpipe.splatting.ply import from_rows, read_header, read_splats, splat_writer, to_rows, to_training, transform
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import ViewLoader, Views

if TYPE_CHECKING:
    from splatpipe.merge.parts import Watch

WARM_UP = 10  # one step in so many, in which Adam learns how large gradients are
JUDGED = 32  # training views by which it is decided whether the result is kept
CACHE_BYTES = 2 << 30  # of decoded photographs
CHUNK = 1 << 18  # rows written at once
NOT_TRAINED = "borders are not trained together"
Failures = (TrainingFailure, torch.cuda.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Finish:
    """What became of a merged splat: `kept` is False where it stayed as it was, for the reason in `sentence`."""

    kept: bool
    sentence: str
    steps: int = 0
    views: int = 0
    free: int = 0  # Gaussians that were free to change
    seconds: float = 0.0
    psnr_before: float | None = None  # mean over training views
    psnr_after: float | None = None
    neighbourhoods: int = 1
    put_back: int = 0  # of these, because their training views got worse

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def finish(
    splat: Path,
    views: Views,
    points: NDArray[np.float64],
    patches: Sequence[Territory],
    frame: Frame,
    settings: TrainSettings,
    *,
    visits: int,
    work: Path,
    device: str = "cpu",
    threads: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    most: int = HELD_AT_ONCE,
    watch: Watch | None = None,
) -> Finish:
    """Train the border Gaussians of the merged file `splat` until each of `views` was seen `visits` times.

    `views`: training views at training size; `points` (P, 3) of the scene, and the trained `patches`, cut in `frame`.
    Everything else keeps its bytes. The file is replaced only if the render of training views came closer to the
    photographs. All Gaussians of a file of up to `most` are held in memory; a larger one is trained in parts of so
    many, with `work`, a folder on the disk of `splat`, from which a call with the same arguments goes on after a stop,
    and `watch`, which is given the steps of each part and then told how it goes on.
    Raises SceneError for a photograph that cannot be read, `loop.Stopped` when `should_stop` says so.
    """
    header = read_header(splat)
    reason = _unfit(header.antialiased, settings)
    if reason:
        return Finish(False, f"{NOT_TRAINED}: {reason}")
    if header.count > most:
        from splatpipe.merge.parts import finish_in_parts

        if threads and device == "cpu":
            raster.set_threads(threads)
        common = views, points, patches, frame, settings
        where: dict[str, Any] = {"work": work, "most": most, "device": device}
        return finish_in_parts(header, *common, visits=visits, should_stop=should_stop, watch=watch, **where)
    shutil.rmtree(work, ignore_errors=True)  # of a larger splat, merged before
    rows = to_rows(read_splats(splat))
    free = at_borders(rows, patches, frame)
    if not free.any():
        return Finish(False, f"{NOT_TRAINED}: no Gaussian lies at one")
    if threads and device == "cpu":
        raster.set_threads(threads)
    steps, begin = visits * len(views), time.monotonic()
    job = last_rates(settings, steps, header.sh_degree, header.antialiased)
    try:
        trained, before, after = _train(rows, free, views, points, job, device, should_stop)
    except Failures as failure:
        return Finish(False, f"{NOT_TRAINED}: {why(failure)}", steps, len(views), int(free.sum()))
    facts = steps, len(views), int(free.sum()), round(time.monotonic() - begin, 1), round(before, 3), round(after, 3)
    said = f"borders trained together: {steps} steps over {len(views)} views, {free.sum()} of {len(free)} Gaussians"
    if not after > before:
        return Finish(False, f"{said}; not kept, because training views did not get better", *facts)
    rows[free] = trained
    comments = [comment for comment in header.comments if comment.strip("-")]  # but the one that pads the header
    with splat_writer(splat, header.sh_degree, comments) as writer:
        for start in range(0, len(rows), CHUNK):
            writer.append(rows[start : start + CHUNK])
    return Finish(True, f"{said}, training views {before:.2f} to {after:.2f} dB", *facts)


def why(failure: BaseException) -> str:
    """What one of `Failures` says; Python's own MemoryError says nothing."""
    return str(failure) or "there is not enough memory"


def at_borders(rows: Rows, patches: Sequence[Territory], frame: Frame) -> NDArray[np.bool_]:
    """(N,) which Gaussians lie in two buffered boxes or more, or are wider than the buffers (`reach`) can hold."""
    claims = np.zeros(len(rows), np.int64)
    points = frame.apply(rows[:, :3])
    for patch in patches:
        claims += patch.buffered.contains(points)
    return (claims > 1) | is_wide(rows, patches)


def is_wide(rows: Rows, patches: Sequence[Territory]) -> NDArray[np.bool_]:
    """(N,) which Gaussians are wider than the buffers can hold."""
    return np.asarray(log_widest(rows) > np.log(reach(patches) / 3))


def _unfit(blur: float | None, settings: TrainSettings) -> str | None:
    """Why a merged splat cannot be trained on; None when it can."""
    if settings.pose_lr or settings.bilateral_lr:
        return "training.pose_lr or bilateral_lr taught each patch cameras or colours of its own"
    if blur is not None and blur != raster.BLUR:
        return f"it is antialiased with a blur of {blur:g} square pixels, which our trainer has not"
    return None


def last_rates(settings: TrainSettings, steps: int, sh_degree: int, blur: float | None) -> TrainSettings:
    """The rates at which training ended, for so many steps without refinement or noise."""
    return replace(
        settings,
        iterations=steps,
        scale_schedule=False,
        sh_degree=sh_degree,
        means_lr=settings.means_lr * settings.means_lr_final,
        means_lr_final=1.0,
        refine_stop=0,
        noise_lr=0.0,
        warmup_steps=steps // WARM_UP,
        checkpoint_every=steps + 1,
        antialiased=blur is not None,
        views_per_step=1,
        depth_weight=0.0,
        random_background=False,
    )


def _train(
    rows: Rows,
    free: NDArray[np.bool_],
    views: Views,
    points: NDArray[np.float64],
    settings: TrainSettings,
    device: str,
    should_stop: Callable[[], bool],
) -> tuple[Rows, float, float]:
    """The rows that are `free`, trained, and how close training views are to the photographs before and after."""
    similarity = normalising(rows[:, :3])
    views = replace(views, viewmats=similarity.apply_viewmats(views.viewmats))
    params, blur = params_of(rows, similarity, device), raster.BLUR if settings.antialiased else None
    black, mask = np.zeros((len(points), 3), np.uint8), torch.from_numpy(free).to(device)
    data = TrainingData(views, similarity.apply(points), black, trained=params, free=mask)
    before = _closeness(params, views, settings.sh_degree, blur)
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(settings, 0.1, device, Path(folder), CACHE_BYTES)
        Training(data, job, lambda event, **values: None).run(should_stop)
    after = _closeness(params, views, settings.sh_degree, blur)
    changed = {name: value[mask] for name, value in params.items()}
    return to_rows(transform(to_splats(changed), similarity)), before, after


def params_of(rows: Rows, similarity: Similarity, device: str) -> Params:
    local = to_training(from_rows(rows), similarity)
    names = ("means", "quats", "scales", "opacities", "sh0", "shN")
    return {name: torch.tensor(getattr(local, name), dtype=torch.float32, device=device) for name in names}


@torch.no_grad()
def _closeness(params: Params, views: Views, sh_degree: int, blur: float | None) -> float:
    """Mean PSNR of some training views, spread evenly."""
    loader, found = ViewLoader(views, params["means"].device, CACHE_BYTES), []
    try:
        for i in np.unique(np.linspace(0, len(views) - 1, min(JUDGED, len(views))).astype(np.int64)):
            view = loader.get(int(i))
            image = render(params, view, sh_degree=sh_degree, antialiased=blur)[0].clamp(0, 1).cpu().numpy()
            mask = None if view.mask is None else view.mask.cpu().numpy()
            found.append(psnr(image, view.image.cpu().numpy(), mask))
    finally:
        loader.close()
    return float(np.mean(found))
