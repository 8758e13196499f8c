"""What `patching.max_short` costs and gives: patches, and core points that keep fewer views than the scene has.

    python benchmarks/views.py SCENE... --max-cameras 100,200,300 --max-short 1,0.1,0.01,0 --max-extra 99

`bound` is the fewest patches that the cap allows, ceil(training cameras / cap). `short` is the share of all core points
with fewer than `min_views` views, matched or by sight, in their patch though more were matched, `worst` that of the
worst patch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from splatpipe.patches.partition import split
from splatpipe.patches.patch import Role
from splatpipe.patches.settings import PatchingSettings
from splatpipe.scene.arrays import Scene
from splatpipe.scene.colmap import read_scene

COLUMNS = ("scene", "cap", "max_short", "bound", "patches", "extra", "short", "worst", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--max-cameras", default="100,200,300", help="caps, by commas")
    parser.add_argument("--max-short", default="1,0.1,0.01,0", help="shares, by commas")
    parser.add_argument("--max-extra", type=float, default=0.15, help="patches above the bound, as a share")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(" ".join(f"{name:>15}" if name == "scene" else f"{name:>9}" for name in COLUMNS))
    rows = []
    for folder in args.scenes:
        scene = read_scene(folder).scene
        for cap in (int(text) for text in args.max_cameras.split(",")):
            for share in (float(text) for text in args.max_short.split(",")):
                chosen = PatchingSettings(max_cameras=cap, max_short=share, max_extra=args.max_extra)
                rows.append({"scene": folder.name, **measure(scene, chosen)})
                print(" ".join(f"{rows[-1][name]!s:>{15 if name == 'scene' else 9}}" for name in COLUMNS), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(scene: Scene, settings: PatchingSettings) -> dict[str, Any]:
    """One row of the table."""
    started = time.monotonic()
    result = split(scene, settings)
    seconds = time.monotonic() - started
    short = next((finding.numbers["points"] for finding in result.findings if finding.kind == "few_views"), {})
    points = {patch.id: int((patch.point_role == Role.CORE).sum()) for patch in result.patches}
    bound = -(-(scene.n_cameras - len(result.holdout) - len(result.unused)) // settings.max_cameras)
    return {
        "cap": settings.max_cameras,
        "max_short": settings.max_short,
        "bound": bound,
        "patches": len(result.patches),
        "extra": f"{len(result.patches) / bound - 1:.0%}",
        "short": f"{sum(short.values()) / sum(points.values()):.2%}",
        "worst": f"{max((n / points[patch] for patch, n in short.items()), default=0):.1%}",
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
