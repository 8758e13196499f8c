"""What can be compared (patches, attempts, runs, checkpoints, splats), each as named facts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import RunFolderError
from splatpipe.files import read_json
from splatpipe.layout import RunLayout, patch_span
from splatpipe.ledger import Ledger

Kind = Literal["patch", "attempt", "run", "splat", "checkpoint"]
Value = float | str | None
PATCH = re.compile(r"(p\d+)(?:[/#](\d+))?$")
DEAD = 0.005  # opacity at or below which a Gaussian is dead
SAMPLE = 2_000_000  # Gaussians of a file that stand for all


@dataclass(frozen=True)
class Comparand:
    """`facts` by name, in the order in which they are told."""

    name: str
    kind: Kind
    facts: Mapping[str, Value]


def resolve(spec: str, run: RunLayout | None) -> Comparand:
    """What `spec` names: p007 or p007/2 (in `run`, or as RUN/p007), a run folder, a .ply or a .pt file.

    Raises `RunFolderError` when there is no such thing, with what would be.
    """
    if run is not None and PATCH.fullmatch(spec):
        return _in_run(run, spec, spec)
    path = Path(spec).expanduser()
    inside = re.fullmatch(r"(.+?)/(p\d+(?:[/#]\d+)?)/?", spec)
    if inside and not path.exists() and RunLayout(Path(inside[1]).expanduser()).run_yml.is_file():
        return _in_run(RunLayout(Path(inside[1]).expanduser().resolve()), inside[2], spec)
    if path.is_dir() and RunLayout(path).run_yml.is_file():
        return Comparand(spec, "run", _run_facts(RunLayout(path.resolve())))
    if path.is_file() and path.suffix == ".ply":
        return Comparand(spec, "splat", _splat_facts(path))
    if path.is_file() and path.suffix == ".pt":
        return Comparand(spec, "checkpoint", _checkpoint_facts(path))
    if PATCH.fullmatch(spec):
        raise RunFolderError(f"{spec}: of which run? Name it first: splatpipe compare RUN {spec} ...")
    raise RunFolderError(
        f"{spec}: nothing to compare there; name a run folder, a patch (p007), an attempt (p007/2), a .ply file or a "
        "checkpoint (.pt)"
    )


def _in_run(layout: RunLayout, spec: str, name: str) -> Comparand:
    found = PATCH.fullmatch(spec)
    assert found is not None
    if found[2] is None:
        return Comparand(name, "patch", patch_facts(layout, found[1]))
    return Comparand(name, "attempt", _attempt_facts(layout, found[1], int(found[2])))


# ------------------------------------------------------------------ patches


def patch_facts(layout: RunLayout, patch_id: str) -> dict[str, Value]:
    """Numbers of patch.json by name, counts of cameras in short, and how the patch stands."""
    try:
        facts = _measured(read_json(layout.patch(patch_id).patch_json))
    except OSError as error:
        known = sorted(folder.name for folder in layout.patches.glob("*") if folder.is_dir())
        there = f"; it has {patch_span(known)}" if known else ", it was not split yet"
        raise RunFolderError(f"{layout.root}: no readable patch {patch_id}{there}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{layout.patch(patch_id).patch_json} is damaged ({error}); the next splatpipe run writes it anew"
        ) from error
    return facts | _standing(layout, patch_id)


def _measured(record: Any) -> dict[str, Value]:
    stats = dict(record["stats"])
    facts: dict[str, Value] = {}
    for rung, counts in stats.pop("visible").items():
        ordered = sorted(counts)
        facts[f"blind cameras at {rung}"] = sum(count == 0 for count in counts)
        facts[f"fewest Gaussians a camera sees at {rung}"] = ordered[0] if ordered else None
        facts[f"median Gaussians a camera sees at {rung}"] = ordered[len(ordered) // 2] if ordered else None
    _flatten(stats, "", facts)
    facts["scale to training units"] = record["similarity"]["scale"]
    return facts


def _standing(layout: RunLayout, patch_id: str) -> dict[str, Value]:
    if not layout.ledger.is_file():
        return {}
    with Ledger(layout.ledger, read_only=True) as ledger:
        record, history = ledger.patch(patch_id), ledger.history(patch_id)
    if record is None:
        return {}
    facts: dict[str, Value] = {"outcome": str(record.outcome), "attempts": len(history)}
    if history:
        facts["last failure"] = next((str(one.failure) for one in reversed(history) if one.failure), "none")
        facts["seconds trained"] = round(sum(one.seconds for one in history), 1)
    facts |= {f"hold-out {name}": record.metrics.get(name) for name in ("psnr", "ssim")}
    return facts | {"trained Gaussians": record.metrics.get("gaussians")}


def _flatten(value: Any, name: str, facts: dict[str, Value]) -> None:
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


# ------------------------------------------------------------------ attempts


def _attempt_facts(layout: RunLayout, patch_id: str, number: int) -> dict[str, Value]:
    """Its request, its end and its last health sample."""
    with Ledger(layout.ledger, read_only=True) as ledger:
        history = {one.request.attempt: one for one in ledger.history(patch_id)}
    attempt = history.get(number)
    if attempt is None:
        known = ", ".join(map(str, history)) or "none yet"
        raise RunFolderError(f"{layout.root}: {patch_id} has no ended attempt {number}; it has {known}")
    request = attempt.request
    facts: dict[str, Value] = {
        "ended with": str(attempt.failure or "trained"),
        "last step": attempt.last_step,
        "Gaussians": attempt.gaussians,
        "seconds": round(attempt.seconds, 1),
        "memory": attempt.peak_vram_bytes or attempt.peak_rss_bytes,
        "trainer": request.trainer,
        "init_scaling": request.init_scaling,
        "cameras left out": len(request.skip_cameras),
    }
    facts |= {f"setting {key}": _plain(value) for key, value in vars(request.settings).items()}
    facts |= {name: attempt.health.get(name) for name in ("psnr", "ssim", "loss", "scene_scale")}
    facts["blind cameras"] = len(attempt.health.get("blind_cameras") or ())
    facts["verdicts"] = ", ".join(v["rule"] for v in attempt.health.get("verdicts") or ()) or "none"
    return facts | _last_health(request.files.events)


def _last_health(events: Path) -> dict[str, Value]:
    found: dict[str, Value] = {}
    try:
        lines = events.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in reversed(lines):
        if '"event": "health"' in line and line.endswith("}"):
            _flatten({k: v for k, v in json.loads(line).items() if k not in ("t", "event", "sigmas")}, "health", found)
            break
    return found


def _plain(value: object) -> Value:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


# ------------------------------------------------------------------ runs


def _run_facts(layout: RunLayout) -> dict[str, Value]:
    """Outcomes and quality, then every setting."""
    from splatpipe.runfolder import read_run

    settings = read_run(layout)["settings"]
    with Ledger(layout.ledger, read_only=True) as ledger:
        status = ledger.status()
    patches, merged = status["patches"], status["merged"]
    attempts = [attempt for patch in patches for attempt in patch["attempts"]]
    facts: dict[str, Value] = {
        "patches": len(patches),
        "patches trained": sum(str(patch["outcome"]).startswith("trained") for patch in patches),
        "attempts": len(attempts),
        "failed attempts": sum(attempt["class"] is not None for attempt in attempts),
        "seconds trained": round(sum(patch["seconds"] or 0 for patch in patches), 1),
        "hold-out psnr": merged["psnr"],
        "hold-out ssim": merged["ssim"],
        "merged Gaussians": merged["gaussians"],
        "failure classes": ", ".join(sorted({str(a["class"]) for a in attempts if a["class"]})) or "none",
    }
    for section, values in settings.items():
        facts |= {f"setting {section}.{key}": _setting(value) for key, value in values.items()}
    return facts


def _setting(value: object) -> Value:
    return json.dumps(value) if isinstance(value, list | dict) else _plain(value)


# ------------------------------------------------------------------ splats


def _splat_facts(path: Path) -> dict[str, Value]:
    from splatpipe.splatting.ply import from_rows, read_header, sample_rows

    header = read_header(path)
    rows = np.concatenate(list(sample_rows(header, SAMPLE)))
    splats = from_rows(rows)
    measured = measure(splats.means, splats.scales, splats.opacities, splats.sh0.reshape(len(rows), -1))
    return {"Gaussians": header.count, "SH degree": header.sh_degree, **measured}


def _checkpoint_facts(path: Path) -> dict[str, Value]:
    import torch

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = saved.get("state", saved)
        params = {name: value.detach().numpy() for name, value in saved["params"].items()}
        step = int(saved["step"])
    except Exception as error:  # zip, pickle, missing key: whatever is wrong with the file
        raise RunFolderError(f"{path}: no checkpoint of splatpipe ({type(error).__name__})") from error
    count = len(params["means"])
    facts: dict[str, Value] = {"step": step, "Gaussians": count}
    facts |= measure(params["means"], params["scales"], params["opacities"], params["sh0"].reshape(count, -1))
    bands = params["shN"].reshape(count, -1, 3)
    for band in (1, 2, 3):
        part = bands[:, band**2 - 1 : (band + 1) ** 2 - 1]
        if part.size:
            facts[f"SH band {band}, rms"] = _rms(part)
    return facts


def measure(means: NDArray[Any], scales: NDArray[Any], opacities: NDArray[Any], sh0: NDArray[Any]) -> dict[str, Value]:
    """Of (N, 3) positions, (N, 3) log scales, (N,) opacity logits and (N, 3) colours."""
    finite = np.isfinite(means).all(1) & np.isfinite(scales).all(1) & np.isfinite(opacities)
    facts: dict[str, Value] = {"values not finite": int((~finite).sum())}
    means, scales, opacity = means[finite], scales[finite], 1 / (1 + np.exp(-opacities[finite].astype(np.float64)))
    if not len(means):
        return facts
    away = np.linalg.norm(means - np.median(means, axis=0), axis=1)
    widest = np.exp(scales.max(axis=1).astype(np.float64))
    (size, large), (near, far) = (np.quantile(values, (0.5, 0.99)).tolist() for values in (widest, away))
    return facts | {
        "alive share": float((opacity > DEAD).mean()),
        "opacity, mean": float(opacity.mean()),
        "largest sigma, median": size,
        "largest sigma, 99 %": large,
        "largest sigma, maximum": float(widest.max()),
        "distance from the middle, median": near,
        "distance from the middle, 99 %": far,
        "distance from the middle, maximum": float(away.max()),
        "colour (SH 0), rms": _rms(sh0[finite]),
    }


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))
