"""What a series of health signals means: pure rules, each with a threshold, a sentence and a source.

Non-finite values, a collapse at a refinement and the state at the end are guarded by `splatting/loop.py`; the
rules here see the way there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import fmean
from typing import Any

from splatpipe.failures.classes import FailureClass
from splatpipe.health.sample import Sample, Series
from splatpipe.health.settings import HealthSettings
from splatpipe.splatting.guards import COLLAPSE_SHARE


class Severity(StrEnum):
    NOTE = "note"
    WARNING = "warning"
    STOP = "stop"


@dataclass(frozen=True)
class Verdict:
    """What a rule found, at the step where it was first seen."""

    rule: str
    severity: Severity
    step: int
    message: str
    source: str
    failure: FailureClass | None = None  # of severity stop: the class that has the remedy

    def to_json(self) -> dict[str, Any]:
        """The keys of a `verdict` event (docs/contracts.md)."""
        data = asdict(self)
        return {"class" if key == "failure" else key: value for key, value in data.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_json`; further keys count for nothing."""
        failure = FailureClass(data["class"]) if data["class"] else None
        severity = Severity(data["severity"])
        return cls(data["rule"], severity, data["step"], data["message"], data["source"], failure)


@dataclass(frozen=True)
class Rule:
    """`find` gives the sentence when the newest sample completes the pattern, else None."""

    name: str
    severity: Severity
    source: str
    find: Callable[[Series, HealthSettings], str | None]
    failure: FailureClass | None = None


def judge(series: Series, settings: HealthSettings) -> list[Verdict]:
    """The verdicts that the newest sample of `series` gives rise to, those that were given before among them."""
    if not series.samples:
        return []
    step = series.samples[-1].step
    found = [(rule, rule.find(series, settings)) for rule in RULES]
    return [Verdict(r.name, r.severity, step, text, r.source, r.failure) for r, text in found if text is not None]


def _death_spiral(series: Series, settings: HealthSettings) -> str | None:
    last = series.relocated[-3:]
    if len(last) < 3 or fmean(last) <= settings.relocated_stop:
        return None
    shares = ", ".join(f"{share:.0%}" for share in last)
    return f"death spiral: {shares} of the Gaussians were dead at the last three refinements"


def _relocation(series: Series, settings: HealthSettings) -> str | None:
    if not series.relocated or series.relocated[-1] <= settings.relocated_warn:
        return None
    rises = series.relocated[-4:]
    rising = len(rises) == 4 and all(a < b for a, b in pairwise(rises))
    trend = ", and the share has risen three refinements in a row" if rising else ""
    return f"{series.relocated[-1]:.0%} of the Gaussians were dead at the last refinement{trend}"


def _sudden_collapse(series: Series, settings: HealthSettings) -> str | None:
    """The alive share, or the count, falls in one sample and the next one shows that it stays there."""
    for name, what in (("alive_share", "the alive share"), ("gaussians", "the number of Gaussians")):
        values = [getattr(sample, name) for sample in series.samples[-3:]]
        if len(values) < 3 or None in values:
            continue
        before, fallen, now = values
        if max(fallen, now) < settings.alive_fall * before:
            shown = [f"{value:.0%}" if name == "alive_share" else str(value) for value in (before, fallen)]
            step = series.samples[-2].step
            return f"collapse: {what} fell from {shown[0]} to {shown[1]} by step {step} and did not recover"
    return None


def _early_death(series: Series, settings: HealthSettings) -> str | None:
    """Before anything is relocated nothing healthy dies: initial opacities lie far above the floor."""
    last = [1.0 if sample.alive_share is None else sample.alive_share for sample in series.samples[-2:]]
    if series.relocated or len(last) < 2 or max(last) >= settings.early_alive:
        return None
    return (
        f"collapse: {1 - last[-1]:.0%} of the Gaussians have died before the first refinement; opacities fall faster "
        "than the cameras that see them can hold them"
    )


def _faded(series: Series, settings: HealthSettings) -> str | None:
    last = [1.0 if sample.alive_share is None else sample.alive_share for sample in series.samples[-2:]]
    if len(last) < 2 or max(last) >= 1 - COLLAPSE_SHARE:
        return None
    return f"collapse: only {last[-1]:.0%} of the Gaussians are alive"


