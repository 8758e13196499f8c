"""What exports carry beside the splat. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportSettings:
    """`export:`."""

    __pydantic_config__ = {"extra": "forbid"}

    georeference: str | None = None  # file that leads to the world's coordinates; None: georeference.json, .txt, or GPS
