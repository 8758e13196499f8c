"""What the trainings of `init_scaling.py` say about each first-rung policy, as tables.

A record holds `patches` (name to the facts that policies go by) and `cells` (one row a training).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from splatpipe.failures.classes import FailureClass
from splatpipe.policy.init_scaling import InitScalingSettings
from splatpipe.policy.probe import Probed, ProbeSettings, decide, next_probe

RUNGS, RATIOS = InitScalingSettings().rungs, InitScalingSettings().ratios
POLICIES = ("extent", "coverage", "fixed 0.1", "probe")
PROBE = ProbeSettings()
Row = dict[str, Any]
Rows = Mapping[float, Row]  # trainings of one patch with one seed, by init_scaling


@dataclass(frozen=True)
class Path:
    """How a policy fares on one patch: what it begins with, attempts wasted, and the value that is trained at last."""

    first: float
    wasted: int
    last: float | None  # None: every rung died


def path(policy: str, facts: Row, rows: Rows) -> Path:
    """As far as `rows` know; a value that is not in it has yet to be trained."""
    extent = facts["by_extent"]
    first = {"coverage": facts["by_coverage"] or extent, "fixed 0.1": RUNGS[0]}.get(policy, extent)
    if policy == "probe":
        tried: list[Probed] = []
        while len(tried) < PROBE.rungs and (value := next_probe(first, tried, RUNGS)) is not None:
            if value not in rows:
                return Path(value, 0, value)
            tried.append(_probed(value, rows[value]))
        first = decide(first, tried).init_scaling
    wasted = 0
    for value in (rung for rung in RUNGS if rung >= first):
        if value not in rows or rows[value]["failure"] is None:
            return Path(first, wasted, value)
        wasted += 1
    return Path(first, wasted, None)


def _probed(value: float, row: Row) -> Probed:
    died = row["failure"] is not None and row["died_at"] <= PROBE.steps
    failure = FailureClass(row["failure"]) if died else None
    return Probed(value, failure, row["died_at"] if died else PROBE.steps, row["psnr"].get(str(PROBE.steps)))


def next_value(facts: Row, rows: Rows, more: Sequence[float], step: int) -> float | None:
    """A value that some policy, or the user, wants trained to `step` and that is not."""
    wanted = [*(path(policy, facts, rows).last for policy in POLICIES), *more]
    return next((value for value in wanted if value is not None and not _ended(rows.get(value), step)), None)


def _ended(row: Row | None, step: int) -> bool:
    return row is not None and (row["failure"] is not None or str(step) in row["psnr"])


def groups(record: Row) -> dict[tuple[str, int], dict[float, Row]]:
    """(patch, seed) to its trainings by init_scaling."""
    found: dict[tuple[str, int], dict[float, Row]] = {}
    for row in record["cells"]:
        name = f"{row['scene']} x{row['scale']:g} {row['patch']}"
        found.setdefault((name, row["seed"]), {})[row["init_scaling"]] = row
    return found


def compared(record: Row, step: int) -> Iterator[tuple[Row, dict[float, Row], dict[str, Path]]]:
    """Facts, trainings and each policy's path, where all policies have reached `step` or died."""
    for (name, _), rows in groups(record).items():
        facts = record["patches"][name]
        paths = {policy: path(policy, facts, rows) for policy in POLICIES}
        if all(one.last is None or _ended(rows.get(one.last), step) for one in paths.values()):
            yield facts, rows, paths


def value_table(record: Row, steps: Sequence[int]) -> str:
    """One row a patch and seed: PSNR after each of `steps` by init_scaling, or where it died."""
    values = sorted({row["init_scaling"] for row in record["cells"]})
    told = " / ".join(map(str, steps))
    lines = _head(f"PSNR after {told} steps", "extent / median", *(f"{value:g}" for value in values))
    for (name, seed), rows in groups(record).items():
        shown = [_shown(rows[value], steps) if value in rows else "" for value in values]
        ratio = f"{record['patches'][name]['extent_ratio']:.2f}"
        lines.append(_line(f"{name.replace(' x1 ', ' ')}, seed {seed}", ratio, *shown))
    return "\n".join(lines)


