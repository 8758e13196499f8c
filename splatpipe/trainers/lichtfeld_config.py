"""The configuration file of one LichtFeld run: always complete, so that every build accepts it.

Builds differ in which keys they require and in what they assume for the others (trainers.md, A2): a partial
file ends some with "Error parsing optimization parameters" and silently changes the training of others.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splatpipe.errors import ConfigError
from splatpipe.files import read_json
from splatpipe.splatting.settings import TrainSettings
from splatpipe.trainers.lichtfeld_options import WAYS

PROFILE_FOLDER = "lfs_configs"
MEANS_LR_SHARE = 0.1  # LFS ships means_lr 1.6e-5 where gsplat has 1.6e-4; both multiply by their scene scale

# LFS key to the field of TrainSettings that it stands for.
FIELDS = {
    "iterations": "iterations",
    "means_lr": "means_lr",
    "shs_lr": "sh0_lr",
    "opacity_lr": "opacities_lr",
    "scaling_lr": "scales_lr",
    "rotation_lr": "quats_lr",
    "lambda_dssim": "ssim_lambda",
    "min_opacity": "min_opacity",
    "refine_every": "refine_every",
    "start_refine": "refine_start",
    "stop_refine": "refine_stop",
    "sh_degree": "sh_degree",
    "sh_degree_interval": "sh_degree_interval",
    "opacity_reg": "opacity_reg",
    "scale_reg": "scale_reg",
    "init_opacity": "init_opacity",
    "max_cap": "max_cap",
}
# Settings that reach LFS by its command line or its data set; whatever else is not above has no effect on it.
BY_FLAG = frozenset({"downscale", "max_width", "image_cache_gb"})
IGNORED = frozenset(f.name for f in dataclasses.fields(TrainSettings)) - {*FIELDS.values(), *BY_FLAG, *WAYS}
# Keys that some build needs and that splatpipe has no setting for.
CONSTANTS: dict[str, Any] = {
    "grad_threshold": 0.0002,
    "init_scaling": 0.1,
    "eval_steps": [],
    "enable_eval": False,
    "enable_save_eval_images": False,
    "strategy": "mcmc",
}
# What a profile may not change, because splatpipe would then misread what the run did.
FIXED = {"strategy": ("mcmc",), "steps_scaler": (0, 1), "random": (False,), "enable_sparsity": (False,)}


def find_profile(name: str, near: Sequence[Path]) -> Path:
    """The profile `name` under an `lfs_configs/` folder beside one of `near`; `ConfigError` when there is none."""
    places = [folder / PROFILE_FOLDER / name for folder in near]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(str(place) for place in places)
        raise ConfigError(f"training.lfs_config: no profile {name!r} (looked at {looked})")
    return path


def read_profile(path: Path) -> dict[str, Any]:
    """A profile as a flat object; the form `{"optimization": {...}}` is accepted as well.

    Raises ConfigError naming the file and the key for anything LFS could not use.
    """
    try:
        data = read_json(path)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not valid JSON ({error.msg}).") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    inner = data.get("optimization", data) if isinstance(data, dict) else data
    if not isinstance(inner, dict):
        raise ConfigError(f'{path}: must hold one JSON object such as {{"init_scaling": 0.3}}.')
    _check(inner, path)
    return inner


def _check(profile: Mapping[str, Any], path: Path) -> None:
    for key in [*FIELDS, "init_scaling", "grad_threshold"]:
        value = profile.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ConfigError(f"{path}: {key} must be a number, zero or more, not {value!r}.")
        if key in FIELDS and isinstance(getattr(TrainSettings(), FIELDS[key]), int) and value != int(value):
            raise ConfigError(f"{path}: {key} must be a whole number, not {value!r}.")
    for key, allowed in FIXED.items():
        if key in profile and profile[key] not in allowed:
            choices = " or ".join(json.dumps(value) for value in allowed)
            raise ConfigError(f"{path}: {key} must be {choices} under splatpipe, not {json.dumps(profile[key])}.")


def settings_of(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of TrainSettings that a profile speaks of, by name, in splatpipe's meaning."""
    found = {field: profile[key] for key, field in FIELDS.items() if key in profile}
    if "means_lr" in found:
        found["means_lr"] = float(f"{found['means_lr'] / MEANS_LR_SHARE:.12g}")
    whole = {f.name for f in dataclasses.fields(TrainSettings) if isinstance(f.default, int)}
    return {name: int(value) if name in whole else float(value) for name, value in found.items()}


def complete(profile: Mapping[str, Any], settings: TrainSettings, init_scaling: float) -> dict[str, Any]:
    """The whole configuration of a run.

    First wins: the attempt's `init_scaling`; those of its settings that are not splatpipe's defaults (somebody
    asked for them: the user, a remedy, the schedule's scaling); the profile; the defaults. Keys of the profile
    that we do not know are kept.
    """
    if settings.sh_degree == 0:
        raise ConfigError("training.sh_degree: LichtFeld Studio crashes with 0; use 1, or training.trainer: gsplat.")
    defaults = TrainSettings()
    config = {**CONSTANTS, **_values(defaults), **profile}
    changed = {key for key, field in FIELDS.items() if getattr(settings, field) != getattr(defaults, field)}
    config.update({key: value for key, value in _values(settings).items() if key in changed})
    for key in _WHOLE:
        config[key] = int(config[key])
    config["init_scaling"] = float(init_scaling)
    steps = config.get("save_steps", [])
    earlier = {int(step) for step in steps if step < config["iterations"]} if isinstance(steps, list) else set()
    if "save_steps" in profile and changed & {"iterations"}:
        earlier = set()  # its steps belonged to another length of run
    config["save_steps"] = sorted(earlier | {config["iterations"]})
    return config


def _values(settings: TrainSettings) -> dict[str, Any]:
    values = {key: getattr(settings, field) for key, field in FIELDS.items()}
    values["means_lr"] = float(f"{settings.means_lr * MEANS_LR_SHARE:.12g}")
    return values


_WHOLE = tuple(key for key, field in FIELDS.items() if isinstance(getattr(TrainSettings(), field), int))


def lfs_scaling(relative: float, distance: float) -> float:
    """LFS's init_scaling s for initial Gaussians of `relative` times the neighbour distance, gsplat's meaning.

    LFS makes sigma = s * sqrt(d), so s = relative * sqrt(d) (trainers.md, A8). `distance` is the median
    distance to the nearest points in training coordinates; ValueError unless it is positive.
    """
    return relative * math.sqrt(_positive(distance))


def relative_scaling(init_scaling: float, distance: float) -> float:
    """The inverse of `lfs_scaling`: initial size over neighbour distance for LFS's `init_scaling`."""
    return init_scaling / math.sqrt(_positive(distance))


def _positive(distance: float) -> float:
    if not (math.isfinite(distance) and distance > 0):
        raise ValueError(f"a neighbour distance is a positive number, not {distance!r}")
    return distance
