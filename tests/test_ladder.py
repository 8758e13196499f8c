"""Which attempt follows which failure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splatpipe.failures.classes import FailureClass
from splatpipe.layout import RunLayout
from splatpipe.policy.ladder import Decision, Resources, next_request
from splatpipe.policy.remedies import Remedy, RetrySettings
from splatpipe.scene.arrays import Similarity
from splatpipe.splatting.settings import TrainSettings
from splatpipe.trainers.base import Attempt, TrainRequest
from splatpipe.trainers.lichtfeld import LichtfeldTrainer

RUN = RunLayout(Path("run"))
FIRST = TrainRequest(
    patch_id="p007",
    attempt=1,
    trainer="gsplat",
    device="cpu",
    dataset=RUN.patch("p007").root,
    out=RUN.attempt("p007", 1).root,
    similarity=Similarity(1.0, (0.0, 0.0, 0.0)),
    init_scaling=0.1,
    settings=TrainSettings(scale_schedule=False),
)
SETTINGS = RetrySettings()
NOTHING = Resources()
MEMORY = ["oom_device", "oom_raster", "int_overflow"]


def ended(request: TrainRequest, failure: str | None, **health: Any) -> Attempt:
    name = FailureClass(failure) if failure else None
    return Attempt(request, 0.0, 1.0, 1, name, f"a line of {failure}", 20, 50, 0, 0, None, health)


def story(
    *failures: str,
    settings: RetrySettings = SETTINGS,
    first: TrainRequest = FIRST,
    resources: Resources = NOTHING,
    **health: Any,
) -> list[Decision]:
    """The decisions when the attempts fail one after the other like this."""
    history: list[Attempt] = []
    decisions = []
    request: TrainRequest | None = first
    for failure in failures:
        assert request is not None, f"gave up before {failure}: {decisions[-1].reason}"
        history.append(ended(request, failure, **health))
        decisions.append(next_request(first, history, settings, resources))
        request = decisions[-1].request
    return decisions


def rungs(decisions: list[Decision]) -> list[float | None]:
    return [decision.request.init_scaling if decision.request else None for decision in decisions]


def remedies(decisions: list[Decision]) -> list[str | None]:
    return [decision.remedy for decision in decisions]


def test_the_first_attempt_is_the_request_itself_and_a_trained_patch_needs_none() -> None:
    assert next_request(FIRST, [], SETTINGS).request == FIRST
    decision = next_request(FIRST, [ended(FIRST, None)], SETTINGS)
    assert (decision.request, decision.stop_run) == (None, False)


def test_launch_failures_climb_the_rungs_and_never_past_the_last() -> None:
    decisions = story(*["launch_config"] * 4)
    assert rungs(decisions) == [0.2, 0.3, 0.4, None]
    assert "no remedy is left after 4 attempts" in decisions[-1].reason
    assert "init_scaling 0.1 -> 0.2" in decisions[0].reason
    assert "a line of launch_config" in decisions[0].reason


def test_blind_cameras_are_dropped_first_and_stay_dropped() -> None:
    decisions = story("launch_config", "launch_config", blind_cameras=["b.jpg", "a.jpg"])
    assert remedies(decisions) == ["drop_blind_cameras", "next_rung"]
    assert all(d.request and d.request.skip_cameras == ("a.jpg", "b.jpg") for d in decisions)
    assert rungs(decisions) == [0.1, 0.2]


def test_the_other_trainer_comes_last_and_only_where_there_is_one() -> None:
    history, request = [], FIRST
    for value in (0.1, 0.2, 0.3, 0.4):
        request = replace(request, init_scaling=value)
        history.append(ended(request, "launch_config"))
    takeover = Resources(lambda r: replace(r, trainer="lichtfeld", init_scaling=0.02))
    decision = next_request(FIRST, history, SETTINGS, takeover)
    assert decision.remedy == "other_trainer"
    assert decision.request is not None
    assert (decision.request.trainer, decision.request.init_scaling) == ("lichtfeld", 0.02)


def test_a_collapse_gets_visible_only_steps_then_larger_gaussians_then_softer_opacity() -> None:
    decisions = story(*["mcmc_collapse"] * 5)
    assert remedies(decisions) == ["visible_only", "next_rung", "softer_opacity", "softer_opacity", None]
    assert rungs(decisions) == [0.1, 0.2, 0.2, 0.2, None]
    fourth = decisions[3].request
    assert fourth is not None
    assert fourth.settings.visible_only
    assert fourth.settings.opacities_lr == pytest.approx(0.05 / 4)
    assert fourth.settings.opacity_reg == pytest.approx(0.01 / 25)
    assert fourth.settings.scale_reg == pytest.approx(0.01 / 25)


def test_a_remedy_that_the_trainer_does_not_know_is_passed_over() -> None:
    """LichtFeld Studio cannot leave unseen Gaussians alone: an attempt with visible_only would be the same again."""
    ignored = {"lichtfeld": LichtfeldTrainer.ignored}
    assert "visible_only" in ignored["lichtfeld"]
    first = replace(FIRST, trainer="lichtfeld")
    assert remedies(story("mcmc_collapse", "mcmc_collapse", first=first, resources=Resources(ignored=ignored))) == [
        "next_rung",
        "softer_opacity",
    ]
    assert remedies(story("mcmc_collapse", resources=Resources(ignored=ignored))) == ["visible_only"]
    again = story("killed", first=first, resources=Resources(ignored=ignored))
    assert remedies(again) == ["unchanged"]  # which changes nothing anyway


SEEN = {f"{i:02d}.jpg": 3 + 20 * i for i in range(20)}  # 00 to 02 see fewer than 50 Gaussians


def test_fewer_cameras_leaves_out_those_that_see_the_least_says_which_and_keeps_enough() -> None:
    settings = RetrySettings(mcmc_collapse=(Remedy.FEWER_CAMERAS,) * 4)
    resources = Resources(visible={0.1: SEEN, 0.2: dict.fromkeys(SEEN, 900)})
    decisions = story(*["mcmc_collapse"] * 4, settings=settings, resources=resources)
    skipped = [len(d.request.skip_cameras) for d in decisions if d.request]
    assert skipped == [4, 8, 10]  # a fifth of those left, rounded up; ten stay, and then there is no remedy left
    assert decisions[0].request is not None
    assert decisions[0].request.skip_cameras == ("00.jpg", "01.jpg", "02.jpg", "03.jpg")
    assert "see the fewest initial Gaussians: 00.jpg (3), 01.jpg (23), 02.jpg (43) and 1 more" in decisions[0].reason
    assert decisions[-1].request is None
    weak = replace(settings, weak_camera=150)  # all that are weak go, more than a fifth
    decision = story("mcmc_collapse", settings=weak, resources=resources)[0]
    assert decision.request is not None
    assert decision.request.skip_cameras == tuple(sorted(SEEN)[:8])


def test_cameras_that_were_blind_are_not_mistaken_for_those_left_out_for_seeing_little() -> None:
    settings = RetrySettings(launch_config=(Remedy.DROP_BLIND_CAMERAS, Remedy.FEWER_CAMERAS))
    resources = Resources(visible={0.1: SEEN})
    decisions = story(*["launch_config"] * 2, settings=settings, resources=resources, blind_cameras=["07.jpg"])
    assert remedies(decisions) == ["drop_blind_cameras", "fewer_cameras"]
    assert decisions[1].request is not None
    assert decisions[1].request.skip_cameras == ("00.jpg", "01.jpg", "02.jpg", "03.jpg", "07.jpg")


def test_what_was_killed_or_hung_goes_on_from_its_checkpoint_and_what_is_changed_does_not() -> None:
    decisions = story("killed", "hang", "killed")
    assert [d.request.continues for d in decisions if d.request] == [(1,), (1, 2), ()]
    assert remedies(decisions)[2] == "smaller_images"
    assert "from the last checkpoint of attempt 2" in decisions[1].reason
    request = story("host_oom")[0].request
    assert request is not None
    assert request.continues == (1,)  # a smaller image cache trains the same
    assert [d.request.continues for d in story("illegal_access", "unknown") if d.request] == [(), ()]


def test_an_explosion_steps_down_between_the_last_two_rungs() -> None:
    decisions = story("launch_config", "launch_config", "explosion", "explosion")
    assert rungs(decisions) == [0.2, 0.3, 0.25, 0.25]
    assert remedies(decisions)[2:] == ["step_down", "lower_means_lr"]
    last = decisions[3].request
    assert last is not None
    assert last.settings.means_lr == pytest.approx(0.8e-4)


def test_an_explosion_on_the_first_rung_halves_it() -> None:
    assert rungs(story("nan_divergence")) == [0.05]


def test_an_explosion_far_above_the_rungs_falls_to_the_largest_of_them_at_once() -> None:
    assert rungs(story("explosion", "explosion", first=replace(FIRST, init_scaling=26.0)))[0] == 0.4


def test_a_rung_that_exploded_is_never_climbed_to_again() -> None:
    high = replace(FIRST, init_scaling=0.3)
    decisions = story("explosion", "launch_config", first=high)
    assert rungs(decisions) == [0.25, None]


@pytest.mark.parametrize("failure", MEMORY)
def test_what_ran_out_of_memory_gets_smaller_and_only_smaller(failure: str) -> None:
    decisions = story(*[failure] * 5)
    assert remedies(decisions) == ["smaller_images", "lower_cap", "smaller_init", "smaller_images", "lower_cap"]
    last = decisions[-1].request
    assert last is not None
    assert (last.settings.downscale, last.init_scaling) == (4.0, 0.05)
    assert last.settings.max_cap == pytest.approx(1_000_000 * 4 / 9, rel=1e-5)


def test_what_ran_out_of_memory_once_is_not_given_larger_gaussians_by_another_class() -> None:
    assert remedies(story("oom_device", "launch_config")) == ["smaller_images", None]


def test_images_and_cap_have_a_floor() -> None:
    small = replace(FIRST, settings=replace(FIRST.settings, downscale=8.0, max_cap=10_000))
    assert remedies(story("oom_device", first=small)) == ["smaller_init"]


@pytest.mark.parametrize("failure", ["illegal_access", "hang", "killed"])
def test_what_may_be_chance_is_tried_once_unchanged_and_then_treated_as_memory(failure: str) -> None:
    decisions = story(failure, failure, failure)
    assert remedies(decisions) == ["unchanged", "smaller_images", "lower_cap"]
    again = decisions[0].request
    assert again is not None
    assert replace(again, continues=()) == replace(FIRST, attempt=2, out=RUN.attempt("p007", 2).root)


def test_a_time_limit_is_not_answered_with_the_same_request() -> None:
    assert remedies(story("hang", ended_by="wall")) == ["smaller_images"]


def test_each_class_has_its_own_second_chance() -> None:
    assert remedies(story("hang", "killed", "hang")) == ["unchanged", "unchanged", "smaller_images"]


def test_host_memory_gets_one_try_with_a_smaller_image_cache_and_a_sentence() -> None:
    decisions = story("host_oom", "host_oom")
    assert remedies(decisions) == ["smaller_cache", None]
    request = decisions[0].request
    assert request is not None
    assert request.settings.image_cache_gb == 1.0
    small = replace(FIRST, settings=replace(FIRST.settings, image_cache_gb=0.5))
    request = story("host_oom", first=small)[0].request
    assert request is not None
    assert request.settings.image_cache_gb == 0.25
    assert "no remedy is left" in decisions[-1].reason


def test_a_missing_export_and_an_unknown_crash_get_few_tries() -> None:
    assert remedies(story("export_missing", "export_missing")) == ["unchanged", None]
    assert remedies(story("unknown", "unknown", "unknown")) == ["unchanged", "next_rung", None]


@pytest.mark.parametrize("failure", ["data_error", "config_error"])
def test_what_no_retry_can_cure_ends_the_patch_and_not_the_run(failure: str) -> None:
    decision = story(failure)[0]
    assert (decision.request, decision.stop_run) == (None, False)
    assert f"a line of {failure}" in decision.reason


def test_a_broken_machine_stops_the_run() -> None:
    decision = story("environment")[0]
    assert (decision.request, decision.stop_run) == (None, True)


def test_an_interruption_costs_no_attempt_and_resumes_in_place() -> None:
    settings = RetrySettings(max_attempts=2)
    decisions = story("launch_config", "interrupted", "interrupted", settings=settings)
    assert rungs(decisions) == [0.2, 0.2, 0.2]
    assert [d.request.attempt for d in decisions if d.request] == [2, 2, 2]
    assert next_request(FIRST, [ended(FIRST, "interrupted")] * 20, settings).request is None


def test_attempts_are_limited_whatever_remedies_are_left() -> None:
    decisions = story("launch_config", "launch_config", settings=RetrySettings(max_attempts=2))
    assert rungs(decisions) == [0.2, None]
    assert "gave up after 2 attempts" in decisions[-1].reason


def test_a_run_that_moved_goes_on_in_its_new_place() -> None:
    moved = RunLayout(Path("elsewhere"))
    first = replace(FIRST, dataset=moved.patch("p007").root, out=moved.attempt("p007", 1).root, device="cuda:1")
    for failure, number in (("launch_config", 2), ("interrupted", 1)):
        request = next_request(first, [ended(FIRST, failure)], SETTINGS).request
        assert request is not None
        assert (request.out, request.device) == (moved.attempt("p007", number).root, "cuda:1")
        assert request.dataset == moved.patch("p007").root


def test_remedies_and_rungs_are_settings() -> None:
    adapter = TypeAdapter(RetrySettings)
    settings = adapter.validate_python({"launch_config": ["lower_cap"], "rungs": [0.1, 0.5]})
    assert remedies(story("launch_config", settings=settings)) == ["lower_cap"]
    assert rungs(story("unknown", "unknown", settings=settings)) == [0.1, 0.5]
    for wrong in ({"launch_config": ["pray"]}, {"max_attemps": 3}, {"rungs": [0]}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


@given(
    st.lists(st.sampled_from(sorted(FailureClass)), min_size=1, max_size=12), st.sampled_from([0.05, 0.1, 0.25, 0.4])
)
def test_no_story_of_failures_breaks_the_bounds(failures: list[str], start: float) -> None:
    history: list[Attempt] = []
    first = replace(FIRST, init_scaling=start)
    for failure in failures:
        decision = next_request(first, history, SETTINGS)
        if decision.request is None:
            break
        request = decision.request
        assert request.init_scaling <= 0.4
        starved = [a.request.init_scaling for a in history if a.failure in MEMORY]
        assert all(request.init_scaling <= value for value in starved)
        history.append(ended(request, failure))
    assert sum(a.failure != "interrupted" for a in history) <= SETTINGS.max_attempts
    numbers = [a.request.attempt for a in history if a.failure != "interrupted"]
    assert numbers == sorted(set(numbers))


def test_mitigations_can_be_remedies_each_once_and_views_until_there_are_enough() -> None:
    settings = replace(
        SETTINGS, max_attempts=9, nan_divergence=(Remedy.WARM_UP, Remedy.CLIP_GRADIENTS, *[Remedy.MORE_VIEWS] * 4)
    )
    decisions = story(*["nan_divergence"] * 6, settings=settings)
    assert remedies(decisions) == ["warm_up", "clip_gradients", "more_views", "more_views", "more_views", None]
    last = decisions[-2].request
    assert last is not None
    assert (last.settings.warmup_steps, last.settings.clip_gradients, last.settings.views_per_step) == (1500, 3.0, 8)
    assert "warmup_steps 0 -> 1500" in decisions[0].reason
