"""The first rung follows the extent of the patch relative to its scene, never its units."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splatpipe.policy.init_scaling import InitScalingSettings, RungChoice, first_rung, rung_for

SETTINGS = InitScalingSettings()
# The saga's scene: fourteen patches, most near 0.85, p7 at 1.31.
SAGA = {f"p{i:03d}": extent for i, extent in enumerate([0.85, 0.84, 0.86, 0.83, 0.85, 0.87, 0.82, 1.31, 0.88])}


def test_the_saga_patches_get_the_rungs_that_trained_them() -> None:
    choices = first_rung(SAGA, SETTINGS)
    assert choices["p000"].init_scaling == 0.1
    assert choices["p007"].init_scaling == 0.3
    assert choices["p007"].median == 0.85
    assert "1.31" in choices["p007"].reason and "0.85" in choices["p007"].reason and "1.54" in choices["p007"].reason


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30), st.sampled_from([1e-3, 1e3, 0.3048]))
def test_no_extent_gives_more_than_the_last_rung_and_units_do_not_matter(extents: list[float], unit: float) -> None:
    named = {f"p{i:03d}": extent for i, extent in enumerate(extents)}
    choices = first_rung(named, SETTINGS)
    assert all(choice.init_scaling in SETTINGS.rungs for choice in choices.values())
    scaled = first_rung({name: extent * unit for name, extent in named.items()}, SETTINGS)
    for name, choice in choices.items():
        on_a_limit = any(math.isclose(choice.ratio or 0, limit, rel_tol=1e-9) for limit in SETTINGS.ratios)
        assert on_a_limit or scaled[name].init_scaling == choice.init_scaling


@pytest.mark.parametrize("extent", [math.nan, 0.0, -1.0, math.inf])
def test_an_unusable_extent_starts_on_the_first_rung_and_leaves_the_others_alone(extent: float) -> None:
    choices = first_rung({**SAGA, "p009": extent}, SETTINGS)
    assert choices["p009"].init_scaling == 0.1
    assert "says nothing" in choices["p009"].reason
    assert choices["p007"] == first_rung(SAGA, SETTINGS)["p007"]


def test_a_single_patch_starts_on_the_first_rung() -> None:
    assert first_rung({"p000": 123.0}, SETTINGS)["p000"].init_scaling == 0.1


def test_a_fixed_rung_overrides_the_extent() -> None:
    choices = first_rung(SAGA, InitScalingSettings(fixed=0.2))
    assert {choice.init_scaling for choice in choices.values()} == {0.2}


def test_the_larger_of_extent_and_preflight_wins_and_both_are_recorded() -> None:
    choice = RungChoice(0.1, 1.0, 0.85, "because")
    first = rung_for(choice, 0.3)
    assert (first.init_scaling, first.by_extent, first.by_preflight) == (0.3, 0.1, 0.3)
    assert "0.3" in first.reason
    assert rung_for(choice, None).init_scaling == 0.1
    assert rung_for(RungChoice(0.4, 2.1, 0.85, "because"), 0.2).init_scaling == 0.4


@pytest.mark.parametrize("bad", [{"rungs": (0.1, 1.0)}, {"rungs": (0.2, 0.1), "ratios": (1.5,)}, {"ratios": (1.5,)}])
def test_settings_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(InitScalingSettings).validate_python(bad)
