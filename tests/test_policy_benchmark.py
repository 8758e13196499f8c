"""How benchmarks/init_scaling.py reads policies off trainings; docs/scaling.md has what it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FACTS = {"by_extent": 0.1, "by_coverage": 0.4, "extent_ratio": 1.0}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import init_scaling_tables

    return init_scaling_tables


def row(value: float, died_at: int | None = None, **psnr: float) -> dict[str, Any]:
    failure = "mcmc_collapse" if died_at else None
    told = {name.removeprefix("at"): gain for name, gain in psnr.items()}
    one = {"scene": "s", "scale": 1.0, "patch": "p000", "seed": 1, "init_scaling": value}
    return one | {"psnr": told, "failure": failure, "died_at": died_at}


def test_a_rung_that_dies_is_an_attempt_wasted_unless_a_probe_finds_it(tables: Any) -> None:
    rows = [row(0.1, died_at=20), row(0.2, died_at=900, at300=12.0), row(0.3, at300=13.0, at2000=20.0)]
    record = {"patches": {"s x1 p000": FACTS}, "cells": [*rows, row(0.4, at300=14.0, at2000=21.0)]}
    lines = tables.policy_table(record, [2000]).splitlines()[2:]
    assert [line.split(" | ")[2:] for line in lines] == [
        ["1 x 0.1", "1", "2", "20.00 |"],  # extent
        ["1 x 0.4", "1", "0", "21.00 |"],  # coverage
        ["1 x 0.1", "1", "2", "20.00 |"],  # fixed 0.1
        ["1 x 0.2", "1", "1", "20.00 |"],  # probe: too short to see that 0.2 dies as well
    ]
    shown = tables.value_table(record, [300, 2000]).splitlines()[-1]
    assert shown.endswith("| mcmc_collapse at 20 | 12.00 / mcmc_collapse at 900 | 13.00 / 20.00 | 14.00 / 21.00 |")
    assert "coverage at 2000" in (table := tables.branch_table(record, [2000]))
    assert "| below 1.25 | 0.1 | 1 | +0.00 | +1.00 |" in table


def test_only_what_policies_need_is_trained_and_the_next_rung_after_a_death(tables: Any) -> None:
    rows: dict[float, Any] = {}
    asked = []
    while (value := tables.next_value(FACTS, rows, [], 500)) is not None:
        asked.append(value)
        rows[value] = row(value, died_at=100) if value == 0.1 else row(value, at500=10.0)
    assert asked == [0.1, 0.2, 0.4]


def test_noise_is_what_seeds_differ_by(tables: Any) -> None:
    cells = [row(0.1, at500=10.0), row(0.1, at500=12.0) | {"seed": 2}]
    assert "1.41 dB at 500 steps (n = 1)" in tables.noise({"cells": cells}, [500, 2000])
