"""What the outcomes of similar patches say about a first rung."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from splatpipe.failures.classes import FailureClass
from splatpipe.policy.history import Likeness, Past, Trial, learned_rung, likeness
from splatpipe.policy.remedies import EXPLODED, TOO_LARGE

P7 = Likeness("gsplat", size=1.0, extent_ratio=1.54, visibility=0.2)


def past(*trials: tuple[float, str | None], like: Likeness = P7, **changes: object) -> Past:
    tried = tuple(Trial(rung, FailureClass(name) if name else None) for rung, name in trials)
    values = {"run": "first", "patch": "p007", "same_scene": True, "when": 1.0, **changes}
    return Past(likeness=like, trials=tried, **values)  # type: ignore[arg-type]


STORY = past((0.1, "launch_config"), (0.2, "launch_config"), (0.3, None))


def rung(planned: float, *outcomes: Past, patch: Likeness = P7) -> float:
    learned = learned_rung(patch, planned, outcomes)
    return learned.init_scaling if learned else planned


def test_a_similar_patch_starts_where_the_other_trained_and_names_it() -> None:
    learned = learned_rung(P7, 0.1, [STORY])
    assert learned is not None
    assert learned.init_scaling == 0.3
    assert "p007 of run first (launch_config at 0.1, launch_config at 0.2; trained at 0.3)" in learned.reason


def test_a_rung_that_no_failure_speaks_against_is_kept() -> None:
    assert rung(0.3, STORY) == 0.3
    assert rung(0.4, STORY) == 0.4
    assert rung(0.1, past((0.3, None))) == 0.1
    assert rung(0.1, past((0.1, "launch_config"), (0.2, "launch_config"))) == 0.1  # what worked is not known


def test_what_exploded_or_ran_out_of_memory_leads_to_smaller_gaussians_never_to_larger() -> None:
    exploded = past((0.4, "explosion"), (0.35, None))
    assert rung(0.4, exploded) == 0.35
    assert rung(0.1, exploded) == 0.1
    assert rung(0.3, past((0.2, "oom_raster"), (0.1, None))) == 0.1


def test_other_patches_and_other_trainers_teach_nothing() -> None:
    assert rung(0.1, replace(STORY, likeness=replace(P7, extent_ratio=0.9))) == 0.1
    assert rung(0.1, replace(STORY, likeness=replace(P7, size=3.0))) == 0.1
    assert rung(0.1, replace(STORY, likeness=replace(P7, visibility=0.6))) == 0.1
    assert rung(0.1, replace(STORY, likeness=replace(P7, trainer="lichtfeld"))) == 0.1


def test_the_same_scene_comes_first_then_the_nearest_then_the_latest() -> None:
    elsewhere = replace(STORY, same_scene=False)
    near = replace(P7, extent_ratio=1.6)
    fine = past((0.1, None), like=near)
    assert rung(0.1, elsewhere, fine) == 0.1  # nearer, but another scene
    assert rung(0.1, STORY, fine) == 0.3
    assert rung(0.1, STORY, past((0.1, None), when=2.0)) == 0.1
    assert rung(0.1, past((0.1, None), when=0.0), STORY) == 0.3


def test_statistics_without_a_needed_number_are_like_nothing() -> None:
    whole = {"relative_size": {"gsplat": 0.1}, "init_scaling": 0.1, "extent": 3.0, "seen_share": {"q50": 0.4}}
    assert likeness(whole, 2.0, "gsplat") == Likeness("gsplat", 1.0, 1.5, 0.4)
    assert likeness(whole, 2.0, "lichtfeld") is None
    assert likeness({}, 2.0, "gsplat") is None
    assert likeness(whole, 0.0, "gsplat") is None


RUNGS = st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.4])
TRIALS = st.lists(st.tuples(RUNGS, st.sampled_from(list(FailureClass))), max_size=4)


@given(st.lists(st.tuples(TRIALS, RUNGS), max_size=5), RUNGS)
def test_a_learned_rung_has_worked_and_lies_away_from_what_failed(
    stories: list[tuple[list[tuple[float, FailureClass]], float]], planned: float
) -> None:
    outcomes = [past(*failed, (worked, None)) for failed, worked in stories]
    learned = learned_rung(P7, planned, outcomes)
    if learned is None:
        return
    assert learned.init_scaling in {worked for _, worked in stories}
    directions = {failure in TOO_LARGE | EXPLODED for failed, _ in stories for _, failure in failed}
    assert (learned.init_scaling < planned) in directions
