"""The one training loop: gsplat's `mcmc` preset on whichever rasteriser the device has.

    forward -> loss -> backward -> Adam -> noise -> every refine_every steps: relocate and grow

It differs from gsplat's example trainer in its guards: a camera that sees no Gaussian costs a step and
nothing else, and a training that cannot recover ends at once with the class of its failure.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.splatting import checkpoint as checkpoints
from splatpipe.splatting.adam import Adam
from splatpipe.splatting.extras import Extras, Look
from splatpipe.splatting.guards import COLLAPSE_SHARE, EXPLOSION_SHARE, FLUNG_FACTOR, MAX_INTERSECTIONS
from splatpipe.splatting.loss import photometric_loss
from splatpipe.splatting.mcmc import refine
from splatpipe.splatting.model import Params, initial_params
from splatpipe.splatting.noise import add_noise_
from splatpipe.splatting.raster import BLUR, rasterization
from splatpipe.splatting.settings import OPTIONS, TrainSettings
from splatpipe.splatting.views import DecodedViews, View, ViewLoader, Views

Report = Callable[..., None]
"""report(event, **values): one event of docs/contracts.md."""

PARAMETER_CHECK_EVERY = 100  # steps between full checks for non-finite parameters


class TrainingFailure(Exception):
    """A guard ended the training. `failure` is a failure class by name, `step` the finished steps."""

    def __init__(self, failure: str, message: str, step: int) -> None:
        super().__init__(message)
        self.failure, self.step = failure, step


class Stopped(Exception):
    """The training was asked to stop; a checkpoint has been written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What one training sees, in training coordinates: views, points (P, 3), colors (P, 3) RGB."""

    views: Views
    points: NDArray[np.float64]
    colors: NDArray[np.uint8]
    observed: tuple[NDArray[np.int64], ...] | None = None  # for each view the points it observes; for depth_weight
    decoded: DecodedViews | None = None  # photographs that are in memory already
    trained: Params | None = None  # Gaussians to go on with, of the full SH degree, instead of new ones at the points
    free: torch.Tensor | None = None  # (N,) bool, which of those may change; their number must stay; None: all


@dataclass(frozen=True)
class TrainingJob:
    """Everything else that decides the result, so that the same job gives the same splat."""

    settings: TrainSettings  # already scaled to the number of images
    init_scaling: float
    device: str
    checkpoints: Path
    cache_bytes: int
    earlier: tuple[Path, ...] = ()  # checkpoints of earlier attempts at the same job, the latest first

    def key(self, data: TrainingData) -> str:
        """Identifies the job and its data; a checkpoint of another one is never continued."""
        settings = asdict(self.settings) | {"checkpoint_every": 0, "image_cache_gb": 0}
        settings = {k: v for k, v in settings.items() if k not in OPTIONS} | self.settings.options()
        facts = [settings, self.init_scaling, data.views.names, len(data.points)]
        if self.settings.depth_weight and data.observed is not None:
            facts.append([len(index) for index in data.observed])
        if any(data.views.masks):
            facts.append([mask is not None for mask in data.views.masks])
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(data.points).tobytes())
        return digest.hexdigest()


@dataclass
class Health:
    """Signals that outlive the process: they are stored in checkpoints and in the attempt."""

    blind_cameras: dict[str, int] = field(default_factory=dict)  # image name -> steps it was skipped
    relocated_shares: list[float] = field(default_factory=list)
    loss: float | None = None
    flung_share: float = 0.0
    clipped: dict[str, int] = field(default_factory=dict)  # parameter group -> steps its gradient was clipped


@dataclass(frozen=True, eq=False)
class Seen:
    """What one step saw, before it moved anything: image (H, W, 3), visible (N,) bool, Gaussian-tile pairs.

    Of several views in one step: the last one's image, what any of them saw, and the most pairs.
    """

    view: View
    image: torch.Tensor
    visible: torch.Tensor
    intersections: int


class Observer(Protocol):
    """Watches a training from inside. It changes nothing, and may raise `TrainingFailure` to end it."""

    def after_step(self, training: Training, seen: Seen | None) -> None:
        """Called after each step, before its refinement; gradients are still there. None: the camera saw nothing."""
        ...


def camera_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order in which an epoch of training takes `count` cameras."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def scene_scale(views: Views) -> float:
    """1.1 x the largest distance of a camera to the mean camera (gsplat's Parser); 1 for a single camera."""
    rotations, translations = views.viewmats[:, :3, :3], views.viewmats[:, :3, 3]
    centers = -np.einsum("cji,cj->ci", rotations, translations)
    radius = float(np.linalg.norm(centers - centers.mean(0), axis=1).max())
    return 1.1 * radius if radius > 1e-6 else 1.0


def render(
    params: Params,
    view: View,
    *,
    sh_degree: int,
    background: torch.Tensor | None = None,
    antialiased: float | None = None,
    moved: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor, torch.Tensor]:
    """Image (H, W, 3), rasteriser's meta, and the activated scales and opacities it was made from.

    `background` (3,) is the colour behind the Gaussians, black when None; `antialiased` the blur in square pixels
    that opacities make up for, None when they do not; `moved` the means, quats and colours to be seen in the place
    of the parameters' own (`poses.Poses.moved`).
    """
    means, quats = moved[:2] if moved else (params["means"], params["quats"])
    scales, opacities = torch.exp(params["scales"]), torch.sigmoid(params["opacities"])
    images, _, meta = rasterization(
        means,
        quats,
        scales,
        opacities,
        moved[2] if moved else (params["sh0"], params["shN"]),
        view.viewmat,
        view.K,
        view.width,
        view.height,
        sh_degree=None if moved else sh_degree,
        backgrounds=None if background is None else background[None],
        eps2d=BLUR if antialiased is None else antialiased,
        rasterize_mode="classic" if antialiased is None else "antialiased",
    )
    return images[0], meta, scales, opacities


class Training:
    """One training from its first (or its checkpoint's) step to its last."""

    def __init__(self, data: TrainingData, job: TrainingJob, report: Report) -> None:
        self.data, self.job, self.settings, self.report = data, job, job.settings, report
        self.observer: Observer | None = None
        self.device = torch.device(job.device)
        if self.device.type == "cuda":
            # SSIM's variances are small differences of large numbers; TensorFloat-32, cuDNN's default, has 10 bits.
            torch.backends.cudnn.allow_tf32 = False
        self.key = job.key(data)
        self.step = 0
        self.health = Health()
        self._blind_in_a_row = 0
        self.scene_scale = scene_scale(data.views)
        self.extras = Extras(self.settings, data.views, data.points, data.observed, self.scene_scale, self.device)
        center = np.median(data.points, axis=0)
        self._center = torch.tensor(center, dtype=torch.float32, device=self.device)
        self.radius = float(np.linalg.norm(data.points - center, axis=1).max()) or 1.0
        self.params: Params = data.trained or initial_params(
            data.points,
            data.colors,
            init_scaling=job.init_scaling,
            init_opacity=self.settings.init_opacity,
            sh_degree=self.settings.sh_degree,
            max_cap=self.settings.max_cap,
            seed=self.settings.seed,
            device=self.device,
        )
        self.resumed_folder: Path | None = None  # of the checkpoint that it goes on from
        self.resumed_from = self._resume()

    def run(self, should_stop: Callable[[], bool]) -> Params:
        """Train to the end and give the parameters back.

        Raises `TrainingFailure` when a guard ends it, `Stopped` (with a checkpoint on disk) when
        `should_stop` says so, `SceneError` for a photograph that cannot be read.
        """
        loader = ViewLoader(self.data.views, self.device, self.job.cache_bytes, self.data.decoded)
        clock, fresh = _Clock(self.step), True
        try:
            while self.step < self.settings.iterations:
                if should_stop():
                    self.save()
                    raise Stopped(self.step)
                cameras = self._cameras(self.step)
                ahead = self._cameras(self.step + 1) if self.step + 1 < self.settings.iterations else []
                for index in cameras[1:] + ahead:
                    loader.prefetch(index)
                begun = time.monotonic()
                views = [loader.get(index) for index in cameras]
                decoded = time.monotonic()
                seen = self._train_step(views)
                self.step += 1
                if fresh:
                    self._report_first(decoded - begun, time.monotonic() - decoded)
                    fresh = False
                if self.observer:
                    self.observer.after_step(self, seen)
                self._after_step()
                if clock.due() or self.step == self.settings.iterations:
                    self._report_step(clock)
            self._check_end()
            return self.params
        finally:
            loader.close()

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        parts = dict(self.params), self.optimizer.state_dict(), asdict(self.health), self.extras.state_dict()
        state = checkpoints.Checkpoint(self.step, self.key, *parts)
        path = checkpoints.save(self.job.checkpoints, state)
        self.report("checkpoint", step=self.step, path=path.name)

    def _resume(self) -> int | None:
        """Set up the optimiser, and continue from the latest checkpoint if there is one; the step it was made at."""
        found = None
        for folder in (self.job.checkpoints, *self.job.earlier):
            if found := checkpoints.load_latest(folder, self.key, self.device):
                self.resumed_folder = folder
                break
        if found:
            self.step, self.health = found.step, Health(**found.health)
            self.params.update(found.params)
            self.extras.load_state_dict(found.options)
        self.optimizer = Adam(self.params, self._learning_rates(), _betas(self.settings.views_per_step))
        if found:
            self.optimizer.load_state_dict(found.adam)
        return found.step if found else None

    def _learning_rates(self) -> dict[str, float]:
        s = self.settings
        rates = {
            "means": s.means_lr * self.scene_scale * self._decay(),
            "scales": s.scales_lr,
            "quats": s.quats_lr,
            "opacities": s.opacities_lr,
            "sh0": s.sh0_lr,
            "shN": s.shN_lr,
        }
        # Gradients of several views average out noise, so that longer steps are safe: by the root, as gsplat does.
        factor = math.sqrt(s.views_per_step) * self._warm()
        return {name: rate * factor for name, rate in rates.items()}

    def _decay(self) -> float:
        return self.settings.means_lr_final ** (self.step / self.settings.iterations)

    def _warm(self) -> float:
        return min(1.0, (self.step + 1) / max(self.settings.warmup_steps, 1))

    def _cameras(self, step: int) -> list[int]:
        """Cameras of a step. They come in a new random order each epoch, a function of (seed, epoch) only."""
        count, cameras = self.settings.views_per_step, []
        for draw in range(count * step, count * (step + 1)):
            epoch, place = divmod(draw, len(self.data.views))
            cameras.append(int(camera_order(self.settings.seed, epoch, len(self.data.views))[place]))
        return cameras

    def sh_degree(self, step: int) -> int:
        """Of the colour that is trained in the step after `step`."""
        if self.data.trained:
            return self.settings.sh_degree
        return min(step // self.settings.sh_degree_interval, self.settings.sh_degree)

    def distances(self) -> torch.Tensor:
        """(N,) of the Gaussians from the median of the points."""
        return (self.params["means"].detach() - self._center).norm(dim=1)

    def flung_share(self) -> float:
        """Of all Gaussians, those that have left the scene."""
        return float((self.distances() > FLUNG_FACTOR * self.radius).float().mean())

    def _train_step(self, views: Sequence[View]) -> Seen | None:
        """One step over `views`; None when none of their cameras sees a Gaussian."""
        s = self.settings
        for value in self.params.values():
            value.requires_grad_(True)
            value.grad = None
        degree = self.sh_degree(self.step)
        seen: Seen | None = None
        losses = []
        for place, view in enumerate(views):
            found = self._backward(view, degree, place)
            if found is not None:
                losses.append(found[0])
                seen = found[1] if seen is None else _together(seen, found[1])
        if seen is None:
            return None
        self.health.loss = sum(losses) / len(losses)
        if self.extras.clip:
            for name in self.extras.clip(self.params):
                self.health.clipped[name] = self.health.clipped.get(name, 0) + 1
        with torch.no_grad():
            self.extras.step(self._decay() * self._warm())
            self.optimizer.lrs.update(self._learning_rates())
            self.optimizer.step(self._movable(seen), active={"shN": (degree + 1) ** 2 - 1})
            add_noise_(
                self.params["means"],
                self.params["quats"],
                self.params["scales"],
                self.params["opacities"],
                lr=self.optimizer.lrs["means"] * s.noise_lr,
                seed=s.seed,
                step=self.step,
            )
        return seen

    def _movable(self, seen: Seen) -> torch.Tensor | None:
        """(N,) bool, the Gaussians that this step's Adam touches; None for all."""
        free = self.data.free
        if not self.settings.visible_only:
            return free
        return seen.visible if free is None else seen.visible & free

    def _backward(self, view: View, degree: int, place: int) -> tuple[float, Seen] | None:
        """Add the gradients of one view, the `place`-th of the step: its loss, and what it saw; None when blind."""
        s = self.settings
        look = self.extras.look(self.params, view, degree)
        image, meta, scales, opacities = self._render(view, degree, self._background(place), look)
        visible = (meta["radii"][0] > 0).all(-1)
        if not bool(visible.any()):
            self._skip_blind(view.name)
            return None
        self._blind_in_a_row = 0
        image = self.extras.shown(image, view, look)
        loss = photometric_loss(image, view.image, s.ssim_lambda, view.mask)
        loss = loss + s.opacity_reg * opacities.mean() + s.scale_reg * scales.mean()
        more = self.extras.cost(look, view, self.params, scales, opacities)
        loss = loss if more is None else loss + more
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingFailure("nan_divergence", f"the loss is {value} (camera {view.name})", self.step)
        (loss / s.views_per_step).backward()  # type: ignore[no-untyped-call]
        return value, Seen(view, image.detach(), visible, meta["n_isects"])

    def _background(self, place: int) -> torch.Tensor | None:
        """The colour behind the Gaussians, a function of (seed, step, place); None for black."""
        if not self.settings.random_background:
            return None
        rng = np.random.default_rng((self.settings.seed, self.step, place, 1))
        return torch.tensor(rng.random(3), dtype=torch.float32, device=self.device)

    def _render(
        self, view: View, degree: int, background: torch.Tensor | None, look: Look
    ) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor, torch.Tensor]:
        try:
            options = {"background": background, "antialiased": self.extras.blur, "moved": look.moved}
            rendered = render(self.params, view, sh_degree=degree, **options)  # type: ignore[arg-type]
        except MemoryError as error:
            raise TrainingFailure("oom_raster", f"camera {view.name}: {error}", self.step) from error
        count = rendered[1]["n_isects"]
        if count > MAX_INTERSECTIONS:
            message = f"camera {view.name}: {count} tile intersections are close to what 32 bits can count"
            raise TrainingFailure("int_overflow", message, self.step)
        return rendered

    def _skip_blind(self, name: str) -> None:
        """Count a camera that sees no Gaussian; when a whole epoch of them came in a row, training is over."""
        if name not in self.health.blind_cameras:
            self.report("blind_camera", step=self.step, image=name)
        self.health.blind_cameras[name] = self.health.blind_cameras.get(name, 0) + 1
        self._blind_in_a_row += 1
        if self._blind_in_a_row < len(self.data.views):
            return
        if self._dead() > COLLAPSE_SHARE * len(self.params["means"]):
            self._fail_collapsed()
        raise TrainingFailure("data_error", "no camera of this patch sees any Gaussian", self.step)

    def _dead(self) -> int:
        return int((torch.sigmoid(self.params["opacities"].detach()) <= self.settings.min_opacity).sum())

    def _fail_collapsed(self) -> NoReturn:
        dead, count = self._dead(), len(self.params["means"])
        floor = self.settings.min_opacity
        message = f"{dead} of {count} Gaussians have faded to opacity {floor:g} or less, {count - dead} are alive"
        raise TrainingFailure("mcmc_collapse", message, self.step)

    def _after_step(self) -> None:
        s = self.settings
        if s.refine_start < self.step < s.refine_stop and self.step % s.refine_every == 0:
            self._refine()
        if self.step % PARAMETER_CHECK_EVERY == 0:
            self._check_finite()
        if self.step % s.checkpoint_every == 0 and self.step < s.iterations:
            self._check_finite()
            self.save()

    def _refine(self) -> None:
        s = self.settings
        self._check_finite()
        count = len(self.params["means"])
        if self._dead() > COLLAPSE_SHARE * count:
            self._fail_collapsed()
        done = refine(
            self.params,
            self.optimizer,
            min_opacity=s.min_opacity,
            growth=s.growth,
            max_cap=s.max_cap,
            generator=torch.Generator().manual_seed(s.seed * 1_000_003 + self.step),
        )
        self.health.relocated_shares.append(round(done.relocated / count, 4))
        self.report(
            "refine", step=self.step, relocated=done.relocated, added=done.added, gaussians=len(self.params["means"])
        )

    def _check_finite(self) -> None:
        for name, value in self.params.items():
            bad = int((~torch.isfinite(value.detach())).sum())
            if bad:
                raise TrainingFailure("nan_divergence", f"{bad} values of {name} are not finite", self.step)

    def _check_end(self) -> None:
        self._check_finite()
        self.health.flung_share = round(self.flung_share(), 4)
        if self.health.flung_share > EXPLOSION_SHARE:
            message = f"{self.health.flung_share:.0%} of the Gaussians lie more than {FLUNG_FACTOR:g} scene radii away"
            raise TrainingFailure("explosion", message, self.step)

    def _report_first(self, decoding: float, seconds: float) -> None:
        """What the first step of this process waited for: photographs, and kernels that load at their first use."""
        self.report("first_step", step=self.step, decoding=round(decoding, 3), seconds=round(seconds, 3))

    def _report_step(self, clock: _Clock) -> None:
        count = len(self.params["means"])
        self.report(
            "step",
            step=self.step,
            total=self.settings.iterations,
            loss=self.health.loss,
            gaussians=count,
            alive=count - self._dead(),
            steps_per_s=round(clock.rate(self.step), 2),
        )


def _betas(views: int) -> tuple[float, float]:
    """Adam's memory in views rather than in steps: the same for any number of views in one step (as gsplat)."""
    return 1 - views * (1 - 0.9), 1 - views * (1 - 0.999)


def _together(a: Seen, b: Seen) -> Seen:
    return Seen(b.view, b.image, a.visible | b.visible, max(a.intersections, b.intersections))


class _Clock:
    """Says once a second that a report is due, and how fast the steps since the last one were."""

    def __init__(self, step: int) -> None:
        self._step, self._time = step, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._time >= 1.0

    def rate(self, step: int) -> float:
        now = time.monotonic()
        steps, seconds = step - self._step, now - self._time
        self._step, self._time = step, now
        return steps / max(seconds, 1e-9)
