"""Rules that drop Gaussians, each counted under its name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.merge.neighbours import Spacing
from splatpipe.merge.settings import MergeSettings

NOT_FINITE = "not_finite"
TRANSPARENT = "transparent"
OVERSIZED = "oversized"
FAR_AWAY = "far_away"
COARSE = "coarse"
NEEDLE = "needle"
ISOLATED = "isolated"
RULES = (NOT_FINITE, TRANSPARENT, OVERSIZED, FAR_AWAY, COARSE, NEEDLE, ISOLATED)


@dataclass(frozen=True, eq=False)
class Cleaning:
    """The rules of `settings` for a scene of this centre (3,) and extent (a length), in scene units.

    An extent of 0 or infinity switches off the rules that are relative to it.
    """

    settings: MergeSettings
    center: NDArray[np.float64]
    extent: float

    @property
    def needs_spacing(self) -> bool:
        """Whether a rule that is on looks at the distances among Gaussians."""
        return bool(self.settings.max_spacing or self.settings.max_needle or self.settings.max_isolation)

    def dropped(self, rows: NDArray[np.float32], spacing: Spacing | None = None) -> dict[str, NDArray[np.bool_]]:
        """Per rule, (N,) which rows (in the layout of `ply.columns`) it drops; the rules are disjoint.

        `spacing` of the same rows, where `needs_spacing`.
        """
        dropped = {NOT_FINITE: not_finite(rows)}
        gone = dropped[NOT_FINITE].copy()
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are already gone
            for name, mask in [*self._rules(rows), *(self._spacing_rules(rows, spacing) if spacing else ())]:
                dropped[name] = mask & ~gone
                gone |= mask
        return dropped

    def _rules(self, rows: NDArray[np.float32]) -> list[tuple[str, NDArray[np.bool_]]]:
        settings, rules = self.settings, []
        opacity, scales = rows[:, -8], rows[:, -7:-4]  # a row ends with opacity, three scales and four of the rotation
        if settings.min_opacity:
            logit = np.log(settings.min_opacity / (1 - settings.min_opacity))
            rules.append((TRANSPARENT, opacity < logit))
        if 0 < self.extent < np.inf:
            if settings.max_scale:
                largest = scales.max(axis=1)
                rules.append((OVERSIZED, largest > np.log(settings.max_scale * self.extent)))
            if settings.max_distance:
                away = np.linalg.norm(rows[:, :3].astype(np.float64) - self.center, axis=1)
                rules.append((FAR_AWAY, away > settings.max_distance * self.extent))
        return rules

    def _spacing_rules(self, rows: NDArray[np.float32], spacing: Spacing) -> list[tuple[str, NDArray[np.bool_]]]:
        settings, rules = self.settings, []
        scales = np.sort(rows[:, -7:-4], axis=1)
        length = np.exp(scales[:, 2])
        if settings.max_spacing:
            rules.append((COARSE, length > settings.max_spacing * spacing.distance))
        if settings.max_needle:
            thin = scales[:, 2] - scales[:, 1] > np.log(settings.max_needle)
            rules.append((NEEDLE, thin & (length > spacing.distance)))
        if settings.max_isolation:
            rules.append((ISOLATED, spacing.isolation > settings.max_isolation))
        return rules


def no_cleaning() -> Cleaning:
    """Drops only what is not finite."""
    return Cleaning(MergeSettings(min_opacity=0.0, max_distance=0.0), np.zeros(3), 0.0)


def not_finite(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) rows with a NaN or an infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(rows.sum()):  # NaN and infinities never cancel out; four times faster than looking at each
            return np.zeros(len(rows), np.bool_)
    return np.asarray(~np.isfinite(rows).all(axis=1))
