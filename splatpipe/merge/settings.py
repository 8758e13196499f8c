"""How patches become one splat, and how it is judged. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt


@dataclass(frozen=True)
class MergeSettings:
    """Borders, appearance and cleaning of the merged splat; 0 switches a rule off. Rows that are not finite always go.

    docs/merging.md has the measurements behind the defaults.
    """

    __pydantic_config__ = {"extra": "forbid"}

    thin_owner: Annotated[float, Ge(0), Lt(1)] = 0.5  # a neighbour fills where the owner covers less than this share
    share_wide: bool = True  # Gaussians wider than the buffer count by the share of their mass in each core
    finish: Annotated[int, Ge(0)] = 8  # looks at each training view in a last training of what lies at borders; 0: none
    match_colors: bool = False  # fit each patch's gain and offset to how its neighbours render overlaps
    min_opacity: Annotated[float, Ge(0), Lt(1)] = 0.005  # drop Gaussians less opaque than this, 0 to 1
    # Off: on short trainings a few Gaussians wider than the scene carry its mean colour, and dropping the 13 of
    # them on brighton_beach in two patches cost 4 dB (18.3 to 14.2).
    max_scale: Annotated[float, Ge(0)] = 0.0  # drop those whose largest sigma exceeds this share of the scene's extent
    max_distance: Annotated[float, Ge(0)] = 100.0  # drop those farther from the scene's centre than this many extents
    # The next three measure against the distance to the third nearest Gaussian.
    max_spacing: Annotated[float, Ge(0)] = 0.0  # drop those whose largest sigma exceeds this many such distances
    max_needle: Annotated[float, Ge(0)] = 0.0  # drop those longer than one distance and this many times their width
    max_isolation: Annotated[float, Ge(0)] = 0.0  # drop those whose distance is this many times their neighbours'


@dataclass(frozen=True)
class EvaluationSettings:
    """How renders are held against hold-out photographs."""

    __pydantic_config__ = {"extra": "forbid"}

    lpips_weights: str | None = None  # folder with alexnet*.pth (torchvision) and alex.pth (lpips); None: no LPIPS