def _shown(row: Row, steps: Sequence[int]) -> str:
    told = [f"{row['psnr'][str(step)]:.2f}" for step in steps if str(step) in row["psnr"]]
    return " / ".join([*told, *([f"{row['failure']} at {row['died_at']}"] if row["failure"] else [])])


def policy_table(record: Row, steps: Sequence[int]) -> str:
    """One row a policy, over all trainings in which every policy has got as far as the last of `steps`."""
    lines = _head("policy", "trainings", "begin with", "survive", "attempts wasted", *(f"PSNR at {s}" for s in steps))
    found = list(compared(record, steps[-1]))
    for policy in POLICIES:
        paths = [(rows, which[policy]) for _, rows, which in found]
        firsts = [one.first for _, one in paths]
        begun = ", ".join(f"{firsts.count(value)} x {value:g}" for value in sorted(set(firsts)))
        alive = [rows[one.last] for rows, one in paths if one.last is not None]
        values = [f"{mean(row['psnr'][str(step)] for row in alive):.2f}" if alive else "" for step in steps]
        wasted = sum(one.wasted for _, one in paths)
        lines.append(_line(policy, len(paths), begun, len(alive), wasted, *values))
    return "\n".join(lines)


def branch_table(record: Row, steps: Sequence[int]) -> str:
    """One row a branch of the extent rule: dB gained over fixed 0.1 by the rule and by coverage, +- standard error."""
    policies = ("extent", "coverage")
    lines = _head("extent / median", "rule says", "trainings", *(f"{p} at {s}" for p in policies for s in steps))
    found = list(compared(record, steps[-1]))
    for branch, rung in enumerate(RUNGS):
        mine = [(rows, paths) for facts, rows, paths in found if facts["by_extent"] == rung]
        gains = [_gain(mine, policy, step) for policy in policies for step in steps]
        lower = f"from {RATIOS[branch - 1]:g}" if branch else ""
        upper = f"below {RATIOS[branch]:g}" if branch < len(RATIOS) else ""
        lines.append(_line(f"{lower} {upper}".strip(), f"{rung:g}", len(mine), *gains))
    mine = [(rows, paths) for _, rows, paths in found]
    lines.append(_line("all", "", len(found), *(_gain(mine, policy, step) for policy in policies for step in steps)))
    return "\n".join(lines)


def _gain(found: Sequence[tuple[Rows, dict[str, Path]]], policy: str, step: int) -> str:
    """Mean of PSNR under a policy minus PSNR under fixed 0.1, where both survive."""
    pairs = [(rows, paths[policy].last, paths["fixed 0.1"].last) for rows, paths in found]
    values = [_psnr(rows, one, step) - _psnr(rows, other, step) for rows, one, other in pairs if one and other]
    if not values:
        return ""
    return f"{mean(values):+.2f}" + (f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else "")


def _psnr(rows: Rows, value: float, step: int) -> float:
    return float(rows[value]["psnr"][str(step)])


def noise(record: Row, steps: Sequence[int]) -> str:
    """How far the same training differs between seeds."""
    cells: dict[tuple[str, float], list[Row]] = {}
    for (name, _), rows in groups(record).items():
        for value, row in rows.items():
            cells.setdefault((name, value), []).append(row)
    told = []
    for step in steps:
        found = [[row["psnr"][str(step)] for row in rows if str(step) in row["psnr"]] for rows in cells.values()]
        spread = [stdev(values) for values in found if len(values) > 1]
        if spread:
            rms = mean(value**2 for value in spread) ** 0.5
            told.append(f"{rms:.2f} dB at {step} steps (n = {len(spread)})")
    return "Standard deviation between seeds: " + ("; ".join(told) or "unknown, as all have one seed")


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|---" * len(titles) + "|"]


def _line(*values: object) -> str:
    return f"| {' | '.join(map(str, values))} |"
