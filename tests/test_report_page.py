"""The frame of every page: what stands in it is text, whatever it is called, and nothing is fetched."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from splatpipe.report import words
from splatpipe.report.charts import MOST_POINTS, Chart, Line, Mark
from splatpipe.report.page import render_page

HOSTILE = "</script><img src=x onerror=alert(1)>'\"{{ 7*7 }}.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = ('{% extends "base.html" %}', '{% import "macros.html" as m %}')
    block = "{% block content %}<h2>{{ name }}</h2>{{ m.facts([(name, name)]) }}{{ m.chart(chart) }}{% endblock %}"
    (tmp_path / "mine.html").write_text("\n".join((*lines, block)))
    return tmp_path


def test_a_hostile_name_stays_text_in_markup_and_in_chart_data(folder: Path) -> None:
    chart = Chart(HOSTILE, [0, 1], [Line(HOSTILE, [1.0, 2.0])], marks=[Mark(1, "stop", HOSTILE)])
    page = render_page("mine.html", [folder], name=HOSTILE, chart=chart.to_json())
    assert "<img" not in page
    assert "49.jpg" not in page
    data = re.search(r"data-chart='([^']*)'", page)
    assert data is not None
    assert json.loads(data[1])["title"] == HOSTILE


def test_a_page_names_no_address_that_a_browser_would_fetch(folder: Path) -> None:
    page = render_page("mine.html", [folder], name="a", chart=Chart("t", [], []).to_json())
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*|@import|url\((?!data:)""", page)


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    steps = list(range(10_001))
    shown = Chart("loss", steps, [Line("loss", [float(s) for s in steps])]).to_json()
    assert len(shown["x"]) <= MOST_POINTS + 1
    assert (shown["x"][0], shown["x"][-1]) == (0, 10_000)
    assert shown["lines"][0]["values"][-1] == 10_000


def test_what_json_or_a_logarithm_cannot_say_is_a_gap() -> None:
    values = [math.nan, 0.0, 2.0, math.inf, None]
    assert Chart("a", range(5), [Line("a", values)], log=True).to_json()["lines"][0]["values"] == [
        *(None, None, 2.0, None, None)
    ]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (words.duration(8.25), "8.2 s"),
        (words.duration(59.7), "1 min 0 s"),
        (words.duration(7500), "2 h 5 min"),
        (words.memory(1_234_000_000), "1.23 GB"),
        (words.memory(0), "–"),
        (words.number(1234567), "1\u202f234\u202f567"),
        (words.number(0.012345), "0.0123"),
        (words.number(math.nan), "–"),
        (words.percent(0.034), "3.4%"),
        (words.percent(1.0), "100%"),
        (words.outcome("trained_with_warnings"), "trained, with warnings"),
        (words.failure("mcmc_collapse"), "The Gaussians died out"),
    ],
)
def test_numbers_read_as_a_person_would_say_them(said: str, text: str) -> None:
    assert said == text


def test_every_outcome_and_failure_class_has_words() -> None:
    from splatpipe.entries import Outcome
    from splatpipe.failures.classes import FailureClass

    assert {one.value for one in Outcome} == set(words.OUTCOMES)
    assert {one.value for one in FailureClass} <= set(words.FAILURES)
