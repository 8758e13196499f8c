"""How long patches train, learnt from those that have."""

from __future__ import annotations

from typing import Any

import pytest

from splatpipe.policy.costs import CostModel, Size, list_schedule, seconds_left

SIZES = [Size(steps, cap, pixels) for steps in (1000, 30_000) for cap in (10_000, 10**6) for pixels in (10**5, 10**6)]


def true_seconds(size: Size) -> float:
    return size.steps * (0.002 + 0.010 * size.cap / 1e6 + 0.005 * size.pixels / 1e6)


def test_times_that_follow_the_law_are_learnt_exactly() -> None:
    model = CostModel([(size, true_seconds(size)) for size in SIZES])
    unseen = Size(7000, 400_000, 600_000)
    assert model.seconds(unseen) == pytest.approx(true_seconds(unseen))


def test_one_sample_sets_the_scale_and_none_still_sorts_by_size() -> None:
    size = Size(30_000, 10**6, 10**6)
    assert CostModel([(size, 600.0)]).seconds(size) == pytest.approx(600)
    ignorant = CostModel()
    assert not ignorant.known
    assert ignorant.seconds(Size(30_000, 10**6, 10**6)) > ignorant.seconds(Size(30_000, 10**5, 10**6)) > 0


def test_samples_that_are_all_alike_do_not_mislead() -> None:
    size = Size(30_000, 10**6, 10**6)
    model = CostModel([(size, 600.0)] * 20)
    assert model.seconds(size) == pytest.approx(600)
    assert 0 < model.seconds(Size(30_000, 10**5, 10**6)) < 600


def test_a_list_schedule_ends_as_worked_out_by_hand() -> None:
    # two places, free at 0 and 2: 4 -> first (0-4), 3 -> second (2-5), 2 -> first (4-6), 1 -> second (5-6)
    assert list_schedule([4, 3, 2, 1], [0, 2]) == 6


def patch(outcome: str, size: Size, seconds: float | None = None, started: float = 0.0) -> dict[str, Any]:
    attempts = [{"seconds": seconds, "started": started}] if outcome != "pending" else []
    return {"outcome": outcome, "choice": {"size": size.to_json()}, "attempts": attempts}


def test_what_is_left_follows_from_what_runs_and_what_waits() -> None:
    size = Size(1000, 10**5, 10**5)
    patches = [patch("trained", size, 100.0), patch("running", size, None, 1000.0), patch("pending", size)]
    assert seconds_left({"patches": patches}, 1040.0) == pytest.approx(60 + 100)
    assert seconds_left({"patches": patches[1:]}, 1040.0) is None  # nothing has been learnt yet
    assert seconds_left({"patches": patches[:1]}, 1040.0) is None  # nothing trains
