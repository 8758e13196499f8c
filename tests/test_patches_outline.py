"""Outlines of cores as rings of corners: what pictures draw."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from splatpipe.patches.box import Box
from splatpipe.patches.outline import middle_of, rings_of
from splatpipe.patches.region import in_ring, regions_of
from splatpipe.patches.union import Union, together

INF = np.inf
LOW, HIGH = np.array([-2.0, -2.0]), np.array([8.0, 6.0])
STEP = 10 / 1000  # what outlines that are not of boxes are drawn to
TRIANGLE = np.array([[0.0, 0.0], [6.0, 1.0], [2.0, 5.0]])


def box(x0: float, y0: float, x1: float, y1: float) -> Box:
    return Box(np.array([x0, y0, -INF]), np.array([x1, y1, INF]))


def corners(ring: NDArray[np.float64]) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in ring}


def area(ring: NDArray[np.float64]) -> float:
    """Positive of one that runs counterclockwise."""
    after = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum() / 2)


def test_a_box_is_its_corners_and_one_without_bounds_closes_at_the_edge_of_the_ground() -> None:
    (ring,) = rings_of(box(1, 1, 3, 2), LOW, HIGH)
    assert corners(ring) == {(1, 1), (3, 1), (3, 2), (1, 2)}
    (ring,) = rings_of(box(-INF, 1, 3, INF), LOW, HIGH)
    assert corners(ring) == {(-2, 1), (3, 1), (3, 6), (-2, 6)}
    assert rings_of(box(9, 0, INF, 1), LOW, HIGH) == ()


def test_boxes_in_one_core_have_one_outline_without_the_edges_between_them() -> None:
    (ring,) = rings_of(together([box(0, 0, 4, 1), box(0, 1, 1, 3)]), LOW, HIGH)
    assert len(ring) == 6
    assert corners(ring) == {(0, 0), (4, 0), (4, 1), (1, 1), (1, 3), (0, 3)}


def test_a_hole_runs_the_other_way_round_and_parts_far_apart_have_a_ring_each() -> None:
    frame = together([box(-INF, -INF, 0, INF), box(2, -INF, INF, INF), box(0, -INF, 2, 0), box(0, 2, 2, INF)])
    assert isinstance(frame, Union)
    rings = sorted(rings_of(frame, LOW, HIGH), key=area)
    assert [area(ring) for ring in rings] == [-4, 80]
    apart = rings_of(together([box(0, 0, 1, 1), box(3, 3, 4, 5)]), LOW, HIGH)
    assert sorted(area(ring) for ring in apart) == [1, 2]
    touching = rings_of(together([box(0, 0, 1, 1), box(1, 1, 2, 2)]), LOW, HIGH)
    assert sum(area(ring) for ring in touching) == 2


def test_a_drawn_outline_has_its_corners_and_what_is_left_beside_it_has_a_hole() -> None:
    drawn, rest = regions_of([TRIANGLE], rest=True)
    (ring,) = rings_of(drawn, LOW, HIGH)
    assert len(ring) == 3
    assert np.linalg.norm(ring[:, None] - TRIANGLE, axis=2).min(axis=0).max() < 2 * STEP
    hole, edge = sorted(rings_of(rest, LOW, HIGH), key=area)
    assert area(edge) == pytest.approx(80)
    assert area(hole) == pytest.approx(-area(TRIANGLE), rel=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_places_lie_inside_the_rings_where_they_lie_in_the_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turns = np.arange(9) * 2 * np.pi / 9
    star = 3 + rng.uniform(0.5, 3, 9)[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    drawn, rest = regions_of([TRIANGLE, star], rest=True)[1:]
    boxes = together([box(0, 0, 2, 2), box(2, 1, 5, 3), box(0, 2, 1, INF)])
    for shape in (drawn, rest, boxes, drawn.grown(0.4), boxes.grown(0.4)):
        rings = rings_of(shape, LOW, HIGH)
        places = rng.uniform(LOW, HIGH, (300, 2))
        inside = np.sum([in_ring(ring, places) for ring in rings], axis=0) % 2 == 1
        expected = shape.contains(np.column_stack([places, np.zeros(300)]))
        for place in places[inside != expected]:  # only just beside an edge
            near = place + 3 * STEP * rng.normal(0, 1, (200, 2))
            there = shape.contains(np.column_stack([near, np.zeros(200)]))
            assert there.any() and not there.all(), place
        middle, away = middle_of(shape, LOW, HIGH)
        assert away > 0 and shape.contains(np.append(middle, 0.0)[None]).all()
