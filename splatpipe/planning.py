"""From a scene to a plan: patches, what was measured of each, and what each is first trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from splatpipe.budget import disk_bytes, predicted, too_many_intersections, within_budget
from splatpipe.config import Config
from splatpipe.errors import ConfigError
from splatpipe.files import read_json
from splatpipe.layout import RunLayout
from splatpipe.machine import usable_cores
from splatpipe.patches.dataset import leads_to, masked_images, normalising_similarity, write_dataset
from splatpipe.patches.partition import Split, split, survey
from splatpipe.patches.patch import Patch, Role
from splatpipe.patches.preflight import Preflight, preflight
from splatpipe.patches.stats import PatchStats, patch_stats
from splatpipe.policy.cap import PatchSize, share_cap
from splatpipe.policy.costs import Size
from splatpipe.policy.init_scaling import FirstRung, first_rung, rung_for
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.findings import Finding
from splatpipe.scene.undistort import needs_undistortion
from splatpipe.splatting.images import SSIM_WINDOW, training_size
from splatpipe.splatting.settings import TrainSettings
from splatpipe.trainers.base import TrainRequest
from splatpipe.trainers.lichtfeld_config import find_profile, read_profile, settings_of

WAITING = 2  # threads more than cores where some wait for the disk

Measured = tuple[Patch, PatchStats, Preflight, Similarity]


@dataclass(frozen=True, eq=False)
class PlannedPatch:
    """One patch with everything that its first attempt needs."""

    patch: Patch
    stats: PatchStats
    preflight: Preflight
    similarity: Similarity
    rung: FirstRung
    skip_cameras: tuple[str, ...]  # image names that see no Gaussian at that rung
    settings: TrainSettings  # schedule scaled, cap shared out
    cameras: tuple[str, ...]  # image names, in the order of `stats.visible`
    fixed: bool = False  # the rung is the user's, not ours

    @property
    def id(self) -> str:
        return self.patch.id

    @property
    def visible(self) -> dict[float, dict[str, int]]:
        """By rung, how many initial Gaussians each camera sees."""
        rows = zip(self.stats.rungs, self.stats.visible.tolist(), strict=True)
        return {rung: dict(zip(self.cameras, counts, strict=True)) for rung, counts in rows}

    @property
    def disk_bytes(self) -> int:
        """About what the patch will take on disk."""
        return disk_bytes(len(self.patch.point_index), self.settings.max_cap)

    @property
    def size(self) -> Size:
        """What its training time depends on."""
        return Size(self.settings.iterations, self.settings.max_cap, self.stats.pixels)

    def at(self, init_scaling: float) -> PlannedPatch:
        """The same patch beginning at another rung."""
        rung = replace(self.rung, init_scaling=init_scaling)
        return replace(self, rung=rung, skip_cameras=self.preflight.blind_at(init_scaling))

    def request(self, layout: RunLayout, attempt: int, config: Config, trainer: str) -> TrainRequest:
        """The request of an attempt that nothing has failed before; the executor's slot adds the device."""
        return TrainRequest(
            patch_id=self.id,
            attempt=attempt,
            trainer=trainer,
            device="cpu",
            dataset=layout.patch(self.id).root,
            out=layout.attempt(self.id, attempt).root,
            similarity=self.similarity,
            init_scaling=self.rung.init_scaling,
            settings=self.settings,
            skip_cameras=self.skip_cameras,
            threads=config.training.threads,
            limits=config.limits,
            health=config.health,
        )

    def to_json(self) -> dict[str, Any]:
        """A row of `split --json`."""
        return {
            "id": self.id,
            "cameras": len(self.patch.camera_index),
            "holdout": len(self.patch.holdout_cameras),
            "points": len(self.patch.points_with(Role.CORE)),
            "extent": self.stats.extent,
            "init_scaling": self.rung.init_scaling,
            "reason": self.rung.reason,
            "skip_cameras": list(self.skip_cameras),
            "max_cap": self.settings.max_cap,
            "predicted": predicted(self.stats, self.settings.max_cap).to_json() | {"disk_bytes": self.disk_bytes},
            "iterations": self.settings.iterations,
            "stats": self.stats.to_json(),
            "preflight": self.preflight.to_json(),
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """All patches of a scene."""

    scene: Scene
    split: Split
    patches: tuple[PlannedPatch, ...]
    budget: tuple[Finding, ...] = ()  # what patching.vram_gb led to

    @property
    def disk_bytes(self) -> int:
        """About what the run will take on disk, undistorted images left out."""
        return sum(planned.disk_bytes for planned in self.patches)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of the split, then of each patch, whose id begins the sentence."""
        of_patches = (
            replace(finding, message=f"{planned.id}: {finding.message}")
            for planned in self.patches
            for finding in planned.preflight.findings
        )
        return (*self.budget, *self.split.findings, *of_patches)

    def to_json(self) -> dict[str, Any]:
        """`split --json`."""
        return {
            "scene": str(self.scene.model_dir),
            "offset": list(self.scene.offset),
            "frame": self.split.frame.to_json(),
            "holdout": [self.scene.names[i] for i in self.split.holdout],
            "patches": [planned.to_json() for planned in self.patches],
            "disk_bytes": self.disk_bytes,
            "findings": [finding.to_json() for finding in self.findings],
        }


def make_plan(
    scene: Scene,
    config: Config,
    profile_folders: tuple[Path, ...] = (),
    known: Split | None = None,
    check: Callable[[], None] = lambda: None,
) -> Plan:
    """Split `scene`, measure its patches, choose each one's rung, cap and schedule. Writes nothing.

    `known` is what `check_plan` gave for the same scene and settings, if it was asked. What `check`, called before
    each patch, raises ends it.
    """
    profile = _profile(config, profile_folders)
    fixed, hyper = _fixed_rung(config, profile), _hyper_parameters(config, profile)
    rungs = sorted({*config.init_scaling.rungs, *([fixed] if fixed else [])})
    patching, hyper, budget = within_budget(scene, config.patching, hyper)
    cut = known or split(scene, patching)

    def measure(patch: Patch) -> Measured:
        check()
        similarity = normalising_similarity(scene, patch)
        stats = patch_stats(
            scene,
            patch,
            similarity,
            init_scaling=rungs[0],
            rungs=rungs,
            trainer=trainer_name(config),
            downscale=config.training.downscale,
            max_width=config.training.max_width,
        )
        return patch, stats, preflight(scene, patch, stats), similarity

    with ThreadPoolExecutor(usable_cores()) as pool:
        measured = list(pool.map(measure, cut.patches))
    extents = {patch.id: stats.extent for patch, stats, _, _ in measured}
    coverages = [stats.coverage_scaling for _, stats, _, _ in measured if stats.coverage_scaling]
    typical = float(np.median(coverages)) if coverages else None
    chosen = replace(config.init_scaling, fixed=fixed)
    choices = first_rung(extents, chosen)
    caps = _caps(scene, cut.patches, hyper.max_cap, config.training.share_cap)
    planned = []
    for one in measured:
        patch, stats, checked, _ = one
        floor = None if fixed else checked.floor
        rung = rung_for(choices[patch.id], floor, stats.coverage_scaling, chosen, typical)
        cameras = tuple(scene.names[i] for i in patch.camera_index)
        decided = _decide(one, rung, replace(hyper, max_cap=caps[patch.id]), cameras)
        planned.append(replace(decided, fixed=fixed is not None))
    return Plan(scene, cut, tuple(planned), budget)


def check_plan(scene: Scene, config: Config, profile_folders: tuple[Path, ...] = ()) -> Split | None:
    """Raise what `make_plan` would raise for these settings and this scene, at a fraction of its cost.

    Gives the split, or None for a scene that is to be undistorted, which shows a little more or less afterwards.
    """
    profile = _profile(config, profile_folders)
    _fixed_rung(config, profile)
    hyper = _hyper_parameters(config, profile)
    _large_enough(scene, hyper)
    patching, _, _ = within_budget(scene, config.patching, hyper)
    if needs_undistortion(scene):
        survey(scene, patching)
        return None
    return split(scene, patching)


def _large_enough(scene: Scene, hyper: TrainSettings) -> None:
    """Raise ConfigError where a photograph would become smaller than the window of SSIM, which needs 11 pixels."""
    sizes = [training_size(int(w), int(h), hyper.downscale, hyper.max_width) for w, h in scene.sizes]
    i = min(range(len(sizes)), key=lambda i: min(sizes[i]), default=None)
    if i is not None and min(sizes[i]) < SSIM_WINDOW:
        raise ConfigError(
            f"training.max_width, training.downscale: {scene.names[i]} ({scene.sizes[i][0]}x{scene.sizes[i][1]}) would "
            f"be trained at {sizes[i][0]}x{sizes[i][1]} pixels; {SSIM_WINDOW} each way are the least"
        )


def write_datasets(plan: Plan, layout: RunLayout, check: Callable[[], None] = lambda: None) -> None:
    """Write every patch that is not on disk yet, or is not what `plan` says, and the map when any was written.

    What `check`, called before each patch, raises ends it.
    """

    def write(planned: PlannedPatch) -> None:
        check()
        place = layout.patch(planned.id)
        write_dataset(plan.scene, planned.patch, place, planned.stats, planned.preflight, planned.similarity)

    missing = [planned for planned in plan.patches if not _on_disk(planned, plan.scene, layout)]
    if not missing and layout.map.is_file():
        return
    with ThreadPoolExecutor(usable_cores() + WAITING) as pool:
        drawn = pool.submit(write_map, plan, layout.map)
        list(pool.map(write, missing))
        drawn.result()


def write_map(plan: Plan, path: Path) -> None:
    """The plan seen from above, as PNG; cameras that are left out are crossed."""
    from splatpipe.patches.map import draw_map

    draw_map(plan.scene, plan.split, path, {name for planned in plan.patches for name in planned.skip_cameras})


def _on_disk(planned: PlannedPatch, scene: Scene, layout: RunLayout) -> bool:
    try:
        record = read_json(layout.patch(planned.id).patch_json)
    except (OSError, ValueError):
        return False
    wanted = planned.patch.to_json(scene)
    if record.get("masks", []) != masked_images(scene, planned.patch):
        return False
    if not leads_to(scene, planned.patch, layout.patch(planned.id)):
        return False
    similarity = {"scale": planned.similarity.scale, "translation": list(planned.similarity.translation)}
    return {key: record.get(key) for key in wanted} == wanted and record.get("similarity") == similarity


def trainer_name(config: Config) -> Literal["gsplat", "lichtfeld"]:
    """The trainer that patches begin with."""
    return "lichtfeld" if config.training.trainer == "lichtfeld" else "gsplat"


def _decide(measured: Measured, rung: FirstRung, hyper: TrainSettings, cameras: tuple[str, ...]) -> PlannedPatch:
    patch, stats, checked, similarity = measured
    skip = checked.blind_at(rung.init_scaling)
    images = len(patch.camera_index) - len(skip)
    many = too_many_intersections(predicted(stats, hyper.max_cap))
    checked = replace(checked, findings=(*checked.findings, *many))
    return PlannedPatch(patch, stats, checked, similarity, rung, skip, hyper.scaled(images), cameras)


def _profile(config: Config, folders: tuple[Path, ...]) -> dict[str, Any]:
    """What training.lfs_config says; empty without one."""
    name = config.training.lfs_config
    return {} if name is None else read_profile(find_profile(name, folders))


def _hyper_parameters(config: Config, profile: dict[str, Any]) -> TrainSettings:
    """The user's settings; the profile's where the user has left the default."""
    mine, default = config.training.hyper_parameters(), TrainSettings()
    given = settings_of(profile).items()
    return replace(mine, **{name: value for name, value in given if getattr(mine, name) == getattr(default, name)})


def _fixed_rung(config: Config, profile: dict[str, Any]) -> float | None:
    """The rung that the user has decided on, by init_scaling.fixed or by a profile."""
    value = profile.get("init_scaling")
    if value == 0:
        raise ConfigError(f"training.lfs_config ({config.training.lfs_config}): init_scaling must be above 0")
    if None not in (value, config.init_scaling.fixed) and value != config.init_scaling.fixed:
        raise ConfigError(
            f"init_scaling.fixed is {config.init_scaling.fixed}, but training.lfs_config "
            f"({config.training.lfs_config}) says {value}; give one of the two"
        )
    return value if value is not None else config.init_scaling.fixed


def _caps(scene: Scene, patches: Sequence[Patch], max_cap: int, share: bool) -> dict[str, int]:
    if not share:
        return {patch.id: max_cap for patch in patches}
    sizes = {}
    for patch in patches:
        core = patch.points_with(Role.CORE)
        low, high = np.quantile(patch.frame.apply(scene.points[core]), (0.01, 0.99), axis=0)
        sizes[patch.id] = PatchSize(float(np.prod((high - low)[:2])), len(core))
    return share_cap(sizes, max_cap)
