"""Patches, attempts, runs, checkpoints or splats side by side: what differs most on top, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splatpipe.comparands import PATCH, Comparand, Value, resolve
from splatpipe.errors import ConfigError
from splatpipe.layout import RunLayout

LARGE = math.log(1.25)  # a difference worth a sentence
NOTHING = math.log(10)  # something against nothing, or one word against another
TOLD = 4  # differences in the verdict
FELL = 0.5  # a share or count below this much of the one before has collapsed
COLLAPSING = ("Gaussians", "alive share", "health gaussians", "health alive share")
QUALITY = ("hold-out psnr", "psnr")
DECISIVE = ("blind cameras at 0.1", "blind cameras", "values not finite")  # a cause by themselves


def compare(specs: Sequence[str]) -> dict[str, Any]:
    """`{items: [{name, kind}], rows: [{name, values, ratio}], verdict: [sentences]}`; the largest difference first.

    `ratio` is the last value over the first, None where one is 0, unknown or a word. A run folder followed by
    patches or attempts is the run that they are in. Raises `ConfigError` for fewer than two or for things of
    different kinds, `RunFolderError` naming what is not there.
    """
    run = None
    if len(specs) > 1 and any(PATCH.fullmatch(spec) for spec in specs[1:]):
        folder = Path(specs[0]).expanduser()
        if RunLayout(folder).run_yml.is_file() or RunLayout(folder).patches.is_dir():
            run, specs = RunLayout(folder.resolve()), specs[1:]
    if len(specs) < 2:
        raise ConfigError("compare: name two things or more, for example splatpipe compare RUN p000 p007")
    return side_by_side([resolve(spec, run) for spec in specs])


def side_by_side(items: Sequence[Comparand]) -> dict[str, Any]:
    """The comparison of things of one kind; splats and checkpoints count as one."""
    kinds = {"splat" if item.kind == "checkpoint" else item.kind for item in items}
    if len(kinds) > 1:
        shown = ", ".join(f"{item.name} is a {item.kind}" for item in items)
        raise ConfigError(f"compare: these are of different kinds ({shown}); compare like with like")
    names = dict.fromkeys(name for item in items for name in item.facts)
    rows = [_row(name, [item.facts.get(name) for item in items]) for name in names]
    rows.sort(key=lambda row: -difference(row["values"]))
    return {
        "items": [{"name": item.name, "kind": item.kind} for item in items],
        "rows": rows,
        "verdict": verdict(items, rows),
    }


def _row(name: str, values: list[Value]) -> dict[str, Any]:
    first, last = values[0], values[-1]
    ratio = None
    if isinstance(first, int | float) and isinstance(last, int | float) and first and last:
        ratio = last / first
    return {"name": name, "values": values, "ratio": ratio}


def difference(values: Sequence[Value]) -> float:
    """The largest ratio between any two, as a logarithm; something against nothing counts as ten times."""
    known = [value for value in values if value is not None]
    if len(set(known)) <= 1:
        return 0.0
    numbers = [abs(float(value)) for value in known if isinstance(value, int | float)]
    signs = {value > 0 for value in known if isinstance(value, int | float)}
    if len(numbers) < len(known) or min(numbers) == 0 or len(signs) > 1:
        return NOTHING
    return math.log(max(numbers) / min(numbers))


def verdict(items: Sequence[Comparand], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Collapses and causes first, then the largest differences, then which is best."""
    found = [*_collapses(items, rows), *_causes(items, rows)]
    large = [row for row in rows if difference(row["values"]) > LARGE and row["name"] not in DECISIVE]
    if large:
        found.append("They differ most in " + "; ".join(_told(row) for row in large[:TOLD]) + ".")
    elif not found:
        found.append("Nothing differs by more than a quarter.")
    return found + _best(items, rows)


def _collapses(items: Sequence[Comparand], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Counts and alive shares that more than halve from one to the next: it happens in one step, then is stable."""
    found = []
    for row in rows:
        if row["name"] not in COLLAPSING:
            continue
        for at, (before, after) in enumerate(zip(row["values"], row["values"][1:], strict=False)):
            if isinstance(before, int | float) and isinstance(after, int | float) and after < FELL * before:
                change = f"{row['name']} falls from {_shown(before)} to {_shown(after)}"
                found.append((at, f"Collapse between {items[at].name} and {items[at + 1].name}: {change}."))
    return [text for _, text in sorted(found)]


def _causes(items: Sequence[Comparand], rows: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        if row["name"] in DECISIVE and len(set(row["values"])) > 1:
            some = [f"{i.name} {_shown(v)}" for i, v in zip(items, row["values"], strict=True) if v]
            found.append(f"Look here first: {row['name']}: {', '.join(some)}, the others none.")
    return found


def _best(items: Sequence[Comparand], rows: Sequence[dict[str, Any]]) -> list[str]:
    for row in rows:
        known = [(v, i.name) for v, i in zip(row["values"], items, strict=True) if isinstance(v, int | float)]
        if row["name"] in QUALITY and len(known) == len(items):
            (high, best), (low, worst) = max(known), min(known)
            return [f"{best} is best, {high - low:.2f} dB above {worst} ({row['name']})."]
    return []


def _told(row: dict[str, Any]) -> str:
    if row["ratio"] is not None and row["ratio"] > 0 and len(row["values"]) == 2:
        return f"{row['name']} ({_shown(row['ratio'])} times)"
    return f"{row['name']} ({', '.join(_shown(value) for value in row['values'])})"


def _shown(value: Value) -> str:
    return "unknown" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
