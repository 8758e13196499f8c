"""Two patches side by side, what differs most on top: where to look when one trains and the other does not."""

from __future__ import annotations

import math
from typing import Any

from splatpipe.errors import RunFolderError
from splatpipe.files import read_json
from splatpipe.layout import RunLayout


def compare(layout: RunLayout, one: str, other: str) -> dict[str, Any]:
    """Rows of {name, one, other, ratio}, the largest ratio first; ratio is None where a value is 0 or not known.

    Raises `RunFolderError` naming a patch that is not there.
    """
    first, second = (_facts(layout, patch) for patch in (one, other))
    rows = [_row(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]
    rows.sort(key=lambda row: -_difference(row))
    return {"one": one, "other": other, "rows": rows}


def _facts(layout: RunLayout, patch_id: str) -> dict[str, float | None]:
    """Numbers of patch.json by name; counts of each camera become their share, smallest and median."""
    try:
        record = read_json(layout.patch(patch_id).patch_json)
        return _numbers(record)
    except OSError as error:
        known = sorted(folder.name for folder in layout.patches.glob("*") if folder.is_dir())
        there = f"; it has {known[0]} to {known[-1]}" if known else ", it was not split yet"
        raise RunFolderError(f"{layout.root}: no readable patch {patch_id}{there}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{layout.patch(patch_id).patch_json} is damaged ({error}); the next splatpipe run writes it anew"
        ) from error


def _numbers(record: Any) -> dict[str, float | None]:
    stats = dict(record["stats"])
    facts: dict[str, float | None] = {}
    for rung, counts in stats.pop("visible").items():
        ordered = sorted(counts)
        facts[f"blind cameras at {rung}"] = sum(count == 0 for count in counts)
        facts[f"fewest Gaussians a camera sees at {rung}"] = ordered[0] if ordered else None
        facts[f"median Gaussians a camera sees at {rung}"] = ordered[len(ordered) // 2] if ordered else None
    _flatten(stats, "", facts)
    facts["scale to training units"] = record["similarity"]["scale"]
    return facts


def _flatten(value: Any, name: str, facts: dict[str, float | None]) -> None:
    match value:
        case dict():
            for key, inner in value.items():
                _flatten(inner, f"{name} {key}".strip().replace("_", " "), facts)
        case list():
            for axis, inner in zip("xyz", value, strict=False):
                _flatten(inner, f"{name} {axis}", facts)
        case bool() | str():
            pass
        case _:
            facts[name] = value


def _row(name: str, one: float | None, other: float | None) -> dict[str, Any]:
    ratio = other / one if one and other else None
    return {"name": name, "one": one, "other": other, "ratio": ratio}


def _difference(row: dict[str, Any]) -> float:
    """How far apart the two are; something against nothing counts as ten times."""
    if row["ratio"] is not None and row["ratio"] > 0:
        return abs(math.log(row["ratio"]))
    return 0.0 if row["one"] == row["other"] else math.log(10)
