"""From facts and experiments to ranked causes, each with the evidence for and against it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from splatpipe.diagnosis import schedule as s
from splatpipe.diagnosis.checks import FAR, Facts
from splatpipe.diagnosis.experiments import Result

BETTER_DB = 0.5  # PSNR of the fixed view: more than what two trainings of one patch differ by
MEMORY = ("oom_device", "oom_raster", "int_overflow", "host_oom")
BLOWN_UP = ("explosion", "nan_divergence")
USUAL_SIZE = (0.05, 15.0)  # initial sigma over neighbour distance (trainers.md, A8)


@dataclass(frozen=True)
class Evidence:
    """One sentence; its weight is positive for the cause, negative against it. A decisive test weighs 4."""

    weight: float
    text: str


@dataclass(frozen=True)
class Cause:
    """`kind` is stable, `name` and `remedy` are for people. `changes` are fields of a request that cure it."""

    kind: str
    name: str
    remedy: str
    evidence: tuple[Evidence, ...]
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def score(self) -> float:
        return sum(one.weight for one in self.evidence)

    @property
    def verdict(self) -> str:
        if self.score <= 0:
            return "ruled out" if self.score < 0 else "no sign of it"
        return "confirmed" if self.score >= 5 else "likely" if self.score >= 3 else "possible"

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("kind", "name", "verdict", "score", "remedy")},
            "stands": self.score > 0,
            "for": [one.text for one in self.evidence if one.weight > 0],
            "against": [one.text for one in self.evidence if one.weight <= 0],
            "changes": dict(self.changes),
        }


@dataclass(frozen=True)
class Case:
    """Everything that is known of a patch. `facts` None: its data set cannot even be read, and `unreadable` says why.

    `past`: the failure classes of the patch's real attempts, oldest first.
    """

    facts: Facts | None
    results: Mapping[str, Result]
    init_scaling: float
    past: Sequence[str] = ()
    skipped: int = 0  # cameras that the plan has left out already
    unreadable: str = ""

    @property
    def baseline(self) -> Result | None:
        return self.results.get(s.BASELINE)

    @property
    def failure(self) -> str | None:
        """How the patch fails: as the experiment showed, else as its last attempt did."""
        if self.baseline is not None and not self.baseline.trained:
            return self.baseline.failure
        return self.past[-1] if self.past else None

    @property
    def fails(self) -> bool:
        return self.baseline is not None and not self.baseline.trained


def rank(case: Case) -> list[Cause]:
    """The causes, best supported first; those that nothing speaks for stand at the end, ruled out."""
    if case.facts is None:
        why = Evidence(9, case.unreadable)
        return [Cause("unreadable_data", "The data set cannot be read", "Split the scene again.", (why,))]
    facts = case.facts
    found = [
        _images(case, facts), _blind(case, facts), _units(case, facts), _outliers(case, facts), _init(case, facts),
        _rate(case), _seldom(case, facts), _memory(case), _poses(case, facts), _machine(case),
    ]  # fmt: skip
    return sorted(found, key=lambda cause: (-cause.score, cause.kind))


def _cure(case: Case, name: str, what: str) -> list[Evidence]:
    """What an experiment that takes the suspect away says."""
    one = case.results.get(name)
    if one is None or case.baseline is None:
        return []
    if case.fails and one.trained:
        return [Evidence(4, f"{what} the patch trains; as it is, it fails with {case.baseline.failure}")]
    if case.fails:
        return [Evidence(-3, f"{what} it fails all the same ({one.failure} at step {one.step})")]
    if not one.trained:
        return [Evidence(-2, f"{what} it fails ({one.failure}), while it trains as it is")]
    gain = (one.psnr or 0) - (case.baseline.psnr or 0) if one.psnr and case.baseline.psnr else 0.0
    if gain > BETTER_DB:
        return [Evidence(2, f"{what} the fixed view is {gain:.1f} dB better after {one.step} steps")]
    return [Evidence(0, f"the patch trains as it is, and {what} no better ({gain:+.1f} dB after {one.step} steps)")]


def _images(case: Case, facts: Facts) -> Cause:
    evidence = []
    if facts.unreadable:
        name, why = next(iter(facts.unreadable.items()))
        evidence.append(Evidence(3, f"{_count(facts.unreadable, 'image')} cannot be decoded, first {name}: {why}"))
    if facts.wrong_size:
        first = facts.wrong_size[0]
        evidence.append(
            Evidence(2, f"{_count(facts.wrong_size, 'image')} without the shape that the camera says, first {first}")
        )
    if not evidence:
        evidence.append(Evidence(-3, f"all {facts.cameras} images decode and have the shape of their cameras"))
    elif case.failure == "data_error":
        evidence.append(Evidence(2, f"the training says so too: {_line(case)}"))
    evidence += _cure(case, s.NO_BAD_IMAGES, "without the damaged images")
    names = tuple(sorted({*facts.unreadable, *facts.wrong_size}))
    remedy = "Restore these images, or take them out of the model: " + ", ".join(names[:10]) if names else ""
    return Cause("corrupt_image", "Damaged images", remedy, tuple(evidence))


def _blind(case: Case, facts: Facts) -> Cause:
    blind = facts.blind_at(case.init_scaling)
    if not blind:
        text = f"every camera sees initial Gaussians at init_scaling {case.init_scaling:g}"
        skipped = f"; {case.skipped} were left out by the plan" if case.skipped else ""
        return Cause("blind_cameras", "Cameras that see no Gaussian", "", (Evidence(-3, text + skipped),))
    counts = ", ".join(f"{len(names)} at {rung}" for rung, names in facts.blind.items())
    evidence = [Evidence(3, f"of {facts.cameras} cameras see no initial Gaussian, by init_scaling: {counts}")]
    if case.failure == "launch_config":
        evidence.append(Evidence(3, "a rasteriser that is given nothing to draw dies of just this error"))
    if case.baseline is not None and case.baseline.blind:
        evidence.append(Evidence(1, f"in training {case.baseline.blind} of them saw nothing either"))
    evidence += _cure(case, s.NO_BLIND, "without them")
    floor = next((rung for rung, names in facts.blind.items() if not names), None)
    remedy = f"Leave them out ({', '.join(blind[:5])}{', ...' if len(blind) > 5 else ''})"
    remedy += f", or begin at init_scaling {floor}, where none is blind." if floor else "; no init_scaling cures all."
    changes = (("init_scaling", float(floor)),) if floor else ()
    return Cause("blind_cameras", "Cameras that see no Gaussian", remedy, tuple(evidence), changes)


def _units(case: Case, facts: Facts) -> Cause:
    low, high = s.SCALE
    scale = facts.scene_scale
    reach = f"the cameras reach {scale:.3g} training units from their middle"
    name, remedy = "Units: the data set is not normalised", "Normalise the data set (splatpipe split does)."
    if low <= scale <= high:
        return Cause("scale", name, "", (Evidence(-3, f"{reach}, usual are {low:g} to {high:g}"),))
    evidence = [Evidence(4, f"{reach}, usual are {low:g} to {high:g}")]
    if case.failure in BLOWN_UP:
        evidence.append(Evidence(1, f"{case.failure} is what steps too large for the scene end in"))
    if case.baseline is not None and "scene_scale" in case.baseline.verdicts:
        evidence.append(Evidence(0.5, "the training was warned of its scene scale"))
    evidence += _cure(case, s.RESCALED, "recentred and rescaled")
    return Cause("scale", name, remedy, tuple(evidence))


def _outliers(case: Case, facts: Facts) -> Cause:
    name = "Points far from everything"
    if not facts.outliers:
        text = f"no point lies farther than {facts.farthest:.3g} times the median distance from the middle"
        return Cause("outlier_points", name, "", (Evidence(-3, text),))
    share = facts.outliers / facts.points
    text = (
        f"{facts.outliers} points ({share:.1%}) lie more than {FAR:g} times the median distance from the middle, "
        f"the farthest {facts.farthest:.3g} times"
    )
    evidence = [Evidence(2 + min(2.0, 40 * share), text), *_cure(case, s.NO_OUTLIERS, "without them")]
    evidence += _halves(case)
    return Cause("outlier_points", name, "Delete these points, or raise patching.outliers.", tuple(evidence))


def _halves(case: Case) -> list[Evidence]:
    near, far = case.results.get("nearer_half"), case.results.get("farther_half")
    if near is None or far is None or near.trained == far.trained:
        return []
    if near.trained:
        return [Evidence(2, "the nearer half of the points trains, the farther half fails")]
    return [Evidence(-2, "the farther half of the points trains, the nearer half fails")]


def _init(case: Case, facts: Facts) -> Cause:
    """The size of the first Gaussians, which the grid alone can decide."""
    size, (low, high) = facts.relative_size, USUAL_SIZE
    name = "Size of the first Gaussians (init_scaling)"
    evidence = [Evidence(0, f"they are {size:.2g} neighbour distances wide at init_scaling {case.init_scaling:g}")]
    if not low <= size <= high:
        evidence[0] = Evidence(2.5, f"{evidence[0].text}, usual are {low:g} to {high:g}")
    rungs = {one.init_scaling: one for one in _grid(case, 1.0)}
    good = sorted(rung for rung, one in rungs.items() if one.trained)
    changes: tuple[tuple[str, Any], ...] = ()
    remedy = ""
    if case.fails and good:
        chosen = min((rung for rung in good if rung > case.init_scaling), default=good[-1])
        worse = sorted(rung for rung in rungs if rung not in good)
        failing = "".join(f", not at {_list(worse)}" for _ in worse[:1])
        evidence.append(Evidence(4, f"it trains at init_scaling {_list(good)}{failing} nor at {case.init_scaling:g}"))
        changes, remedy = (("init_scaling", chosen),), f"Begin at init_scaling {chosen:g}."
    elif case.fails and rungs:
        evidence.append(Evidence(-3, f"it fails at every init_scaling tried: {_list(sorted(rungs))}"))
    halved = {one.init_scaling: one.trained for one in _grid(case, 0.5) if one.init_scaling in rungs}
    if case.fails and good and halved and all(trained == (rung in good) for rung, trained in halved.items()):
        evidence.append(Evidence(1, "half of means_lr changes nothing: the same values train"))
    if case.fails and good:
        evidence += _swaps(case, follows="points")
    return Cause("init_scaling", name, remedy, tuple(evidence), changes)


def _rate(case: Case) -> Cause:
    """means_lr: does halving it alone help?"""
    name = "Learning rate of the positions (means_lr)"
    halved = [one for one in _grid(case, 0.5) if one.init_scaling == case.init_scaling]
    if not case.fails or not halved:
        return Cause("means_lr", name, "", (Evidence(0, "not tried"),))
    if halved[0].trained:
        lr = halved[0].means_lr
        text = f"with half of means_lr ({lr:g}) it trains at the same init_scaling"
        return Cause("means_lr", name, f"Use means_lr {lr:g}.", (Evidence(4, text),), (("means_lr", lr),))
    text = f"with half of means_lr it fails all the same ({halved[0].failure} at step {halved[0].step})"
    return Cause("means_lr", name, "", (Evidence(-3, text),))


def _seldom(case: Case, facts: Facts) -> Cause:
    name = "Gaussians that are seldom seen fade away"
    share = f"half of the points are seen by fewer than {facts.seen_share:.0%} of the cameras"
    evidence = [Evidence(2 if facts.seen_share < s.SEES_SELDOM else -2, share)]
    if case.failure == "mcmc_collapse":
        evidence.append(Evidence(3, f"the Gaussians die: {_line(case)}"))
    evidence += _cure(case, s.VISIBLE, "when only what a camera sees is moved")
    remedy = "Set training.visible_only: true, or give the patch fewer cameras."
    return Cause("seldom_seen", name, remedy, tuple(evidence), (("visible_only", True),))


def _memory(case: Case) -> Cause:
    seen = [one for one in case.past if one in MEMORY]
    evidence = [Evidence(4, f"its attempts ended with {_list(sorted(set(seen)))}")] if seen else []
    if case.failure in MEMORY:
        evidence.append(Evidence(2, f"so did the experiment: {_line(case)}"))
    if not evidence:
        evidence.append(Evidence(-2, "no attempt ran out of memory"))
    remedy = "Use smaller images (training.max_width), then a lower training.max_cap."
    return Cause("memory", "Memory", remedy, tuple(evidence))


def _poses(case: Case, facts: Facts) -> Cause:
    name = "Camera poses"
    if facts.bad_poses:
        first = facts.bad_poses[0]
        text = f"{_count(facts.bad_poses, 'camera')} with a pose that is no rotation or not finite, first {first}"
        evidence = [Evidence(4, text)]
    else:
        evidence = [Evidence(-2, "all poses are rotations and finite")]
    evidence += _swaps(case, follows="cameras")
    return Cause("poses", name, "Look at these cameras in COLMAP; leave them out of the model.", tuple(evidence))


def _machine(case: Case) -> Cause:
    name = "The machine or the settings, not the patch"
    if case.failure in ("environment", "config_error"):
        return Cause("machine", name, "splatpipe doctor", (Evidence(6, _line(case)),))
    evidence = [Evidence(-2, "the trainer starts and trains here")] if _any_trained(case) else [Evidence(0, "unknown")]
    return Cause("machine", name, "", tuple(evidence))


def _swaps(case: Case, follows: str) -> list[Evidence]:
    """Whether the failure goes with the points or with the cameras."""
    points, cameras = case.results.get(s.MY_POINTS), case.results.get(s.MY_CAMERAS)
    if not case.fails or points is None or cameras is None or points.trained == cameras.trained:
        return []
    found = "cameras" if points.trained else "points"
    text = f"swapped with the working patch, the failure goes with its {found}"
    return [Evidence(1.5 if found == follows else -1.5, text)]


def _grid(case: Case, rate: float) -> list[Result]:
    return [one for one in case.results.values() if one.kind == "grid" and one.name.endswith(f"_x{rate:g}")]


def _any_trained(case: Case) -> bool:
    return any(one.trained or one.step > 0 for one in case.results.values())


def _line(case: Case) -> str:
    line = (case.baseline.line if case.baseline is not None else None) or case.failure or ""
    return line if len(line) <= 200 else line[:200] + " ..."


def _list(values: Sequence[Any]) -> str:
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _count(names: Sized, what: str) -> str:
    return f"{len(names)} {what}{'s' * (len(names) != 1)}"