def _faint(series: Series, settings: HealthSettings) -> str | None:
    now = series.samples[-1]
    if now.opacity_mean is None or now.opacity_mean >= settings.opacity_low:
        return None
    return f"the mean opacity is {now.opacity_mean:.3f}; {now.floor_share or 0:.0%} of the Gaussians are near the floor"


def _exploded(series: Series, settings: HealthSettings) -> str | None:
    """Dead Gaussians drift away by their noise: that is a collapse, and has another remedy."""
    last = series.samples[-2:]
    flung = [sample.flung_share or 0.0 for sample in last]
    alive = last[-1].alive_share
    if len(last) < 2 or min(flung) <= settings.flung_stop or (alive is not None and alive < 0.5):
        return None
    return f"explosion: {flung[-1]:.0%} of the Gaussians have left the scene"


def _flung(series: Series, settings: HealthSettings) -> str | None:
    share = series.samples[-1].flung_share
    if share is None or share <= settings.flung_warn:
        return None
    return f"{share:.0%} of the Gaussians lie far outside the scene"


def _wide(series: Series, settings: HealthSettings) -> str | None:
    sigmas = series.samples[-1].sigmas
    if len(sigmas) < 4 or sigmas[1] is None or sigmas[3] is None:
        return None
    if sigmas[3] > settings.sigma_warn:
        return f"one Gaussian in a hundred is wider than {sigmas[3]:.2g} scene radii"
    if sigmas[1] > settings.median_sigma_warn:
        return f"half of the Gaussians are wider than {sigmas[1]:.2g} scene radii"
    return None


def _units(series: Series, settings: HealthSettings) -> str | None:
    scale, (low, high) = series.scene_scale, settings.scene_scale
    if scale is None or low <= scale <= high:
        return None
    return (
        f"the cameras reach {scale:.3g} units from their middle, usual are {low:g} to {high:g}: the data set is not "
        "normalised, and rates and regularisers are made for one that is"
    )


def _unnormalised(series: Series, settings: HealthSettings) -> str | None:
    """Noise on positions grows with the cube of the units: Gaussians leave the scene one by one."""
    farthest, why = [sample.farthest or 0.0 for sample in series.samples[-2:]], _units(series, settings)
    if why is None or len(farthest) < 2 or min(farthest) <= settings.far_stop:
        return None
    return f"Gaussians leave the scene, the farthest to {farthest[-1]:.3g} radii: {why}; split again"


def _blind_camera(series: Series, settings: HealthSettings) -> str | None:
    """Once every camera has had its turn, and before the first refinement: beginning anew costs next to nothing."""
    if not settings.blind_stop or not series.blind or series.rounds < 1 or series.relocated:
        return None
    return f"{_sees_nothing(series)} from the start; it teaches nothing, and LichtFeld Studio would die of it"


def _blind(series: Series, settings: HealthSettings) -> str | None:
    if not series.blind or _blind_camera(series, settings):
        return None
    return f"{_sees_nothing(series)}; such steps are lost, and other trainers die of it"


def _sees_nothing(series: Series) -> str:
    count = len(series.blind)
    see = "camera sees" if count == 1 else "cameras see"
    return f"{count} {see} no Gaussian ({', '.join(series.blind[:3])}{', ...' if count > 3 else ''})"


def _diverging(series: Series, settings: HealthSettings) -> str | None:
    losses = _losses(series)
    if len(losses) < 4 or min(losses[-2:]) <= settings.loss_rise * min(losses[:-2]):
        return None
    return f"divergence: the median loss rose from {min(losses[:-2]):.3g} to {losses[-1]:.3g}"


def _dormant(series: Series, settings: HealthSettings) -> str | None:
    last = series.samples[-2:]
    groups = [name for name in last[-1].quiet if len(last) == 2 and all(_quiet(s, name, settings) for s in last)]
    if not groups:
        return None
    return f"dormant: {', '.join(groups)} no longer learn (share of visible Gaussians without gradient, and its norm)"


def _quiet(sample: Sample, name: str, settings: HealthSettings) -> bool:
    norm = sample.gradients.get(name)
    if norm is None or name not in sample.quiet:
        return False
    return sample.quiet[name] > settings.dormant_share and norm < settings.dormant_gradient


def _no_progress(series: Series, settings: HealthSettings) -> str | None:
    losses = _losses(series)
    if len(losses) < settings.patience or min(losses[1:]) < (1 - settings.progress) * losses[0]:
        return None
    return f"no progress: the median loss is {losses[-1]:.3g} and began at {losses[0]:.3g}"


