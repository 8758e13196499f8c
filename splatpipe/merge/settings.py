"""What the merge throws away. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt


@dataclass(frozen=True)
class MergeSettings:
    """Cleaning of the merged splat; 0 switches a rule off. Rows that are not finite always go."""

    __pydantic_config__ = {"extra": "forbid"}

    min_opacity: Annotated[float, Ge(0), Lt(1)] = 0.005  # drop Gaussians less opaque than this, 0 to 1
    # Off: on short trainings a few Gaussians wider than the scene carry its mean colour, and dropping the 13 of
    # them on brighton_beach in two patches cost 4 dB (18.3 to 14.2).
    max_scale: Annotated[float, Ge(0)] = 0.0  # drop those whose largest sigma exceeds this share of the scene's extent
    max_distance: Annotated[float, Ge(0)] = 100.0  # drop those farther from the scene's centre than this many extents