def _plateau(series: Series, settings: HealthSettings) -> str | None:
    losses = _losses(series)
    half = settings.patience // 2
    if len(losses) < 2 * settings.patience:
        return None
    before, after = fmean(losses[-2 * half : -half]), fmean(losses[-half:])
    if before - after > settings.plateau * before:
        return None
    return f"plateau: the loss has not fallen over the last {2 * half} samples (median {losses[-1]:.3g})"


def _linear(series: Series, settings: HealthSettings) -> str | None:
    """Healthy training falls fast, then slower. A second half that falls as much as the first is a slow drift.

    Small Gaussians grow by at most scales_lr a step until they touch: meanwhile the loss falls in a line.
    """
    losses = [s.loss for s in series.samples if s.loss is not None and s.step > settings.slow_start]
    if len(losses) < 2 * settings.patience:
        return None
    width = max(len(losses) // 8, 1)
    middle = len(losses) // 2
    start, half, end = (fmean(losses[i : i + width]) for i in (0, middle - width // 2, len(losses) - width))
    if start - end < settings.progress * start or half - end < 0.9 * (start - half):
        return None
    return (
        f"slow drift: the loss falls in a straight line ({start:.3g}, {half:.3g}, {end:.3g}), not fast and then slower"
    )


def _unseen(series: Series, settings: HealthSettings) -> str | None:
    now = series.samples[-1]
    if now.seen_share is None or now.step < settings.every or 1 - now.seen_share <= settings.unseen_note:
        return None
    return f"{1 - now.seen_share:.0%} of the Gaussians were seen by no camera since the last refinement"


def _losses(series: Series) -> list[float]:
    return [sample.loss for sample in series.samples if sample.loss is not None]


_COLLAPSE = FailureClass.MCMC_COLLAPSE
_P7 = "the p7 story; init_scaling 15 and 50"
RULES: tuple[Rule, ...] = (
    Rule("death_spiral", Severity.STOP, "gsplat issues #487 and #1040", _death_spiral, _COLLAPSE),
    Rule(
        "sudden_collapse",
        Severity.STOP,
        "collapse happens in one step",
        _sudden_collapse,
        _COLLAPSE,
    ),
    Rule("early_death", Severity.STOP, "measured: opacity learning rate x10", _early_death, _COLLAPSE),
    Rule("faded", Severity.STOP, "fvdb issue #323, gsplat issue #1027", _faded, _COLLAPSE),
    Rule(
        "explosion",
        Severity.STOP,
        _P7,
        _exploded,
        FailureClass.EXPLOSION,
    ),
    Rule("divergence", Severity.STOP, "LichtFeld Studio issue #379", _diverging, FailureClass.NAN_DIVERGENCE),
    Rule("scene_scale", Severity.WARNING, "gsplat issue #542: MCMC died at a scene scale of 2009", _units),
    Rule(
        "blind_camera",
        Severity.STOP,
        "the p7 story: the rasteriser is launched on nothing",
        _blind_camera,
        FailureClass.LAUNCH_CONFIG,
    ),
    Rule("blind", Severity.WARNING, "the p7 story; gsplat issues #84 and #346", _blind),
    Rule(
        "not_normalised",
        Severity.STOP,
        "gsplat issue #542; mkkellogg/GaussianSplats3D issue #299",
        _unnormalised,
        FailureClass.DATA_ERROR,
    ),
    Rule("relocation", Severity.WARNING, "gsplat issue #487: 11 % to 36 %, then out of memory", _relocation),
    Rule("faint", Severity.WARNING, "fvdb issue #323", _faint),
    Rule("flung", Severity.WARNING, "mkkellogg/GaussianSplats3D issue #299", _flung),
    Rule("wide", Severity.WARNING, "fvdb issue #324: prune_scale3d", _wide),
    Rule("dormant", Severity.WARNING, "SplatFlow dormancy", _dormant),
    Rule("no_progress", Severity.WARNING, "3D-Reconstruction issue #95 ended with loss 0.73", _no_progress),
    Rule("plateau", Severity.NOTE, "field practice", _plateau),
    Rule("slow_drift", Severity.NOTE, "context drift: linear where exponential approach is normal", _linear),
    Rule("unseen", Severity.NOTE, "the mechanism of MCMC collapse: what is not seen dies", _unseen),
)
